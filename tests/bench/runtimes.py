"""A step of the small model by torch and by ONNX Runtime, in turns on the same cores; and a preview.

python -m tests.bench.runtimes [--side 256] [--repeats 20] [--threads 1]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from tests.bench.environment import environment
from tests.service.running import ROOT, png
from workers.convert import read_engine, to_onnx
from workers.engine import build
from workers.engine.config import EngineConfig
from workers.engine.contract import Task
from workers.engine.engine import DiffusionEngine


def main() -> None:
    """Measure, and print JSON; times in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="pixels, of a square image")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(read_engine(ROOT / "configs" / "demo.yaml"), onnx=folder, dtype="float32")
        config = replace(config, size=replace(config.size, short_side=options.side))
        to_onnx(config)
        rows = dict(_rows(config, options.repeats))
    print(json.dumps({"threads": options.threads, **rows, "environment": environment()}, indent=2))


def _rows(config: EngineConfig, repeats: int) -> Iterator[tuple[str, dict[str, float]]]:
    engines = _engine(replace(config, runtime="torch")), _engine(replace(config, runtime="onnxruntime"))
    for images in (1, config.slots):
        by_torch, by_onnx = _in_turns([each.dummy_run(images) for each in engines], repeats)
        yield f"step of {images}", _row(by_torch, by_onnx)
    for each in engines:
        each.admit(0, each.prepare(Task(png(config.size.short_side, config.size.short_side), "a square", 1)))
        each.step()
    yield "preview", _row(*_in_turns([partial(each.preview, 0) for each in engines], repeats))


def _row(by_torch: float, by_onnx: float) -> dict[str, float]:
    values = {"torch": by_torch, "ONNX Runtime": by_onnx, "ONNX Runtime / torch": by_onnx / by_torch}
    return {name: round(value, 3) for name, value in values.items()}


def _engine(config: EngineConfig) -> DiffusionEngine:
    engine = build(config, "cpu")
    assert isinstance(engine, DiffusionEngine)
    engine.warm_up()
    return engine


def _in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each, in milliseconds; in turns, as a busy machine slows all of them."""
    rounds = [[_time(work) for work in works] for _ in range(repeats)]
    return [1e3 * statistics.median(times) for times in zip(*rounds, strict=True)]


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
