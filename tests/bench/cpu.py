"""A step, the VAE and an image on a CPU: this service, diffusers, ONNX Runtime and OpenVINO, taking turns.

    python -m tests.bench.cpu [--quick] [--load] [--cases demo-256,full-512] [--out FILE]

Contenders take turns in one run, so that other work on the machine slows all of them alike. Ratios are those of
medians, to OpenVINO on diffusers' own graph in the same precision. At full size, with random weights, only as many
contenders are in memory at once as fit, and all come again in every pass. `--load` instead times steps beside a second
worker or another busy process, as ratios to one worker alone. `contenders.py` says what is compared.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from tests.bench.contenders import (
    BASELINE,
    CONTENDERS,
    OPENVINO,
    TORCH,
    Case,
    Contender,
    Racer,
    RacerError,
    write_full_size,
)
from tests.bench.environment import environment
from tests.bench.report import Report
from workers.machine import available_cores, computes_in_bfloat16

Key: TypeAlias = tuple[str, str]  # work, contender
Times: TypeAlias = dict[Key, list[float]]

CASES = ("demo-256", "full-256", "full-512")
TOGETHER = {"demo": len(CONTENDERS), "full": 2}  # contenders in memory at once
MEMORY_GIB = 20.0
ROUNDS, STEPS = {"demo": 10, "full": 1}, {"demo": 20, "full": 4}  # where none are asked for
# Of a turn: runs to warm up after the others' turns, and runs to be timed.
WORKS = {
    "demo": {"step": (5, 20), "networks": (5, 20), "VAE": (1, 3), "image": (0, 1)},
    "full": {"step": (1, 2), "networks": (1, 1), "VAE": (1, 1), "image": (0, 1)},
}
_BEGAN = time.perf_counter()
PAUSE_S = 0.02  # in which threads of the last contender stop spinning
STARTING = 2  # contenders at once

NEIGHBOURS = {
    "beside a loop in Python": "while True: pass",
    "beside matrix products of torch": "import torch\na = torch.randn(512, 512)\nwhile True: a @ a",
}
LOAD_STEPS, LOAD_SECONDS = 40, 4.0  # of a turn
_THREADS = available_cores(), max(1, available_cores() // 2)
_WORKERS = "alone", f"two workers of {_THREADS[1]} threads", f"two workers of {_THREADS[0]} threads"


def main() -> int:
    options = _options()
    asked = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    head = {
        "unit": "milliseconds",
        "environment": environment(),
        "load average before": os.getloadavg(),
        "asked": asked,
    }
    report = Report(options.out, head)
    with _folder(options.folder) as folder:
        for name in options.cases:
            model, _, side = name.partition("-")
            case = Case(model, int(side), options.steps or STEPS[model], folder)
            rounds = options.rounds or ROUNDS[model]
            if options.load:
                load(report, case, rounds)
            else:
                compare(report, case, _wanted(options), rounds, 1 if model == "demo" else options.passes)
    return int(report.failed)


# ---------------------------------------------------------------------------------------------------------- comparison


def compare(report: Report, case: Case, contenders: Sequence[Contender], rounds: int, passes: int) -> None:
    """Time all works of all contenders, and enter and print the figures after each pass."""
    errors: dict[str, str] = {}
    if case.model == "full":
        write_full_size(case)
        for contender in contenders:  # alone, as it takes more memory than to run
            with _racers([contender], case, errors, only_prepare=True):
                pass
    times: Times = defaultdict(list)
    for n in range(passes):
        for group in groups(contenders, TOGETHER[case.model]):
            _say(f"{case.name}, pass {n + 1} of {passes}: {', '.join(map(title, group))}")
            with _racers(group, case, errors) as racers:
                _race(racers, WORKS[case.model], rounds, times)
        for work in WORKS[case.model]:
            report.enter(case.name, work, figures(times, work, contenders))
        if errors:
            report.enter(case.name, "error", errors)
    print(*table(report.content["parts"][case.name], case.name), sep="\n", flush=True)


def title(contender: Contender) -> str:
    return f"{contender.name}, {contender.dtype}"


def groups(contenders: Iterable[Contender], most: int) -> list[list[Contender]]:
    """Contenders in their order, so many together at most, and at full size no more than fit into memory."""
    found: list[list[Contender]] = []
    for each in contenders:
        fits = found and (most > 2 or sum(other.gib for other in found[-1]) + each.gib <= MEMORY_GIB)
        if fits and len(found[-1]) < most:
            found[-1].append(each)
        else:
            found.append([each])
    return found


def _race(
    racers: Mapping[Racer, Sequence[str]], works: Mapping[str, tuple[int, int]], rounds: int, times: Times
) -> None:
    for _ in range(rounds):
        for work, bounds in works.items():
            for racer, its_works in racers.items():
                if work in its_works:
                    racer.ask(work, *bounds)
                    times[work, title(racer.contender)] += racer.answer()
                    time.sleep(PAUSE_S)


@contextmanager
def _racers(
    contenders: Sequence[Contender], case: Case, errors: dict[str, str], **how: Any
) -> Iterator[Mapping[Racer, Sequence[str]]]:
    """The processes of contenders, with the names of their works; what keeps one from starting is entered."""
    started: dict[Racer, Sequence[str]] = {}
    with ExitStack() as stack:
        for n in range(0, len(contenders), STARTING):
            new = [Racer(each, case, **how) for each in contenders[n : n + STARTING]]
            for racer in new:
                stack.callback(racer.close)
            for racer in new:
                try:
                    started[racer] = racer.answer()
                    _say(f"{title(racer.contender)}: ready")
                except RacerError as error:
                    errors[title(racer.contender)] = str(error)
        yield started


def figures(times: Times, work: str, contenders: Iterable[Contender]) -> dict[str, dict[str, float]]:
    """The spread of each contender's times of a work, and the ratio of its median to the baseline's."""
    found = {}
    for each in contenders:
        if own := times.get((work, title(each))):
            base = times.get(("step" if work == "networks" else work, f"{BASELINE}, {each.dtype}"))
            ratio = {"ratio": round(float(np.median(own) / np.median(base)), 3)} if base else {}
            found[title(each)] = spread(own) | ratio
    return found


def spread(seconds: Sequence[float]) -> dict[str, float]:
    quantiles = {"median": 0.5, "min": 0.0, "lower quartile": 0.25, "upper quartile": 0.75, "max": 1.0}
    found = {name: round(1e3 * float(np.quantile(seconds, q)), 3) for name, q in quantiles.items()}
    return found | {"n": len(seconds)}


def table(rows: Mapping[str, Any], name: str) -> Iterator[str]:
    """Lines: a contender's median, quartiles, least and ratio, by work."""
    yield f"\n{name}{'':<42}{'median':>10}  {'quartiles':^21}{'min':>10}  ratio"
    for work, contenders in rows.items():
        if work == "error":
            yield from (f"  failed: {contender}: {error}" for contender, error in contenders.items())
            continue
        yield work
        for contender, each in contenders.items():
            between = f"{each['lower quartile']:.2f} .. {each['upper quartile']:.2f}"
            line = f"  {contender:<46}{each['median']:>10.2f}  {between:^21}{each['min']:>10.2f}"
            yield f"{line}  {each['ratio']:.3f}" if "ratio" in each else f"{line}  max {each['max']:.2f}"


