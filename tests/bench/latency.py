"""How long an image takes, stage by stage, beside diffusers on the same device: `make bench-gpu`.

    python -m tests.bench.latency [--quick] [--parts peak,engine] [--model full|demo] [--out FILE]

Full size is Stable Diffusion 1.5 with ControlNet canny and random weights: nothing is downloaded, and its speed does
not depend on them. Every figure is in the file as soon as it was measured, so that a run that is cut short leaves what
it has; a part that fails is told there, and the next one goes on. Times are in milliseconds unless a name says s.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch

from tests.bench.environment import environment
from tests.bench.parts import PARTS, Part
from tests.bench.parts.bench import CONFIGS, Bench
from tests.bench.parts.services import COMPILE_CACHES
from tests.bench.report import Report, lines

QUICK_SECONDS = 330.0  # six minutes with the imports before and the clean-up after
GRACE_SECONDS = 10.0  # after which a part that does not look at the clock is broken off


class CutOffError(BaseException):
    """The run is over: its time is, or it was told to end. Not an Exception: no part may take it for its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one failed, 2 if the run was told to end."""
    options = _options(arguments)
    left = QUICK_SECONDS if options.quick else options.seconds
    bench = Bench(
        model=options.model,
        device=options.device,
        side=options.side,
        steps=options.steps,
        repeats=options.repeats,
        patience=5.0 if options.quick else 60.0,
        deadline=time.monotonic() + left,
        quick=options.quick,
    )
    report = Report(options.out, _head(options))
    with _alarms(left + GRACE_SECONDS), _empty_caches():
        code = run(report, {name: PARTS[name] for name in options.parts}, bench)
    print(*lines(report.content), sep="\n", flush=True)
    return code


def run(report: Report, parts: Mapping[str, Part], bench: Bench) -> int:
    """Run parts one after the other and enter what they yield; what stops one is entered too."""
    remaining = dict(parts)
    try:
        for name, part in parts.items():
            remaining.pop(name)
            if bench.left < (part.quick_seconds if bench.quick else 0.0):
                report.enter(name, "skipped", f"out of time: {max(bench.left, 0.0):.0f} s were left")
            else:
                _run_one(report, name, part, bench)
    except CutOffError as reason:
        for name in remaining:
            report.enter(name, "skipped", str(reason))
        return 2 if bench.left > 0 else int(report.failed)
    return int(report.failed)


def _run_one(report: Report, name: str, part: Part, bench: Bench) -> None:
    began = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        _enter_all(report, name, part.run(bench), bench)
    except CutOffError as reason:
        report.enter(name, "cut off", str(reason))
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is belongs into the report, and the next part is another's
        traceback.print_exc()
        report.fail(name, error)
    finally:
        report.enter(name, "part, s", round(time.monotonic() - began, 1))
    bench.tidy()


def _enter_all(report: Report, name: str, rows: Iterable[tuple[str, Any]], bench: Bench) -> None:
    for row, value in rows:
        report.enter(name, row, value)
        if bench.left < 0:
            report.enter(name, "cut off", "out of time")
            return


def _head(options: argparse.Namespace) -> dict[str, Any]:
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {"unit": "times in milliseconds unless a name says s", "environment": environment(), "asked": asked}


@contextmanager
def _alarms(seconds: float) -> Iterator[None]:
    """Break off with CutOffError when the seconds are over, or when a signal asks for it."""

    def cut_off(number: int, frame: FrameType | None) -> None:
        raise CutOffError("out of time" if number == signal.SIGALRM else signal.Signals(number).name)

    before = {number: signal.signal(number, cut_off) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    if seconds < float("inf"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _empty_caches() -> Iterator[None]:
    """What was compiled by an earlier run would make this one's compiling look short."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, dict.fromkeys(COMPILE_CACHES, folder)):
        yield


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="full" if cuda else "demo")
    parser.add_argument("--device", default="cuda:0" if cuda else "cpu")
    parser.add_argument("--side", type=int, help="of the image, in pixels: 512, or the small model's 256")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, help="of each measurement, where time allows: 20, with --quick 5")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}, in the order wanted; all by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no more is measured")
    parser.add_argument("--quick", action="store_true", help=f"in {QUICK_SECONDS:.0f} s, and less of everything")
    parser.add_argument("--out", type=Path, default=Path("build/latency.json"))
    options = parser.parse_args(arguments)
    options.side = options.side or {"full": 512, "demo": 256}[options.model]
    options.repeats = options.repeats or (5 if options.quick else 20)
    options.parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.side % 64 or options.steps < 2:
        parser.error("--side must be a multiple of 64, and --steps at least 2")
    return options


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch's compiler may still be at work in a thread that would be waited for
