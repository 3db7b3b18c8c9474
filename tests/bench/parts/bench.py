"""Shared by the parts of the latency benchmark: the model and its settings, the clock, and the time that is left."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch

from app.settings import load
from tests.bench.parts.flops import Flops, count
from tests.service.running import ROOT
from tests.workers.engine import demo, full_size
from tests.workers.engine.demo import Reference
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig
from workers.engine.contract import Task
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Model, Parts, assemble, dtype_of, read

Row: TypeAlias = tuple[str, Any]  # a name, and what JSON can hold; times in milliseconds unless the name says s
TEXT = demo.TEXT
CONFIGS = {"full": "sd15-canny", "demo": "demo"}  # in configs/
_SETTLE_SECONDS = 1200.0
_GIB = 2**30
_SIDES = {"cuda": (4096, 8192, 12288), "cpu": (512, 1024)}  # of matrices
_PRODUCTS = 10  # one after the other, so that launching them does not count


@dataclass(frozen=True)
class Bench:
    """What is measured: a model on a device, images of `side` x `side` pixels in `steps` steps.

    Each measurement is repeated `repeats` times, fewer where that takes longer than `patience` seconds. `deadline`, on
    the monotonic clock, is when all should be over. `quick` leaves out what takes minutes.
    """

    model: Literal["full", "demo"]
    device: str
    side: int
    steps: int
    repeats: int
    patience: float
    deadline: float = float("inf")
    quick: bool = False

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float16 on CUDA, else float32."""
        return dtype_of(self.config, self.device)

    @cached_property
    def config(self) -> EngineConfig:
        """As shipped, but for size, steps and slots; with one slot, only what one image needs is recorded."""
        shipped = load(ROOT / "configs" / f"{CONFIGS[self.model]}.yaml", {}).engine
        size = replace(shipped.size, short_side=self.side, long_side=max(self.side, shipped.size.long_side))
        return replace(shipped, size=size, sampler=replace(shipped.sampler, steps=self.steps), slots=1)

    @cached_property
    def parts(self) -> Parts:
        """The weights. An engine lays them out as it likes, in place: none may outlive the part that built it."""
        return self.fresh_parts()

    def fresh_parts(self) -> Parts:
        """The weights once more, as they are read or drawn."""
        if self.model == "demo":
            return read(self.config, self.dtype)
        return full_size.random_parts(self.device, self.dtype)

    @cached_property
    def flops(self) -> Flops:
        """The work of one sample."""
        return count(self.parts, self.side)

    @property
    def image_flops(self) -> int:
        """The work of one image as configured."""
        return self.flops.image(2 if self.config.guidance_scale > 1 else 1, self.steps)

    @cached_property
    def matrix_speeds(self) -> dict[int, float]:
        """Operations a second of the product of two square matrices, by their side."""
        return {side: self._matrix_speed(side) for side in _SIDES["cuda" if self.cuda else "cpu"]}

    @property
    def peak(self) -> float:
        """The best of them: what a share of the peak is a share of."""
        return max(self.matrix_speeds.values())

    def rated(self, times: dict[str, float], flop: float) -> dict[str, float]:
        """Times with the speed and the share of the peak that their median means for so much work."""
        speed = 1e3 * flop / times["median"]
        return times | {"TFLOP/s": round(speed / 1e12, 3), "share of peak": round(speed / self.peak, 4)}

    @contextmanager
    def engine(self, parts: Parts | None = None, **changes: Any) -> Iterator["Subject"]:
        """An engine with some settings changed, warmed up and done with its compiling, as far as time allows."""
        config = replace(self.config, **changes)
        began = time.monotonic()
        model = assemble(config, parts or self.parts, self.device)
        engine = DiffusionEngine(config, model)
        engine.warm_up()
        warm = time.monotonic() - began
        settled = engine.wait_until_compiled(max(1.0, min(self.left, _SETTLE_SECONDS)))
        try:
            yield Subject(engine, model, warm, time.monotonic() - began - warm, settled)
        finally:
            del engine, model
            self.tidy()

    def reference(self, parts: Parts | None = None) -> Reference:
        """The diffusers pipeline with the same weights and settings."""
        parts = parts or self.parts
        for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
            part.to(self.device)
        return Reference(self.config, parts)

    def task(self, text: str = TEXT, seed: int = 1) -> Task:
        """An image to make."""
        return Task(demo.image(self.side, self.side), text, seed)

    def times(self, work: Callable[[], object], repeats: int | None = None) -> dict[str, float]:
        """Median, least and most of a work, the device waited for; its first time apart, as that is warm-up."""
        began = time.monotonic()
        first = self.time(work)
        seconds = [self.time(work)]
        while len(seconds) < (repeats or self.repeats) and time.monotonic() - began < self.patience:
            seconds.append(self.time(work))
        return summary(seconds) | {"first": milliseconds(first)}

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that a work takes, with nothing before it on the device."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def tidy(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def _matrix_speed(self, side: int) -> float:
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))

        def multiply() -> None:
            for _ in range(_PRODUCTS):
                torch.mm(a, b)

        return 2e3 * side**3 * _PRODUCTS / self.times(multiply)["min"]

    @contextmanager
    def memory(self, result: dict[str, Any]) -> Iterator[None]:
        """Enter what torch held on the GPU at most, and what it held before: in GiB, graphs among it."""
        if not self.cuda:
            yield
            return
        self.tidy()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        allocated, reserved = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        sizes = {"before": before, "allocated at most": allocated, "reserved at most": reserved}
        result["GPU memory, GiB"] = {name: round(size / _GIB, 2) for name, size in sizes.items()}


@dataclass(frozen=True, eq=False)
class Subject:
    """An engine under measurement, with the seconds that its warm-up and then its compiling took."""

    engine: DiffusionEngine
    model: Model
    warm_up: float
    settling: float
    settled: bool

    def started(self) -> Mapping[str, object]:
        """How it came to be what it is, for JSON."""
        condition = self.engine.status()
        return {
            "warm up, s": round(self.warm_up, 2),
            "then until all was compiled, s": round(self.settling, 2),
            "all was compiled": self.settled,
            "graphs": dict(condition.graphs),
            "graphs, MiB": round(condition.graph_bytes / 2**20, 1),
            "attention": dict(condition.attention),
            "fallbacks": dict(condition.fallbacks),
        }

    def denoise(self) -> None:
        """Take steps until no image has any to take."""
        while self.engine.step():
            pass

    def make(self, task: Task) -> Pixels:
        """One image, alone."""
        self.engine.admit(0, self.engine.prepare(task))
        self.denoise()
        return self.engine.collect(self.engine.finish(0))


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and most of so many times, in milliseconds."""
    values = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: milliseconds(value) for name, value in values.items()} | {"n": len(seconds)}


def milliseconds(seconds: float) -> float:
    """To the microsecond."""
    return round(1e3 * seconds, 3)
