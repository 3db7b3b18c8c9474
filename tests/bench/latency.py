"""How long an image takes on a GPU, as shipped and stage by stage, beside others: `make bench-gpu`.

    python -m tests.bench.latency [--quick] [--parts http,stages] [--model full|demo|DIR] [--out FILE]

The default is Stable Diffusion 1.5 with ControlNet canny and random weights: nothing is downloaded, and its speed does
not depend on them. Every figure is in the file as soon as it was measured. A run with the same file goes on where the
last one stopped, if code, machine and model are the same; else it starts anew and keeps the old file beside it. Parts
that are measured otherwise by now are measured anew. Weights and compilers' caches stay in build/latency for the next
run. Times are in milliseconds unless a name says s; a median stands before its 95% confidence interval. A figure during
which the GPU reduced its clocks says `throttled`.
"""

import argparse
import hashlib
import inspect
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch

from tests.bench.environment import environment
from tests.bench.parts import PARTS, Part
from tests.bench.parts.bench import Bench, NoTimeError, SkippedError
from tests.bench.parts.gauge import Gauge
from tests.bench.report import COMPLETE, Report, failure, lines
from tests.service.running import ROOT
from workers.folders import COMPILER_CACHES

QUICK_SECONDS = 530.0  # nine and a half minutes with the imports before and the clean-up after
GRACE_SECONDS = 10.0  # after which a part that does not look at the clock is broken off
SIDES = {"demo": 256}  # pixels; 512 otherwise
_SHARED = (
    *(f"bench/parts/{name}.py" for name in ("bench", "flops", "gauge", "stats")),
    "bench/openloop.py",
    *(f"workers/engine/{name}.py" for name in ("demo", "full_size")),
)