# ---------------------------------------------------------------------------------------------------------------- load


def load(report: Report, case: Case, rounds: int) -> None:
    """Time steps of one worker, of two at the same time, and beside a busy process, by runtime."""
    dtype = "bfloat16" if computes_in_bfloat16() else "float32"
    by_torch, by_openvino = (_contender(name, dtype) for name in (TORCH, OPENVINO))
    variants = {
        "torch, OpenMP's threads spin by default": (by_torch, True),
        "torch": (by_torch, False),
        "OpenVINO": (by_openvino, False),
    }
    times: Times = defaultdict(list)
    with ExitStack() as stack:
        whole, shared = (
            {name: _team(stack, case, *how, threads) for name, how in variants.items()} for threads in _THREADS
        )
        for n in range(rounds):
            _say(f"{case.name} under load, round {n + 1} of {rounds}")
            for name in variants:
                _load_one(name, whole[name], shared[name], times)
    part, works = f"{case.name} under load, {dtype}", dict.fromkeys(work for work, _ in times)
    for work in works:
        report.enter(part, work, {name: _slowed(times[work, name], times["alone", name]) for name in variants})
    print(*table(report.content["parts"][part], part), sep="\n", flush=True)


def _team(stack: ExitStack, case: Case, contender: Contender, spins: bool, threads: int) -> list[Racer]:
    """Two workers that are ready."""
    _say(f"starting two of {title(contender)}, {threads} threads")
    team = [Racer(contender, case, threads=threads, spins=spins) for _ in range(2)]
    for racer in team:
        stack.callback(racer.close)
    for racer in team:
        racer.answer()
    return team


