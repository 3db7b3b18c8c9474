"""The peak performance of the device, the work of an image, and a profile of its kernels."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.profiler import profile

from tests.bench.parts.bench import Bench, Row, Subject
from tests.bench.parts.flops import Flops
from tests.bench.parts.stats import milliseconds

_KERNELS = 40  # that are listed by name
# By their names; the first that fits. The rest are copies, fills and whatever else.
_KINDS = {
    "group norms of our own": r"^(one_pass|statistics|normalise)",  # workers/engine/kernels/group_norm_triton.py
    "convolutions": r"conv|fprop|implicit|xmma",
    "attentions": r"flash|fmha|attention|sdp",
    "matrix products": r"gemm|_mm|nvjet|cutlass|splitK|addmm",
    "reductions": r"triton_(red|per)|reduce|norm|softmax",
    "pointwise": r"triton_poi|elementwise|silu|gelu",
}


def peak(bench: Bench) -> Iterator[Row]:
    """The device's measured matrix product, and the work of an image: what shares of the peak are taken from."""
    yield "dtype", lambda: str(bench.dtype)
    yield "matrix product, TFLOP/s by side", lambda: {side: _tera(each) for side, each in bench.matrix_speeds.items()}
    yield "best, TFLOP/s", lambda: _tera(bench.peak)
    yield "GFLOP of an image, done", lambda: _giga(bench.flops, bench.steps)
    yield "GFLOP of an image, as diffusers does it", lambda: _giga(bench.diffusers_flops, bench.steps)
    yield "an image at this peak, ms", lambda: milliseconds(bench.flops.image(bench.steps) / bench.peak)


def kernels(bench: Bench) -> Iterator[Row]:
    """Where the time of the steps and of the VAE goes, kernel by kernel (on a CPU: operator by operator)."""
    with bench.engine() as subject:
        latents = torch.randn_like(subject.engine.prepare(bench.task()).noise[0])
        yield "steps", partial(_profile, bench, lambda: _all_steps(bench, subject), subject.engine.calls)
        yield "VAE", partial(_profile, bench, lambda: subject.engine.decode(latents))


def _tera(number: float) -> float:
    return round(number / 1e12, 3)


def _giga(flops: Flops, steps: int) -> dict[str, float]:
    return {name: round(each / 1e9, 2) for name, each in (asdict(flops) | {"image": flops.image(steps)}).items()}


def _all_steps(bench: Bench, subject: Subject) -> None:
    subject.engine.admit(0, subject.engine.prepare(bench.task()))
    subject.denoise()
    subject.engine.discard(0)


def _profile(bench: Bench, work: Callable[[], object], times: int = 1) -> dict[str, Any]:
    work()  # what happens only once
    with profile() as profiler:
        work()
        bench.wait()
    return table(list(profiler.key_averages()), bench.cuda, times)


def table(events: list[Any], cuda: bool, times: int = 1) -> dict[str, Any]:
    """Kernels by their share of all kernels' time, in which streams that overlap add up; and how many by kind.

    `events` are the profiler's averages of so many `times` a work was done.
    """
    if cuda:  # operators' own rows would count their kernels once more
        events = [event for event in events if event.device_type.name == "CUDA"]
    spent = {id(event): (event.self_device_time_total if cuda else event.self_cpu_time_total) for event in events}
    total = sum(spent.values())
    events = sorted(events, key=lambda event: -spent[id(event)])
    listed = [
        {"kernel": event.key, "ms": round(spent[id(event)] / 1e3, 3), "share": round(spent[id(event)] / total, 4)}
        | {"calls": event.count}
        for event in events[:_KERNELS]
    ]
    numbers, milliseconds_by_kind = Counter[str](), Counter[str]()
    for event in events:
        kind = next((kind for kind, name in _KINDS.items() if re.search(name, event.key, re.IGNORECASE)), "others")
        numbers[kind] += event.count
        milliseconds_by_kind[kind] += spent[id(event)] / 1e3
    return {
        "all, ms": round(total / 1e3, 3),
        "not listed, ms": round(sum(spent[id(event)] for event in events[_KERNELS:]) / 1e3, 3),
        "kernels of one": {kind: round(n / times, 1) for kind, n in (numbers | {"all": numbers.total()}).items()},
        "ms of one": {kind: round(ms / times, 3) for kind, ms in milliseconds_by_kind.items()},
        "kernels": listed,
    }
