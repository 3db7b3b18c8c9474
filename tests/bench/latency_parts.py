"""The parts of the latency benchmark. Each takes a `Bench` and returns what it measured; times in milliseconds."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.settings import load
from tests.service.running import ROOT
from tests.workers.engine import full_size
from tests.workers.engine.demo import Reference, picture, psnr
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig, Sampler, Speed
from workers.engine.contract import Task
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Parts, assemble, dtype_of, read

SETTLE_SECONDS = 900.0
TEXT = "a red circle on a white background"
VARIANTS: Mapping[str, Speed] = {
    "kernels launched one by one": Speed(graphs=False, compile=False, beside=False),
    "graphs": Speed(compile=False, beside=False),
    "graphs, two streams": Speed(compile=False),
    "graphs, two streams, compiled": Speed(compile=True),
}
CONFIGS = {"full": "sd15-canny", "demo": "demo"}


@dataclass(frozen=True)
class Bench:
    """What is measured: a model ("full" or "demo") on a device, pictures of `side` pixels in `steps` steps."""

    model: str
    device: str
    side: int
    steps: int
    repeats: int

    @cached_property
    def config(self) -> EngineConfig:
        """As shipped, but for the size and the steps."""
        shipped = load(ROOT / "configs" / f"{CONFIGS[self.model]}.yaml", {}).engine
        size = replace(shipped.size, short_side=self.side, long_side=max(self.side, shipped.size.long_side))
        return replace(shipped, size=size, sampler=replace(shipped.sampler, steps=self.steps), slots=8)

    @cached_property
    def parts(self) -> Parts:
        """The weights."""
        return self.fresh_parts()

    def fresh_parts(self) -> Parts:
        """The weights as they are read, nothing packed."""
        dtype = dtype_of(self.config, self.device)
        return read(self.config, dtype) if self.model == "demo" else full_size.random_parts(self.device, dtype)

    def engine(self, **changes: Any) -> DiffusionEngine:
        """An engine with some settings changed, warm and with all that it compiles compiled."""
        config = replace(self.config, **changes)
        engine = DiffusionEngine(config, assemble(config, self.parts, self.device))
        engine.warm_up()
        if not engine.settle(SETTLE_SECONDS):
            raise TimeoutError(f"not compiled after {SETTLE_SECONDS:.0f} s")
        return engine

    def task(self, text: str = TEXT) -> Task:
        """The picture to make."""
        return Task(picture(self.side, self.side), text, 1)

    def times(self, work: Callable[[], object], warm_ups: int = 1) -> dict[str, float]:
        """Median and spread of a work, the device waited for."""
        for _ in range(warm_ups):
            work()
        return summary([self._once(work) for _ in range(self.repeats)])

    def _once(self, work: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the device."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and most, in milliseconds."""
    return {
        name: round(1e3 * value, 3)
        for name, value in (("median", statistics.median(seconds)), ("min", min(seconds)), ("max", max(seconds)))
    }


def made(engine: DiffusionEngine, task: Task) -> Pixels:
    """One picture, alone."""
    engine.admit(0, engine.prepare(task))
    while engine.step():
        pass
    return engine.collect(engine.finish(0))


def peak(bench: Bench) -> dict[str, Any]:
    """The matrix product's speed: what a share of the peak is a share of."""
    dtype = dtype_of(bench.config, bench.device)
    best = {}
    for n in (4096, 8192, 12288) if torch.device(bench.device).type == "cuda" else (1024,):
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        best[n] = round(2e-9 * n**3 / bench.times(lambda a=a, b=b: a @ b, warm_ups=3)["min"], 2)  # type: ignore[misc]
    return {"TFLOP/s by size": best, "TFLOP/s": max(best.values()), "dtype": str(dtype)}


def engine(bench: Bench) -> dict[str, Any]:
    """A picture by stages, for each thing that makes it fast; on a CPU only the first means something."""
    variants = VARIANTS if torch.device(bench.device).type == "cuda" else dict(list(VARIANTS.items())[:1])
    return {name: _stages(bench, speed) for name, speed in variants.items()}


def _stages(bench: Bench, speed: Speed) -> dict[str, Any]:
    began = time.monotonic()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    made_by = bench.engine(speed=speed)
    warm = time.monotonic() - began
    prepared = made_by.prepare(bench.task())
    texts = iter(range(10**6))

    def admit(text: str) -> None:
        made_by.admit(0, made_by.prepare(bench.task(text)))
        made_by.discard(0)

    def steps() -> None:
        made_by.admit(0, prepared)
        while made_by.step():
            pass
        made_by.discard(0)

    pixels = made(made_by, bench.task())
    with FlopCounterMode(display=False) as counted:
        made(made_by, bench.task())
    total = bench.times(lambda: made_by.encode(made(made_by, bench.task())))
    return {
        "warm up, s": round(warm, 1),
        "prepare": bench.times(lambda: made_by.prepare(bench.task())),
        "prepare and admit, known text": bench.times(lambda: admit(TEXT)),
        "prepare and admit, new text": bench.times(lambda: admit(f"picture {next(texts)}")),
        "all steps": (all_steps := bench.times(steps)),
        "per step": round(all_steps["median"] / made_by.calls, 3),
        "VAE": bench.times(lambda: made_by.decode(prepared.noise[0])),
        "encode": bench.times(lambda: made_by.encode(pixels)),
        "total, in process": total,
        # Of kernels that torch launches itself: with graphs it sees none, and the first variant's figure holds for all.
        "TFLOP": round(counted.get_total_flops() / 1e12, 4),
        "memory peak, GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        "condition": str(made_by.condition()),
    }