def _load_one(name: str, whole: Sequence[Racer], shared: Sequence[Racer], times: Times) -> None:
    """A round of one variant: `whole` workers have a thread for each core, `shared` ones divide the cores."""
    for work, racers in zip(_WORKERS, (whole[:1], shared, whole), strict=True):
        times[work, name] += _together(racers)
    for work, program in NEIGHBOURS.items():
        with _neighbour(program):
            times[work, name] += _together(whole[:1])


def _slowed(seconds: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    return spread(seconds) | {"ratio": round(float(np.median(seconds) / np.median(alone)), 3)}


def _contender(name: str, dtype: str) -> Contender:
    return next(each for each in CONTENDERS if (each.name, each.dtype) == (name, dtype))


def _together(racers: Sequence[Racer]) -> list[float]:
    for racer in racers:
        racer.ask("step", 3, LOAD_STEPS, LOAD_SECONDS)
    times = [each for racer in racers for each in racer.answer()]
    time.sleep(PAUSE_S)
    return times


@contextmanager
def _neighbour(program: str) -> Iterator[None]:
    """Another process that is busy."""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        time.sleep(2.5)  # until torch is imported
        try:
            yield
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------------------------- options


def _wanted(options: argparse.Namespace) -> list[Contender]:
    return [
        each
        for each in CONTENDERS
        if (options.compiled or "compiled" not in each.name)
        and (each.dtype == "float32" or computes_in_bfloat16())
        and options.only in title(each)
    ]


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.absolute()
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _say(what: str) -> None:
    print(f"{time.perf_counter() - _BEGAN:7.1f} s  {what}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model alone, in about two minutes")
    parser.add_argument("--load", action="store_true", help="steps under load instead, of the small model")
    parser.add_argument("--compiled", action="store_true", help="diffusers compiled by torch as well; needs g++")
    parser.add_argument("--cases", help=f"some of {','.join(CASES)}, or of another size; all by default")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--rounds", type=int, help="turns of each contender: 10, 1 in each pass at full size")
    parser.add_argument("--passes", type=int, default=3, help="at full size")
    parser.add_argument("--steps", type=int, help="of an image; 20 by default, 4 at full size")
    parser.add_argument("--folder", type=Path, help="keep converted files here for the next run; at full size 20 GB")
    parser.add_argument("--out", type=Path, default=Path("build/cpu.json"))
    options = parser.parse_args()
    short = options.quick or options.load
    options.cases = options.cases.split(",") if options.cases else CASES[:1] if short else CASES
    options.rounds = options.rounds or (5 if short else None)
    return options


if __name__ == "__main__":
    sys.exit(main())
