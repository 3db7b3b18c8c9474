"""Shared by the parts of the latency benchmark: the model and its settings, the clock, and the time that is left."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch

from app.settings import load
from tests.bench.contenders import FULL_SIZE, Case, write_full_size
from tests.bench.parts import flops
from tests.bench.parts.flops import Flops
from tests.bench.parts.stats import is_steady, milliseconds, summary
from tests.service.running import ROOT
from tests.workers.engine import demo
from tests.workers.engine.demo import Reference
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig, Weights
from workers.engine.contract import Task
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Model, Parts, assemble, dtype_of, read

# A name, and what measures it; it returns what JSON can hold, times in milliseconds unless the name says s.
Row: TypeAlias = tuple[str, Callable[[], Any]]
TEXT = demo.TEXT
_COMPILE_SECONDS = 1200.0
_WARM_SECONDS, _WARM_AT_MOST_SECONDS = 3.0, 20.0
_GIB = 2**30
_SIDES = {"cuda": (4096, 8192, 12288), "cpu": (512, 1024)}  # of matrices
_PRODUCTS = 10  # one after the other, so that launching them does not count


class SkippedError(Exception):
    """A figure cannot be had here; the message says why."""


class NoTimeError(Exception):
    """A figure takes longer than there is time; the next run with the same file may measure it."""


@dataclass(frozen=True)
class Bench:
    """What is measured: a model on a device, images of `side` x `side` pixels in `steps` steps.

    `model` is full (random weights), demo, or a folder as diffusers lays one out, with the ControlNet in `controlnet`.
    Each measurement is repeated `repeats` times, fewer where that takes longer than `patience` seconds. `deadline`, on
    the monotonic clock, is when all should be over. Weights and compilers' caches are kept in `folder`. `figures` are
    those measured so far, by part and row.
    """

    model: str
    device: str
    side: int
    steps: int
    repeats: int
    patience: float
    folder: Path
    deadline: float = float("inf")
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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
        """What is computed in: float16 on CUDA."""
        return dtype_of(self.config, self.device)

    @property
    def shipped(self) -> str:
        """The name of the configuration, in configs/."""
        return "demo" if self.model == "demo" else "sd15-canny"

    @cached_property
    def weights(self) -> Path:
        """The folder of the weights."""
        if self.model == "demo":
            return ROOT / "configs" / "demo"
        if self.model != "full":
            return Path(self.model).absolute()
        case = Case("full", self.side, self.steps, self.folder)
        write_full_size(case, self.device)
        self.tidy()
        return self.folder / FULL_SIZE

    @cached_property
    def config(self) -> EngineConfig:
        """As shipped, but for weights, size and steps; with one slot, only what one image needs is recorded."""
        shipped = load(ROOT / "configs" / f"{self.shipped}.yaml", {}).engine
        size = replace(shipped.size, short_side=self.side, long_side=max(self.side, shipped.size.long_side))
        model, controlnet = (Weights(path=str(path)) for path in (self.weights, self.weights / "controlnet"))
        sampler = replace(shipped.sampler, steps=self.steps)
        return replace(shipped, model=model, controlnet=controlnet, size=size, sampler=sampler, slots=1)

    @cached_property
    def slots(self) -> int:
        """As shipped."""
        return load(ROOT / "configs" / f"{self.shipped}.yaml", {}).engine.slots

    @cached_property
    def parts(self) -> Parts:
        """The weights. An engine lays them out as it likes, in place."""
        return self.fresh_parts()

    def fresh_parts(self) -> Parts:
        """The weights once more, as they are read."""
        return read(self.config, self.dtype, self.device)

    @cached_property
    def flops(self) -> Flops:
        """The work of one image, as the engine does it."""
        return flops.of_engine(self.config, self.parts, self.side)

    @cached_property
    def diffusers_flops(self) -> Flops:
        """The work of one image, as diffusers does it."""
        return flops.of_diffusers(self.config, self.parts, self.side)

    @cached_property
    def matrix_speeds(self) -> dict[int, float]:
        """Operations a second of the product of two square matrices, by their side."""
        return {side: self._matrix_speed(side) for side in _SIDES["cuda" if self.cuda else "cpu"]}

    @property
    def peak(self) -> float:
        """The best of them: what a share of the peak is a share of."""
        return max(self.matrix_speeds.values())

    def rated(self, times: dict[str, Any], done: int, asked: int | None = None) -> dict[str, Any]:
        """Times with the speed that their median means: for the work done, and for that which diffusers would do."""
        speed = 1e3 * done / times["median"]
        rates = {"TFLOP/s": round(speed / 1e12, 3), "share of peak": round(speed / self.peak, 4)}
        saved = (
            {"share of peak with the work saved": round(1e3 * asked / times["median"] / self.peak, 4)} if asked else {}
        )
        return times | rates | saved

    def rated_image(self, times: dict[str, Any], *, by_diffusers: bool = False) -> dict[str, Any]:
        """The same for an image."""
        ours, theirs = (each.image(self.steps) for each in (self.flops, self.diffusers_flops))
        return self.rated(times, theirs) if by_diffusers else self.rated(times, ours, theirs)

    @contextmanager
    def engine(self, parts: Parts | None = None, **changes: Any) -> Iterator["Subject"]:
        """An engine with some settings changed, warmed up and done with its compiling. Raises NoTimeError."""
        config = replace(self.config, **changes)
        began = time.monotonic()
        model = assemble(config, parts or self.parts, self.device)
        engine = DiffusionEngine(config, model)
        engine.warm_up()
        warm = time.monotonic() - began
        try:
            if not engine.wait_until_compiled(max(1.0, min(self.left, _COMPILE_SECONDS))):
                raise NoTimeError("the networks are still being compiled")
            subject = Subject(engine, model, warm, time.monotonic() - began - warm)
            self.run_until_steady(lambda: self.time(lambda: subject.make(self.task())))
            yield subject
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

    def run_until_steady(self, image: Callable[[], float]) -> None:
        """Make images until their times are steady: clocks rise under load for seconds. Not on a CPU."""
        began, seconds, at_most = time.monotonic(), list[float](), min(_WARM_AT_MOST_SECONDS, self.left)
        while self.cuda and (spent := time.monotonic() - began) < at_most:
            seconds.append(image())
            if spent >= _WARM_SECONDS and is_steady(seconds):
                return

    def repeat(self, work: Callable[[], float], repeats: int | None = None) -> list[float]:
        """The seconds that a work says it took, as often as there is patience."""
        began = time.monotonic()
        seconds = [work()]
        while len(seconds) < (repeats or self.repeats) and time.monotonic() - began < self.patience:
            seconds.append(work())
        return seconds

    def times(self, work: Callable[[], object]) -> dict[str, Any]:
        """The times of a work, the device waited for; its first apart, as that is warm-up."""
        first = self.time(work)
        return summary(self.repeat(lambda: self.time(work))) | {"first": milliseconds(first)}

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
            with suppress(RuntimeError):  # after an error of the device; other parts have processes of their own
                torch.cuda.empty_cache()

    def _matrix_speed(self, side: int) -> float:
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))

        def multiply() -> None:
            for _ in range(_PRODUCTS):
                torch.mm(a, b)

        return float(2e3 * side**3 * _PRODUCTS / self.times(multiply)["min"])

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
    compiling: float

    def started(self) -> Mapping[str, object]:
        """How it came to be what it is, for JSON."""
        condition = self.engine.status()
        return {
            "warm up, s": round(self.warm_up, 2),
            "then until all was compiled, s": round(self.compiling, 2),
            "graphs": dict(condition.graphs),
            "graphs, MiB": round(condition.graph_bytes / 2**20, 1),
            "attention": dict(condition.attention),
            "fallbacks": dict(condition.fallbacks),
        }

    def denoise(self) -> None:
        """Take steps until no image has any to take."""
        while self.engine.step():
            pass

    def start(self, slot: int, task: Task) -> None:
        """Prepare an image and let it in; its text is encoded while the rest is prepared, as in a worker."""
        self.engine.admit(slot, self.engine.prepare(task, lambda draft: self.engine.begin(slot, draft)))

    def make(self, task: Task) -> Pixels:
        """One image, alone."""
        self.start(0, task)
        self.denoise()
        return self.engine.collect(self.engine.finish(0))
