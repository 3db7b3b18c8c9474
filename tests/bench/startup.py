"""From the start of the process to its port, to a warm model and to the first image, through HTTP, by phases.

    python -m tests.bench.startup [--config demo] [--devices 0] [--runs 5] [--out FILE]

Seconds of the clock, and of the processor up to readiness, which other work on the machine changes less. Where time
goes is what the processes say of themselves in their log. Files are read from memory, but perhaps in the first run.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from tests.bench.environment import environment
from tests.service.memory import cpu_seconds, resident_bytes
from tests.service.running import Service, until

# Lines of the log that tell when something was so, and those that tell how many seconds something took.
MOMENTS = {
    "configured": re.compile(r" contour: Serving "),
    "bound": re.compile(r" Listening on http"),
    "started": re.compile(r" Starting worker "),
    "ready": re.compile(r" Worker \S+ is ready "),
}
SPANS = {
    "worker: torch": re.compile(r" Imported torch in ([\d.]+) s"),
    "worker: diffusers and transformers": re.compile(r" Imported diffusers and transformers in ([\d.]+) s"),
    "worker: weights": re.compile(r" Read the weights in ([\d.]+) s"),
    "worker: model assembled": re.compile(r" Assembled the model in ([\d.]+) s"),
    "worker: buffers and graphs": re.compile(r" Made buffers and recorded graphs in ([\d.]+) s"),
    "worker: costs measured": re.compile(r" Measured costs in ([\d.]+) s"),
}
PATIENCE_S = 900.0  # for a worker to be ready: a full-size model on a CPU takes minutes

Figures: TypeAlias = dict[str, float]


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a file in configs/, without .yaml")
    parser.add_argument("--devices", default="", help="CUDA_VISIBLE_DEVICES: one device; by default none, but the CPU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    runs = [start(options.config, options.devices) for _ in _told(options.runs)]
    parts = {part: summary([run[part] for run in runs]) for part in runs[0]}
    text = json.dumps({"config": options.config, "runs": options.runs, **parts, "environment": environment()}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _told(runs: int) -> Iterator[int]:
    for run in range(1, runs + 1):
        print(f"start {run} of {runs}", file=sys.stderr)
        yield run


def start(config: str, devices: str) -> dict[str, Figures]:
    """Start the service, have one image made, and end it: figures by part."""
    born, began = time.time(), time.monotonic()
    with Service(config, devices) as service:
        bound = time.monotonic() - began
        until(lambda: service.client.get("/readyz").status_code == 200, PATIENCE_S)
        ready = time.monotonic() - began
        (worker,) = service.readiness()["workers"]
        processes = {"front end": service.process.pid, "worker": worker["process"]}
        processor = {name: cpu_seconds(process) for name, process in processes.items()}
        memory = {name: resident_bytes(process) / 2**20 for name, process in processes.items()}
        assert service.generate().status_code == 200
        first = time.monotonic() - began
        return {
            "seconds to": {"port": bound, "ready": ready, "first image": first},
            "seconds of each phase": phases(service.log, born) | {"first image": first - ready},
            "seconds of the processor until ready": processor,
            "MiB in memory when ready": memory,
        }


def phases(log: Sequence[str], born: float) -> Figures:
    """What a log says of a start at `born` (seconds, time.time): the seconds of each phase, by name."""
    at = {name: _time(_find(log, pattern)) for name, pattern in MOMENTS.items()}
    spans = {name: float(_find(log, pattern).group(1)) for name, pattern in SPANS.items()}
    return {
        "front end: interpreter, imports, settings": at["configured"] - born,
        "front end: from there to the port": at["bound"] - at["configured"],
        "front end: from there to the worker's process": at["started"] - at["configured"],
        "worker: interpreter, and what is no other phase": at["ready"] - at["started"] - sum(spans.values()),
        **spans,
    }


def _find(log: Sequence[str], pattern: re.Pattern[str]) -> re.Match[str]:
    return next(found for line in log if (found := pattern.search(line)))


def _time(found: re.Match[str]) -> float:
    """Seconds, as time.time has them, of the line that something was found in."""
    return datetime.strptime(found.string[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def summary(runs: Sequence[Figures]) -> Mapping[str, object]:
    """Median, least and most of each figure."""
    return {name: _spread([run[name] for run in runs]) for name in runs[0]}


def _spread(values: Sequence[float]) -> Figures:
    return {name: round(of(values), 2) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
