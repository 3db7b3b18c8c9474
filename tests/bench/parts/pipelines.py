"""Beside diffusers: whether the engine's images are the same, and how long diffusers takes as it comes and sped up."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bench.parts.bench import TEXT, Bench, Row, SkippedError, Subject
from tests.bench.parts.stats import in_turns
from tests.workers.engine.demo import psnr
from workers.engine.codec import Pixels
from workers.engine.config import FLOAT8_CAPABILITY, Speed
from workers.engine.engine import DiffusionEngine, Prepared
from workers.engine.model import Parts, assemble

_SEEDS = 3
_LEAST_PSNR = 40.0  # dB


@dataclass(frozen=True, eq=False)
class _Pipeline:
    """A pipeline that was built once, and the inputs of one image."""

    call: Any
    bench: Bench
    edges: Image.Image
    latents: torch.Tensor

    @classmethod
    def of(cls, bench: Bench, parts: Parts, prepared: Prepared) -> "_Pipeline":
        pipeline = bench.reference(parts).pipeline()
        pipeline.set_progress_bar_config(disable=True)
        edges = Image.fromarray(np.stack([prepared.edges] * 3, axis=-1))
        return cls(pipeline, bench, edges, prepared.noise[:1].to(bench.device, parts.unet.dtype))

    def __call__(self) -> Any:
        config = self.bench.config
        return self.call(
            prompt=TEXT + config.prompt.suffix,
            negative_prompt=config.prompt.negative,
            image=self.edges,
            latents=self.latents,
            num_inference_steps=self.bench.steps,
            guidance_scale=config.guidance_scale,
            controlnet_conditioning_scale=config.control_scale,
            output_type="pil",
        ).images[0]


# --------------------------------------------------------------------------------------------------------------- speed


def _as_it_comes(pipeline: _Pipeline, parts: Parts) -> _Pipeline:
    return pipeline


def _channels_last(pipeline: _Pipeline, parts: Parts) -> _Pipeline:
    for network in (parts.unet, parts.controlnet, parts.vae):
        network.to(memory_format=torch.channels_last)
    return pipeline


def _compiled(pipeline: _Pipeline, parts: Parts, mode: str) -> _Pipeline:
    _channels_last(pipeline, parts)
    for network in (parts.unet, parts.controlnet, parts.vae.decoder):
        # Not dynamic: the second step's latents have another layout than the first's, and get code of their own.
        network.compile(mode=mode, fullgraph=True, dynamic=False)
    return pipeline


def _stable_fast(pipeline: _Pipeline, parts: Parts) -> _Pipeline:
    if find_spec("sfast") is None:
        raise SkippedError("stable-fast is not installed")
    sfast: Any = import_module("sfast.compilers.diffusion_pipeline_compiler")
    config = sfast.CompilationConfig.Default()
    config.enable_cuda_graph = True
    config.enable_xformers, config.enable_triton = (find_spec(name) is not None for name in ("xformers", "triton"))
    return replace(pipeline, call=sfast.compile(pipeline.call, config))


_PEERS: Mapping[str, Callable[[_Pipeline, Parts], _Pipeline]] = {
    "diffusers as it comes": _as_it_comes,
    "diffusers, channels-last": _channels_last,
    "stable-fast": _stable_fast,
    # What diffusers' guides name as the fastest; the first has graphs of torch's own.
    "diffusers, channels-last, compiled by max-autotune": partial(_compiled, mode="max-autotune"),
    "the same without graphs": partial(_compiled, mode="max-autotune-no-cudagraphs"),
}


def peers(bench: Bench) -> Iterator[Row]:
    """An image by this engine, compiled as shipped, and by others, in turns: from text and edges to pixels."""
    with bench.engine() as subject:
        yield "start", subject.started
        for name, speed_up in _PEERS.items():
            if bench.cuda or speed_up in (_as_it_comes, _channels_last, _stable_fast):
                yield name, partial(_beside, bench, subject, speed_up)


def _beside(bench: Bench, subject: Subject, speed_up: Callable[[_Pipeline, Parts], _Pipeline]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with bench.memory(result):
        parts = bench.fresh_parts()
        began = time.monotonic()
        pipeline = speed_up(_Pipeline.of(bench, parts, _prepared(bench)), parts)
        for _ in range(2):  # torch's own graphs are recorded at the second
            pipeline()
        bench.wait()
        result["until its second image, s"] = round(time.monotonic() - began, 1)
        ours = partial(bench.time, lambda: subject.make(bench.task()))
        bench.run_until_steady(ours)
        result |= in_turns(ours, partial(bench.time, pipeline), max(1, bench.repeats // 3))
    rated = {"theirs": bench.rated_image(result["theirs"], by_diffusers=True)}
    return result | {"ours": bench.rated_image(result["ours"])} | rated


# -------------------------------------------------------------------------------------------------------------- images


def agreement(bench: Bench) -> Iterator[Row]:
    """The engine against diffusers in the same precision, and both against diffusers in float32, on this device."""
    yield "not compiled", partial(_agreement, bench, {"speed": replace(bench.config.speed, compile=False)})
    if bench.cuda:
        yield "as shipped", partial(_agreement, bench, {})


def fp8(bench: Bench) -> Iterator[Row]:
    """The same with layers in float8, whose networks are compiled anew."""
    if not bench.cuda or torch.cuda.get_device_capability(bench.device) < FLOAT8_CAPABILITY:
        raise SkippedError("it takes a GPU with float8")
    yield "fp8", partial(_agreement, bench, {"quantisation": "fp8"})


def _agreement(bench: Bench, changes: Mapping[str, Any]) -> dict[str, Any]:
    prepared = [_prepared(bench, seed) for seed in range(_SEEDS)]
    theirs = [_image(bench, bench.parts, each) for each in prepared]
    with bench.engine(bench.fresh_parts() if "quantisation" in changes else None, **changes) as subject:
        start, ours = subject.started(), [subject.make(bench.task(seed=seed)) for seed in range(_SEEDS)]
    likeness = _likeness(ours, theirs)
    result = {
        "start": start,
        "against diffusers": likeness,
        f"at least {_LEAST_PSNR:.0f} dB": likeness["PSNR, dB"] >= _LEAST_PSNR,
        "standard deviation of the images": round(float(np.std(ours)), 2),
    }
    if bench.dtype == torch.float32:
        return result
    exact_parts = _in_float32(bench.parts)
    exact = [_image(bench, exact_parts, each) for each in prepared]
    return result | {
        "against float32": _likeness(ours, exact),
        "diffusers against float32": _likeness(theirs, exact),
        "no farther from float32 than diffusers": _error(ours, exact) <= _error(theirs, exact),
    }


def _prepared(bench: Bench, seed: int = 1) -> Prepared:
    """An image as the engine prepares it: no network is needed for that, and none is warmed up."""
    config = replace(bench.config, speed=Speed(graphs=False, compile=False, beside=False))
    return DiffusionEngine(config, assemble(config, bench.parts, bench.device)).prepare(bench.task(seed=seed))


def _image(bench: Bench, parts: Parts, prepared: Prepared) -> Pixels:
    return np.asarray(_Pipeline.of(bench, parts, prepared)())


def _in_float32(parts: Parts) -> Parts:
    def copied(network: Any) -> Any:
        return copy.deepcopy(network).float()

    unet, controlnet = copied(parts.unet), copied(parts.controlnet)
    return replace(
        parts, unet=unet, controlnet=controlnet, vae=copied(parts.vae), text_encoder=copied(parts.text_encoder)
    )


def _likeness(actual: list[Pixels], expected: list[Pixels]) -> dict[str, float]:
    """PSNR over all images together, and of the worst; 999 stands for equal."""
    each = [psnr(one, other) for one, other in zip(actual, expected, strict=True)]
    whole = psnr(np.stack(actual), np.stack(expected))
    return {"PSNR, dB": round(min(whole, 999.0), 2), "worst, dB": round(min(*each, 999.0), 2)}


def _error(actual: list[Pixels], expected: list[Pixels]) -> float:
    return float(np.mean((np.stack(actual).astype(np.float64) - np.stack(expected)) ** 2))
