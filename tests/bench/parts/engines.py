"""The engine in this process: an image by its stages, several together, and one that joins another."""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tests.bench.parts.bench import Bench, Row, Subject
from tests.bench.parts.flops import Flops, of_diffusers, of_engine
from tests.bench.parts.stats import milliseconds, summary
from workers.engine.config import Sampler
from workers.engine.execution import buckets

_PLAIN = {"compile": False, "beside": False, "attention": "sdpa"}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {  # of the shipped `speed`
    "as shipped": {},
    "graphs alone": _PLAIN,
    "kernels launched one by one": _PLAIN | {"graphs": False},
}
_BACK_TO_BACK = 4  # images


def stages(bench: Bench) -> Iterator[Row]:
    """An image by its stages: compiled as shipped, and with less. On a CPU there are no graphs to leave out."""
    for name, changes in _VARIANTS.items():
        if bench.cuda or name == "as shipped":
            yield name, partial(_stages, bench, {"speed": replace(bench.config.speed, **changes)})


def batches(bench: Bench) -> Iterator[Row]:
    """Several images together from their first step to their last, and one that another joins: compiled, as shipped."""
    with bench.engine(slots=bench.slots) as subject:
        yield "start", subject.started
        for n in buckets(bench.slots, exact=False):
            yield f"{n} together", partial(_batch, bench, subject, n)
        yield "joining", partial(_joining, bench, subject)


def lcm(bench: Bench) -> Iterator[Row]:
    """Four steps without guidance, as with an LCM-LoRA; fused into the weights, it costs nothing."""
    yield (
        "as shipped",
        partial(_stages, bench, {"sampler": Sampler(name="LCMScheduler", steps=4), "guidance_scale": 1.0}),
    )


def _stages(bench: Bench, changes: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with bench.memory(result), bench.engine(**changes) as subject:
        result["start"] = subject.started()
        times = _before_the_steps(bench, subject) | _steps_and_after(bench, subject) | _totals(bench, subject)
        config, calls = replace(bench.config, **changes), subject.engine.calls
    done, asked = (_work(count(config, bench.parts, bench.side), calls) for count in (of_engine, of_diffusers))
    rated = {name: bench.rated(times[name], done[name], asked[name]) for name in done}
    return result | times | rated


def _work(flops: Flops, calls: int) -> dict[str, int]:
    """Of those stages whose time is that of the networks."""
    whole = flops.image(calls)
    return {"text": flops.text, "step": flops.step, "VAE": flops.vae, "in all": whole, "in all, back to back": whole}


@torch.no_grad()
def _before_the_steps(bench: Bench, subject: Subject) -> dict[str, Any]:
    engine, tokens, prompts = subject.engine, subject.model.tokens, itertools.count()
    execution, edges = engine._execution, engine.prepare(bench.task()).edges
    hint = execution.spaces.of(engine._nominal).hint

    def text() -> None:
        execution.keys_values(tokens.positive(f"prompt {next(prompts)}").tokens)

    def admit() -> None:
        subject.start(0, bench.task(f"prompt {next(prompts)}"))
        engine.discard(0)

    return {
        "prepare": bench.times(lambda: engine.prepare(bench.task())),
        "hint": bench.times(lambda: hint(edges)),
        "text": bench.times(text),
        "prepare and admit": bench.times(admit),
    }


def _steps_and_after(bench: Bench, subject: Subject) -> dict[str, Any]:
    engine, calls = subject.engine, subject.engine.calls
    prepared = engine.prepare(bench.task())

    def denoise() -> None:
        engine.admit(0, prepared)
        engine.synchronize()
        began = time.perf_counter()
        subject.denoise()
        engine.synchronize()
        spans.append(time.perf_counter() - began)
        engine.discard(0)

    spans = list[float]()
    bench.times(denoise)
    engine.admit(0, prepared)
    waited = [bench.time(engine.step) for _ in range(calls)]
    latents = engine.latents(0)
    pixels = engine.collect(engine.finish(0))
    return {
        "step": summary([span / calls for span in spans[1:]]) | {"first": milliseconds(spans[0] / calls)},
        "step, each waited for": summary(waited),
        "VAE": bench.times(lambda: engine.decode(latents)),
        "encode": bench.times(lambda: engine.encode(pixels)),
    }


def _totals(bench: Bench, subject: Subject) -> dict[str, Any]:
    engine = subject.engine

    def back_to_back() -> None:
        decodings = []
        for _ in range(_BACK_TO_BACK):
            subject.start(0, bench.task())
            subject.denoise()
            decodings.append(engine.finish(0))  # which the next one does not wait for
        for decoding in decodings:
            engine.encode(engine.collect(decoding))

    seconds = bench.repeat(lambda: bench.time(back_to_back) / _BACK_TO_BACK)
    alone = bench.times(lambda: engine.encode(subject.make(bench.task())))
    return {"in all": alone, "in all, back to back": summary(seconds)}


def _batch(bench: Bench, subject: Subject, n: int) -> dict[str, Any]:
    """All on the device, from text and hint to pixels. A worker prepares and encodes images in threads beside that."""
    engine = subject.engine
    images = [engine.prepare(bench.task(seed=seed)) for seed in range(n)]

    def together() -> None:
        for slot, image in enumerate(images):
            engine.admit(slot, image)
        subject.denoise()
        for decoding in [engine.finish(slot) for slot in range(n)]:
            engine.collect(decoding)

    times = bench.times(together)
    return times | {"images/s": round(1e3 * n / times["median"], 3)}


def _joining(bench: Bench, subject: Subject) -> dict[str, Any]:
    """What it costs a running image that another joins it: in its steps, and in all when that happens at half."""
    engine = subject.engine
    first, second = (engine.prepare(bench.task(f"image {n}", n)) for n in range(2))

    def joins() -> None:
        engine.admit(1, second)
        engine.step()

    def image() -> None:
        subject.start(0, bench.task())
        for done in range(engine.calls):
            if done == engine.calls // 2:
                subject.start(1, bench.task(seed=2))
            engine.step()
        engine.encode(engine.collect(engine.finish(0)))
        engine.discard(1)

    steps: dict[str, list[float]] = {"step alone": [], "step that another joins": [], "step of both": []}
    for _ in range(bench.repeats):
        engine.admit(0, first)
        for name, work in zip(steps, (engine.step, joins, engine.step)[: engine.calls], strict=False):
            steps[name].append(bench.time(work))
        for slot in range(2):
            engine.discard(slot)
    joined = {"image that another joins": bench.times(image)}
    return {name: summary(seconds) for name, seconds in steps.items() if seconds} | joined