def agreement(bench: Bench) -> dict[str, Any]:
    """The engine against diffusers in the same precision, and both against diffusers in float32."""
    made_by = bench.engine(speed=Speed(compile=False))
    prepared = made_by.prepare(bench.task())
    ours, theirs = made(made_by, bench.task()), _reference(bench, bench.parts).pixels(prepared)
    exact = _reference(bench, _in_float32(bench.parts)).pixels(prepared)
    return {
        "PSNR against diffusers, dB": psnr(ours, theirs),
        "PSNR of the engine against float32, dB": psnr(ours, exact),
        "PSNR of diffusers against float32, dB": psnr(theirs, exact),
        "standard deviation of the picture": float(ours.std()),
    }


def _reference(bench: Bench, parts: Parts) -> Reference:
    return Reference(bench.config, parts)


def _in_float32(parts: Parts) -> Parts:
    names = ("unet", "controlnet", "vae", "text_encoder")
    return replace(parts, **{name: copy.deepcopy(getattr(parts, name)).float() for name in names})


def diffusers_eager(bench: Bench) -> dict[str, Any]:
    """The pipeline of diffusers as it is, channels-last."""
    prepared = bench.engine(speed=Speed(compile=False)).prepare(bench.task())
    return {"total": bench.times(lambda: _reference(bench, bench.parts).pixels(prepared, TEXT))}


def diffusers_compiled(bench: Bench) -> dict[str, Any]:
    """The same with its networks compiled as its documentation advises."""
    prepared = bench.engine(speed=Speed(compile=False)).prepare(bench.task())
    parts = bench.fresh_parts()
    for part in (parts.unet, parts.controlnet, parts.vae):
        part.to(memory_format=torch.channels_last)
    began = time.monotonic()
    for part in (parts.unet, parts.controlnet):
        part.compile(mode="max-autotune", fullgraph=True)
    parts.vae.decoder.compile(mode="max-autotune", fullgraph=True)
    reference = _reference(bench, parts)
    reference.pixels(prepared, TEXT)
    warm = time.monotonic() - began
    return {"warm up, s": round(warm, 1), "total": bench.times(lambda: reference.pixels(prepared, TEXT))}


def batches(bench: Bench) -> dict[str, Any]:
    """Several pictures from their first step to their last, together."""
    made_by = bench.engine(speed=Speed(compile=False))
    prepared = made_by.prepare(bench.task())

    def together(n: int) -> None:
        for slot in range(n):
            made_by.admit(slot, prepared)
        while made_by.step():
            pass
        for decoding in [made_by.finish(slot) for slot in range(n)]:
            made_by.collect(decoding)

    result: dict[str, Any] = {}
    for n in (1, 2, 4, 8):
        times = bench.times(lambda n=n: together(n))  # type: ignore[misc]
        result[str(n)] = times | {"images/s": round(1e3 * n / times["median"], 3)}
    return result


def joining(bench: Bench) -> dict[str, Any]:
    """What it costs a running picture that another joins it: steps before, the step of the join, steps after."""
    made_by = bench.engine(speed=Speed(compile=False))
    first, second = (made_by.prepare(bench.task(text)) for text in (TEXT, "another"))
    alone, join, both = list[float](), list[float](), list[float]()

    def step(into: list[float], work: Callable[[], object] = lambda: None) -> None:
        bench.wait()
        began = time.perf_counter()
        work()
        made_by.step()
        bench.wait()
        into.append(time.perf_counter() - began)

    for _ in range(bench.repeats):
        made_by.admit(0, first)
        step(alone)
        step(join, lambda: made_by.admit(1, second))
        step(both)
        made_by.discard(0)
        made_by.discard(1)
    return {"step alone": summary(alone), "step of the join": summary(join), "step of both": summary(both)}


def lcm(bench: Bench) -> dict[str, Any]:
    """Four steps without guidance; fused, a LoRA costs no time, so none is."""
    made_by = bench.engine(
        sampler=Sampler(name="LCMScheduler", steps=4), guidance_scale=1.0, speed=Speed(compile=False)
    )
    return {"total, in process": bench.times(lambda: made_by.encode(made(made_by, bench.task())))}


def profile(bench: Bench) -> dict[str, Any]:
    """Where the time of a picture goes, kernel by kernel."""
    made_by = bench.engine(speed=Speed(compile=False))
    with torch.profiler.profile() as profiler:
        made(made_by, bench.task())
        bench.wait()
    cuda = torch.device(bench.device).type == "cuda"
    rows = profiler.key_averages()

    def self_time(row: Any) -> float:
        return float(row.self_device_time_total if cuda else row.self_cpu_time_total)

    total = sum(map(self_time, rows))
    return {
        row.key[:120]: {"ms": round(self_time(row) / 1e3, 3), "share": round(self_time(row) / total, 4), "n": row.count}
        for row in sorted(rows, key=self_time, reverse=True)[:40]
    }


PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "peak": peak,
    "engine": engine,
    "agreement": agreement,
    "diffusers eager": diffusers_eager,
    "diffusers compiled": diffusers_compiled,
    "batches": batches,
    "joining": joining,
    "lcm": lcm,
    "profile": profile,
}