class CutOffError(BaseException):
    """The run is over: its time is, or it was told to end. Not an Exception: no part may take it for its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one failed, 2 if the run was told to end."""
    options = _options(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    found = environment()
    head = {"unit": "milliseconds", "environment": found}
    methods = {name: _method(part) for name, part in PARTS.items()}
    report = Report(options.out, head, _identity(options, found), methods)
    bench = Bench(
        model=options.model,
        device=options.device,
        side=options.side,
        steps=options.steps,
        repeats=options.repeats,
        patience=options.patience,
        folder=options.folder,
        deadline=time.monotonic() + options.seconds,
        figures=report.content["parts"],
    )
    caches = {name: str(options.folder / "cache" / kind) for name, kind in COMPILER_CACHES.items()}
    with _alarms(options.seconds + GRACE_SECONDS) as check, patch.dict(os.environ, caches):
        code = run(report, {name: PARTS[name] for name in options.parts}, bench, Gauge.of(options.device), check)
    print(*lines(report.content), sep="\n", flush=True)
    return code


def run(
    report: Report,
    parts: Mapping[str, Part],
    bench: Bench,
    gauge: Gauge | None = None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run parts one after the other and enter what they measure; what stops one is entered too.

    `check` raises CutOffError if the run is over.
    """
    remaining = dict(parts)
    try:
        for name, part in parts.items():
            remaining.pop(name)
            if report.has(name, COMPLETE):
                continue
            if bench.left < part.seconds:
                report.enter(name, "skipped", f"out of time: {max(bench.left, 0.0):.0f} s were left")
            else:
                _run_one(report, name, part, bench, gauge, check)
    except CutOffError as reason:
        for name in remaining:
            report.enter(name, "skipped", str(reason))
        return 2 if bench.left > 0 else int(report.failed)
    return int(report.failed)


def _run_one(
    report: Report, name: str, part: Part, bench: Bench, gauge: Gauge | None, check: Callable[[], None]
) -> None:
    began = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        for row, measure in part.run(bench):
            check()
            if bench.left < 0:
                raise NoTimeError("out of time")
            if not report.has(name, row):
                report.enter(name, row, _measured(measure, gauge))
        report.enter(name, COMPLETE, round(time.monotonic() - began, 1))
    except CutOffError as reason:
        report.enter(name, "cut off", str(reason))
        raise
    except NoTimeError as reason:
        report.enter(name, "cut off", str(reason))
    except SkippedError as reason:
        report.enter(name, "skipped", str(reason))
    except Exception as error:  # noqa: BLE001 - whatever it is belongs into the report, and the next part is another's
        traceback.print_exc()
        report.fail(name, error)
    bench.tidy()


def _measured(measure: Callable[[], Any], gauge: Gauge | None) -> Any:
    """A row's value, with the state of the GPU meanwhile; or why there is none, as the next row may be had."""
    watching: AbstractContextManager[dict[str, Any]] = gauge.watch() if gauge else nullcontext({})
    try:
        with watching as state:
            value = measure()
    except SkippedError as reason:
        return {"skipped": str(reason)}
    except NoTimeError:
        raise
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return {"error": failure(error)}
    return value | state if isinstance(value, dict) else value


def _identity(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for figures to stand in one file: code, machine, libraries, model."""
    folders = (ROOT / folder for folder in ("app", "scheduler", "workers", "configs"))
    code = _digest(file for folder in folders for kind in ("*.py", "*.yaml") for file in folder.rglob(kind))
    asked = {name: str(getattr(options, name)) for name in ("model", "device", "side", "steps")}
    same = {name: value for name, value in found.items() if name not in ("commit", "gpu state")}
    return same | asked | {"code": code}


def _method(part: Part) -> str:
    """What decides how a part is measured: its own module, and what all parts share."""
    return _digest([Path(inspect.getfile(part.run)), *(ROOT / "tests" / name for name in _SHARED)])


def _digest(files: Iterable[Path]) -> str:
    code = hashlib.sha256()
    for file in sorted(files):
        code.update(file.read_bytes())
    return code.hexdigest()[:16]


@contextmanager
def _alarms(seconds: float) -> Iterator[Callable[[], None]]:
    """Break off with CutOffError when the seconds are over, or when a signal asks for it.

    Yields what raises it once more: Python drops an exception that a signal raises while an object is finalised.
    """
    reasons = list[str]()

    def check() -> None:
        if reasons:
            raise CutOffError(reasons[0])

    def cut_off(number: int, frame: FrameType | None) -> None:
        reasons.append("out of time" if number == signal.SIGALRM else signal.Signals(number).name)
        check()

    before = {number: signal.signal(number, cut_off) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    if seconds < float("inf"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield check
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="full" if cuda else "demo", help="full, demo, or a folder as of diffusers")
    parser.add_argument("--device", default="cuda:0" if cuda else "cpu")
    parser.add_argument("--side", type=int, help="of the image, in pixels: 512, or the small model's 256")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, help="of each measurement, where time allows: 40, with --quick 20")
    parser.add_argument("--patience", type=float, help="seconds for each measurement: 60, with --quick 15")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}, in the order wanted; all by default")
    parser.add_argument("--seconds", type=float, help="after which no more is measured")
    parser.add_argument("--quick", action="store_true", help=f"as far as {QUICK_SECONDS:.0f} s go, and fewer repeats")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "latency", help="for weights and caches")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "latency.json")
    options = parser.parse_args(arguments)
    options.folder = options.folder.absolute()
    options.side = options.side or SIDES.get(options.model, 512)
    options.repeats = options.repeats or (20 if options.quick else 40)
    options.patience = options.patience or (15.0 if options.quick else 60.0)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else float("inf"))
    options.parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.model not in ("full", "demo") and not (Path(options.model) / "unet").is_dir():
        parser.error(f"{options.model} is no folder with a unet, a controlnet and the rest of a model")
    if options.side % 64 or options.steps < 2:
        parser.error("--side must be a multiple of 64, and --steps at least 2")
    return options


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch's compiler may still be at work in a thread that would be waited for
