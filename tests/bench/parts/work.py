"""The peak performance of the device, and a profile of its time."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch.profiler import profile

from tests.bench.parts.bench import Bench, Row, Subject, milliseconds
from workers.engine.config import Speed

_KERNELS = 40  # that are listed by name


def peak(bench: Bench) -> Iterator[Row]:
    """The device's measured matrix product, and the work of an image: what shares of the peak are taken from."""
    yield "dtype", str(bench.dtype)
    yield "matrix product, TFLOP/s by side", {side: round(each / 1e12, 3) for side, each in bench.matrix_speeds.items()}
    yield "best, TFLOP/s", round(bench.peak / 1e12, 3)
    flops = bench.flops
    yield "GFLOP of a sample", {field.name: round(getattr(flops, field.name) / 1e9, 2) for field in fields(flops)}
    yield "GFLOP of an image", round(bench.image_flops / 1e9, 1)
    yield "an image at this peak", milliseconds(bench.image_flops / bench.peak)


def kernels(bench: Bench) -> Iterator[Row]:
    """Where the time of the steps and of the VAE goes, kernel by kernel (on a CPU: operator by operator)."""
    for name, speed in (("graphs", Speed(compile=False)), ("compiled", Speed(compile=True))):
        if name == "compiled" and (bench.quick or not bench.cuda):
            continue
        with bench.engine(speed=speed) as subject:
            yield f"steps, {name}", _profile(bench, lambda: _all_steps(bench, subject))
            latents = torch.randn_like(subject.engine.prepare(bench.task()).noise[0])
            yield f"VAE, {name}", _profile(bench, lambda: subject.engine.decode(latents))  # noqa: B023


def _all_steps(bench: Bench, subject: Subject) -> None:
    subject.engine.admit(0, subject.engine.prepare(bench.task()))
    subject.denoise()
    subject.engine.discard(0)


def _profile(bench: Bench, work: Callable[[], object]) -> dict[str, Any]:
    work()  # what happens only once
    with profile() as profiler:
        work()
        bench.wait()
    return table(list(profiler.key_averages()), bench.cuda)


def table(events: list[Any], cuda: bool) -> dict[str, Any]:
    """Kernels by their share of all kernels' time, in which streams that overlap add up.

    `events` are the profiler's averages.
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
    others = sum(spent[id(event)] for event in events[_KERNELS:])
    return {"all, ms": round(total / 1e3, 3), "not listed, ms": round(others / 1e3, 3), "kernels": listed}
