"""Beside diffusers: how long its pipeline takes with the same weights, and whether its images are the same."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bench.parts.bench import TEXT, Bench, Row
from tests.workers.engine.demo import psnr
from workers.engine.codec import Pixels
from workers.engine.config import Speed
from workers.engine.engine import Prepared
from workers.engine.model import Parts

_SEEDS = 3
_LEAST_PSNR = 40.0  # dB
# Tried in this order until one runs. The first is the fastest that diffusers' guides name, and compiles for minutes:
# graphs without autotuning are what fits into a short run.
_MODES = ("max-autotune", "max-autotune-no-cudagraphs")
_QUICK_MODES = ("reduce-overhead", "default")
_CPU_MODES = ("default",)


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

    def __call__(self, steps: int, output: str = "pil") -> Any:
        config = self.bench.config
        return self.call(
            prompt=TEXT + config.prompt.suffix,
            negative_prompt=config.prompt.negative,
            image=self.edges,
            latents=self.latents,
            num_inference_steps=steps,
            guidance_scale=config.guidance_scale,
            controlnet_conditioning_scale=config.control_scale,
            output_type=output,
        ).images[0]


def eager(bench: Bench) -> Iterator[Row]:
    """The pipeline as it comes, and with its weights laid out channels-last."""
    prepared = _prepared(bench)
    for name, layout in (("as it comes", torch.contiguous_format), ("channels-last", torch.channels_last)):
        result: dict[str, Any] = {}
        with bench.memory(result):
            _lay_out(bench.parts, layout)
            result |= _measured(bench, _Pipeline.of(bench, bench.parts, prepared))
        yield name, result


def compiled(bench: Bench) -> Iterator[Row]:
    """The pipeline with UNet, ControlNet and the VAE's decoder compiled, channels-last."""
    prepared = _prepared(bench)
    modes = _CPU_MODES if not bench.cuda else _QUICK_MODES if bench.quick else _MODES
    for mode in modes:
        try:
            yield mode, _compiled(bench, prepared, mode)
        except RuntimeError as error:  # graphs of torch's own may refuse outputs that are read later
            yield mode, {"error": f"{type(error).__name__}: {error}"}
        else:
            return


def agreement(bench: Bench) -> Iterator[Row]:
    """The engine against diffusers in the same precision, and both against diffusers in float32, on this device."""
    prepared = [_prepared(bench, seed) for seed in range(_SEEDS)]
    theirs = [_image(bench, bench.parts, each) for each in prepared]
    exact = _exact(bench, prepared)
    if exact:
        yield "diffusers against float32", _likeness(theirs, exact)
    ways = {"engine": Speed(compile=False)} | ({} if bench.quick or not bench.cuda else {"engine, compiled": Speed()})
    for name, speed in ways.items():
        with bench.engine(speed=speed) as subject:
            ours = [subject.make(bench.task(seed=seed)) for seed in range(_SEEDS)]
        likeness = _likeness(ours, theirs)
        yield f"{name} against diffusers", likeness
        yield f"{name}, at least {_LEAST_PSNR:.0f} dB", likeness["PSNR, dB"] >= _LEAST_PSNR
        if exact:
            yield f"{name} against float32", _likeness(ours, exact)
            yield f"{name}, no farther from float32 than diffusers", _error(ours, exact) <= _error(theirs, exact)
        yield f"{name}, standard deviation of the images", round(float(np.std(ours)), 2)


def _prepared(bench: Bench, seed: int = 1) -> Prepared:
    """An image as the engine prepares it: no network is needed for that, and none is warmed up."""
    from workers.engine.engine import DiffusionEngine
    from workers.engine.model import assemble

    config = replace(bench.config, speed=Speed(graphs=False, compile=False, beside=False))
    return DiffusionEngine(config, assemble(config, bench.parts, bench.device)).prepare(bench.task(seed=seed))


def _image(bench: Bench, parts: Parts, prepared: Prepared) -> Pixels:
    return np.asarray(_Pipeline.of(bench, parts, prepared)(bench.steps))


def _measured(bench: Bench, pipeline: _Pipeline) -> dict[str, Any]:
    """An image, and a step: what the pipeline takes longer for all steps than for half of them."""
    whole = bench.times(partial(pipeline, bench.steps))
    fewer = bench.steps // 2
    result = {"in all": bench.rated(whole, bench.image_flops)}
    if fewer:
        half = bench.times(partial(pipeline, fewer))["median"]
        result["step"] = {"median": round((whole["median"] - half) / (bench.steps - fewer), 3)}
    return result


def _compiled(bench: Bench, prepared: Prepared, mode: str) -> dict[str, Any]:
    parts = bench.fresh_parts()
    _lay_out(parts, torch.channels_last)
    result: dict[str, Any] = {}
    with bench.memory(result):
        pipeline = _Pipeline.of(bench, parts, prepared)
        began = time.monotonic()
        for network in (parts.unet, parts.controlnet, parts.vae.decoder):
            # Not dynamic: the second step's latents have another layout than the first's, and get code of their own.
            network.compile(mode=mode, fullgraph=True, dynamic=False)
        for _ in range(2):  # torch's own graphs are recorded at the second
            pipeline(bench.steps)
        bench.wait()
        result["compiling and first two images, s"] = round(time.monotonic() - began, 1)
        result |= _measured(bench, pipeline)
    return result


def _lay_out(parts: Parts, layout: torch.memory_format) -> None:
    for network in (parts.unet, parts.controlnet, parts.vae):
        network.to(memory_format=layout)


def _exact(bench: Bench, prepared: list[Prepared]) -> list[Pixels]:
    """What diffusers makes in float32; nothing where that is what it computes in anyway."""
    if bench.dtype == torch.float32:
        return []
    parts = _in_float32(bench.parts)
    return [_image(bench, parts, each) for each in prepared]


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
