"""The engine in this process: an image by its stages, several together, and one that joins another."""

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from tests.bench.parts.bench import TEXT, Bench, Row, Subject, milliseconds, summary
from tests.bench.parts.flops import Flops
from workers.engine.config import Sampler, Speed
from workers.engine.lora import fuse

# What each adds is the difference to the one before. On a CPU there are no graphs, streams or kernels to choose from.
_LAUNCHED = Speed(graphs=False, compile=False, beside=False, attention="sdpa")
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "kernels launched one by one": {"speed": _LAUNCHED},
    "graphs": {"speed": Speed(compile=False, beside=False, attention="sdpa")},
    "graphs, two streams": {"speed": Speed(compile=False, attention="sdpa")},
    "graphs, two streams, measured attention": {"speed": Speed(compile=False)},
    "graphs, two streams, measured attention and convolutions": {"speed": Speed(compile=False, time_convolutions=True)},
}
_COMPILED: Mapping[str, Mapping[str, Any]] = {
    "compiled": {"speed": Speed(compile=True)},
    "compiled, measured convolutions": {"speed": Speed(compile=True, time_convolutions=True)},
    "compiled, one stream": {"speed": Speed(compile=True, beside=False)},
}
_BACK_TO_BACK = 4  # images
_BATCHES = (1, 2, 4, 8)
_LORA_RANK = 64  # as latent-consistency/lcm-lora-sdv1-5 has


def engine(bench: Bench) -> Iterator[Row]:
    """An image by its stages, for each thing that makes it fast, without compiling."""
    variants = _VARIANTS if bench.cuda else {"kernels launched one by one": _VARIANTS["kernels launched one by one"]}
    yield from ((name, _stages(bench, changes)) for name, changes in variants.items())


def compiled(bench: Bench) -> Iterator[Row]:
    """The same with the networks compiled."""
    names = ("compiled",) if bench.quick or not bench.cuda else _COMPILED
    yield from ((name, _stages(bench, _COMPILED[name])) for name in names)


def batches(bench: Bench) -> Iterator[Row]:
    """Several images from their first step to their last, together; without compiling."""
    with bench.engine(slots=max(_BATCHES), speed=Speed(compile=False)) as subject:
        yield "start", subject.started()
        for n in _BATCHES:
            times = bench.times(lambda n=n: _together(bench, subject, n))  # type: ignore[misc]
            yield f"{n} together", times | {"images/s": round(1e3 * n / times["median"], 3)}


def joining(bench: Bench) -> Iterator[Row]:
    """What it costs a running image that another joins it, in its steps and in all; without compiling."""
    with bench.engine(slots=2, speed=Speed(compile=False)) as subject:
        first, second = (subject.engine.prepare(bench.task(f"image {n}", n)) for n in range(2))
        alone, join, both = list[float](), list[float](), list[float]()
        for _ in range(bench.repeats + 1):
            subject.engine.admit(0, first)
            alone.append(bench.time(subject.engine.step))
            join.append(bench.time(lambda: (subject.engine.admit(1, second), subject.engine.step())))
            if subject.engine.calls > 2:
                both.append(bench.time(subject.engine.step))
            for slot in range(2):
                subject.engine.discard(slot)
        yield "step alone", summary(alone[1:])
        yield "step that another joins", summary(join[1:])
        if both:
            yield "step of both", summary(both[1:])
        yield "image alone", bench.times(lambda: _together(bench, subject, 1))
        yield "image that another joins at half its steps", bench.times(lambda: _joined(bench, subject))


def lcm(bench: Bench) -> Iterator[Row]:
    """Four steps without guidance, with a LoRA of random weights in all layers that LCM's changes."""
    parts = bench.fresh_parts()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        _random_lora(parts.unet, file)
        began = time.perf_counter()
        layers = fuse(file, 1.0, parts.unet, parts.text_encoder)
        yield "LoRA", {"layers": layers, "rank": _LORA_RANK, "fusing, s": round(time.perf_counter() - began, 2)}
    settings = {"sampler": Sampler(name="LCMScheduler", steps=4), "guidance_scale": 1.0}
    wanted = {"graphs": Speed(compile=False)} | ({} if bench.quick or not bench.cuda else {"compiled": Speed()})
    for name, speed in wanted.items():
        yield name, _stages(bench, settings | {"speed": speed}, parts)


