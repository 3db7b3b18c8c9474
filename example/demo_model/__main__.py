"""`python -m example.demo_model`: train the small model, score one, or compare two."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from workers.console import command, leave

MINUTES = 180.0  # of training, on two cores
SCENES = 16_000
WORK = Path("output/demo-model")
MODEL = Path("configs/demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what it says."""
    chosen = _parser().parse_args(arguments)
    {"train": _train, "evaluate": _evaluate, "compare": _compare}[chosen.command](chosen)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command("-m", "example.demo_model"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from nothing, or go on where a killed run was")
    train.add_argument("--out", type=Path, default=MODEL, help="the model's folder (%(default)s)")
    train.add_argument("--work", type=Path, default=WORK, help="for scenes, checkpoints and losses (%(default)s)")
    train.add_argument("--minutes", type=float, default=MINUTES, help="of training, in all (%(default)g)")
    train.add_argument("--scenes", type=int, default=SCENES, help="to learn from (%(default)s)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    train.add_argument("--start", type=Path, help="a model of the same sizes to begin with, in place of chance")
    train.add_argument("--stages", nargs="+", help="those that share the minutes; all if left out")
    evaluate = commands.add_parser("evaluate", help="print the table of a model's scores")
    evaluate.add_argument("model", type=Path, nargs="?", default=MODEL)
    evaluate.add_argument("--guidance", type=float, help="as configs/demo.yaml has it if left out")
    evaluate.add_argument("--scenes", type=int, default=40, help="flat ones, and as many of mixed styles")
    evaluate.add_argument("--json", type=Path, help="also write the scores to this file")
    evaluate.add_argument("--sheet", type=Path, help="also write a contact sheet (JPEG)")
    compare = commands.add_parser("compare", help="let two models paint the same twenty prompts side by side")
    compare.add_argument("one", type=Path)
    compare.add_argument("other", type=Path)
    compare.add_argument("--photographs", action="store_true", help="of six photographs, at 256 and 384 px")
    compare.add_argument("--out", type=Path, default=Path("output/compared.jpg"))
    return parser


def _train(chosen: argparse.Namespace) -> None:
    from example.demo_model.training import SHARES, Plan, train

    start = str(chosen.start or "")
    plan = Plan(chosen.minutes, chosen.scenes, chosen.seed, chosen.device, start, tuple(chosen.stages or SHARES))
    train(plan, chosen.work, chosen.out)


def _evaluate(chosen: argparse.Namespace) -> None:
    from example.demo_model.evaluation import evaluate
    from example.demo_model.painter import GUIDANCE
    from example.demo_model.sheet import contact_sheet

    scores = evaluate(chosen.model, GUIDANCE if chosen.guidance is None else chosen.guidance, chosen.scenes)
    print(scores.table())
    if chosen.json:
        chosen.json.write_text(json.dumps(scores.as_dict(), indent=2) + "\n")
    if chosen.sheet:
        contact_sheet(scores, chosen.sheet)


def _compare(chosen: argparse.Namespace) -> None:
    from example.demo_model.comparison import compare

    compare(chosen.one, chosen.other, chosen.out, chosen.photographs)


if __name__ == "__main__":
    leave(main)
