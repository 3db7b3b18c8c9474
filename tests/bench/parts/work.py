"""The peak performance of the device, the work of an image, and a profile of its kernels."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.profiler import profile

from tests.bench.parts.bench import Bench, Row, SkippedError, Subject
from tests.bench.parts.flops import Flops
from tests.bench.parts.stats import milliseconds
from workers.engine.engine import Prepared

_KERNELS = 40  # that are listed by name
# By their names; the first that fits. The rest are copies, fills and whatever else. Names of torch's compiler have all
# that a kernel computes in them, such as a convolution's bias, so what it begins with comes first. cuDNN's attention is
# an "fprop", as convolutions are, and cuBLAS splits products that it then reduces.
_KINDS = (
    ("group norms of our own", r"^(one_pass|statistics|normalise)"),  # workers/engine/kernels/group_norm_triton.py
    ("pointwise", r"^triton_(poi|for)"),
    ("reductions", r"^triton_(red|per)"),
    ("attentions", r"flash|fmha|attention|sdp"),
    ("convolutions", r"conv|fprop|implicit"),
    ("matrix products", r"gemm|(_|^|::)(add|b|baddb|scaled_)?mm|nvjet|cutlass|splitK|xmma"),
    ("reductions", r"reduce|norm|softmax"),
    ("pointwise", r"elementwise|silu|gelu"),
)


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
        prepared = subject.engine.prepare(bench.task())
        latents = torch.randn_like(prepared.noise[0])
        around = partial(_admitted, subject, prepared)
        yield "steps", partial(_profile, bench, subject.denoise, subject.engine.calls, around)
        yield "VAE", partial(_profile, bench, lambda: subject.engine.decode(latents))


def _tera(number: float) -> float:
    return round(number / 1e12, 3)


def _giga(flops: Flops, steps: int) -> dict[str, float]:
    return {name: round(each / 1e9, 2) for name, each in (asdict(flops) | {"image": flops.image(steps)}).items()}


@contextmanager
def _admitted(subject: Subject, prepared: Prepared) -> Iterator[None]:
    subject.engine.admit(0, prepared)
    subject.engine.synchronize()
    yield
    subject.engine.discard(0)


def _profile(
    bench: Bench,
    work: Callable[[], object],
    times: int = 1,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    with around():
        work()  # what happens only once
    with around(), profile() as profiler:
        work()
        bench.wait()
    return table(list(profiler.key_averages()), bench.cuda, times)


def table(events: list[Any], cuda: bool, times: int = 1) -> dict[str, Any]:
    """Kernels by their share of all kernels' time, in which streams that overlap add up; and how many by kind.

    `events` are the profiler's averages of so many `times` a work was done.
    """
    if cuda:  # operators' own rows, and ranges with names, would count their kernels once more
        events = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    spent = {id(event): (event.self_device_time_total if cuda else event.self_cpu_time_total) for event in events}
    if not (total := sum(spent.values())):
        raise SkippedError("the profiler saw no kernel")
    events = sorted(events, key=lambda event: -spent[id(event)])
    listed = [
        {"kernel": event.key, "ms": round(spent[id(event)] / 1e3, 3), "share": round(spent[id(event)] / total, 4)}
        | {"calls": event.count}
        for event in events[:_KERNELS]
    ]
    numbers, milliseconds_by_kind = Counter[str](), Counter[str]()
    for event in events:
        kind = next((kind for kind, name in _KINDS if re.search(name, event.key, re.IGNORECASE)), "others")
        numbers[kind] += event.count
        milliseconds_by_kind[kind] += spent[id(event)] / 1e3
    return {
        "all, ms": round(total / 1e3, 3),
        "not listed, ms": round(sum(spent[id(event)] for event in events[_KERNELS:]) / 1e3, 3),
        "kernels of one": {kind: round(n / times, 1) for kind, n in (numbers | {"all": numbers.total()}).items()},
        "ms of one": {kind: round(ms / times, 3) for kind, ms in milliseconds_by_kind.items()},
        "kernels": listed,
    }