def _stages(bench: Bench, changes: Mapping[str, Any], parts: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with bench.memory(result), bench.engine(parts, **changes) as subject:
        result["start"] = subject.started()
        stages = _before_the_steps(bench, subject) | _steps_and_after(bench, subject) | _totals(bench, subject)
    rows = 2 if changes.get("guidance_scale", bench.config.guidance_scale) > 1 else 1
    work = _work(bench.flops, rows, subject.engine.calls)
    return result | {name: bench.rated(times, work[name]) if name in work else times for name, times in stages.items()}


def _work(flops: Flops, rows: int, steps: int) -> dict[str, int]:
    """Of those stages whose time is that of the networks: what diffusers would compute for them."""
    whole = flops.image(rows, steps)
    stages = {"text": flops.text, "step": flops.step(rows), "VAE": flops.vae}
    return stages | {"in all, new prompt": whole, "in all, back to back": whole}


@torch.no_grad()
def _before_the_steps(bench: Bench, subject: Subject) -> dict[str, Any]:
    engine, model = subject.engine, subject.model
    prepared = engine.prepare(bench.task())
    edges = torch.from_numpy(prepared.edges).to(model.device, model.dtype) / 255
    prompts = itertools.count()

    def text() -> None:
        model.text.keys_values(model.tokens.positive(f"prompt {next(prompts)}").tokens)

    def admit(prompt: str) -> None:
        engine.admit(0, engine.prepare(bench.task(prompt)))
        engine.discard(0)

    return {
        "prepare": bench.times(lambda: engine.prepare(bench.task())),
        "hint": bench.times(lambda: model.hint(edges)),
        "text": bench.times(text),
        "prepare and admit, known prompt": bench.times(lambda: admit(TEXT)),
        "prepare and admit, new prompt": bench.times(lambda: admit(f"prompt {next(prompts)}")),
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
    prompts = itertools.count(10**6)

    def whole(text: str) -> None:
        engine.encode(subject.make(bench.task(text)))

    def back_to_back() -> None:
        decodings = []
        for _ in range(_BACK_TO_BACK):
            engine.admit(0, engine.prepare(bench.task(f"prompt {next(prompts)}")))
            subject.denoise()
            decodings.append(engine.finish(0))  # which the next one does not wait for
        for decoding in decodings:
            engine.encode(engine.collect(decoding))

    known = bench.times(lambda: whole(TEXT))
    new = bench.times(lambda: whole(f"prompt {next(prompts)}"))
    each = bench.times(back_to_back)
    each = {name: value if name == "n" else round(value / _BACK_TO_BACK, 3) for name, value in each.items()}
    return {"in all, known prompt": known, "in all, new prompt": new, "in all, back to back": each}


def _together(bench: Bench, subject: Subject, n: int) -> None:
    engine = subject.engine
    for slot in range(n):
        engine.admit(slot, engine.prepare(bench.task(seed=slot)))
    subject.denoise()
    for decoding in [engine.finish(slot) for slot in range(n)]:
        engine.encode(engine.collect(decoding))


def _joined(bench: Bench, subject: Subject) -> None:
    """From the start of one image to its file, another coming in between; what is left of that is dropped."""
    engine = subject.engine
    engine.admit(0, engine.prepare(bench.task(seed=0)))
    for _ in range(engine.calls // 2):
        engine.step()
    engine.admit(1, engine.prepare(bench.task(seed=1)))
    for _ in range(engine.calls - engine.calls // 2):
        engine.step()
    engine.encode(engine.collect(engine.finish(0)))
    engine.discard(1)


def _random_lora(unet: nn.Module, file: Path) -> None:
    """Changes of about a hundredth of each weight, named as kohya's trainer names them."""
    generator = Generator().manual_seed(0)
    tensors = dict[str, Tensor]()
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            down = torch.randn(_LORA_RANK, *layer.weight.shape[1:], generator=generator)
            up = torch.randn(len(layer.weight), _LORA_RANK, *[1] * (layer.weight.dim() - 2), generator=generator)
            size = 0.01 * float(layer.weight.detach().float().std()) / _LORA_RANK**0.5
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": size * up}
    save_file(tensors, file)
