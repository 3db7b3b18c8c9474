"""How long a picture takes, stage by stage, beside diffusers on the same device: `make bench-gpu`.

python -m tests.bench.latency [--model full|demo] [--quick] [--parts engine,batches,...] [--out FILE]

Full size is Stable Diffusion 1.5 with a ControlNet and random weights: its speed does not depend on them. Every part is
written to the file as soon as it is done, so a run that is cut short leaves what it has.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.environment import environment
from tests.bench.latency_http import http
from tests.bench.latency_parts import PARTS as IN_PROCESS
from tests.bench.latency_parts import Bench

PARTS = {"peak": IN_PROCESS["peak"], "http": http, **IN_PROCESS}

QUICK_SECONDS = 330.0  # after which no other part is begun
QUICK_LEAVES_OUT = ("diffusers compiled",)  # minutes of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write JSON as they come, print a table; 1 if any failed."""
    options = _options(arguments)
    bench = Bench(options.model, options.device, options.side, options.steps, options.repeats)
    result: dict[str, Any] = {"environment": environment(), "asked": {k: str(v) for k, v in vars(options).items()}}
    began = time.monotonic()
    for name in _chosen(options):
        if options.quick and time.monotonic() - began > QUICK_SECONDS:
            result[name] = {"skipped": "out of time"}
        else:
            result[name] = _guarded(PARTS[name], bench)
        _write(options.out, result)
        print(name, json.dumps(result[name], indent=2), flush=True)
    print("\n".join(_table(result)))
    return int(any("error" in result[name] for name in _chosen(options)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["full", "demo"], default="full" if torch.cuda.is_available() else "demo")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", type=int, help="of the picture in pixels; 512, or the small model's 256")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, help="of each measurement; 10, with --quick 3")
    parser.add_argument("--parts", help=f"separated by commas; all are {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help=f"begin no part after {QUICK_SECONDS:.0f} s")
    parser.add_argument("--out", type=Path, default=Path("build/latency.json"))
    options = parser.parse_args(arguments)
    options.side = options.side or {"full": 512, "demo": 256}[options.model]
    options.repeats = options.repeats or (3 if options.quick else 10)
    unknown = set((options.parts or "").split(",")) - {"", *PARTS}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _chosen(options: argparse.Namespace) -> list[str]:
    if options.parts:
        return [str(name) for name in options.parts.split(",")]
    return [name for name in PARTS if not (options.quick and name in QUICK_LEAVES_OUT)]


def _guarded(part: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """What a part measured, or why it could not, so that the next can be tried."""
    began = time.monotonic()
    try:
        result = part(bench)
    except Exception as error:  # noqa: BLE001 - told in the result
        result = {"error": f"{type(error).__name__}: {error}"}
    return result | {"part took, s": round(time.monotonic() - began, 1)}


def _table(result: dict[str, Any]) -> list[str]:
    """The totals, and which share of the measured peak they come to."""
    totals = {name: row["total, in process"] for name, row in result.get("engine", {}).items() if isinstance(row, dict)}
    totals |= {
        name: result[name]["total"] for name in result if name.startswith("diffusers") and "total" in result[name]
    }
    first = next((row for row in result.get("engine", {}).values() if isinstance(row, dict)), {})
    rows = [f"{'':40}{'median, ms':>12}{'min':>10}{'max':>10}{'of peak':>10}"]
    for name, total in totals.items():
        work, speed = first.get("TFLOP"), result.get("peak", {}).get("TFLOP/s")
        share = f"{1e3 * work / total['median'] / speed:10.1%}" if work and speed else ""
        rows.append(f"{name:40}{total['median']:12.1f}{total['min']:10.1f}{total['max']:10.1f}{share}")
    return rows


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=2) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
