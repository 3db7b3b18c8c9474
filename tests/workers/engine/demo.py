"""The demo model in an engine, and in the diffusers pipeline to compare it with."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.engine import codec
from workers.engine.codec import Pixels
from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.config import EngineConfig, Output, Prompting, Sampler, Sizing, Weights
from workers.engine.contract import EngineOptions, Task
from workers.engine.engine import DiffusionEngine, Prepared
from workers.engine.model import Parts, assemble, read
from workers.engine.plan import Size
from workers.engine.tokenizer import ClipTokenizer

FOLDER = Path(__file__).parents[3] / "configs" / "demo"
CHANNELS, SCALE = 6, 4  # of its latents: pixels a side for each
TEXT = "a red circle on a white background"
CONFIG = EngineConfig(
    runtime="torch",  # whatever the cache of this machine has for OpenVINO
    model=Weights(path=str(FOLDER)),
    slots=3,
    guidance_scale=3.0,
    sampler=Sampler(steps=4),
    prompt=Prompting(suffix=", neon", negative="gray"),
    size=Sizing(short_side=64, long_side=128, multiple=8),
)


def latent_size(width: int = 64, height: int = 64) -> Size:
    """Height and width of the latents of an image."""
    return height // SCALE, width // SCALE


@cache
def parts() -> Parts:
    """The demo model's weights in float32, read once."""
    return read(CONFIG, torch.float32)


@cache
def parts_with_other_latents(channels: int, scale: int) -> Parts:
    """The demo model with random networks for latents of other channels, each of `scale` x `scale` pixels."""
    levels, own = scale.bit_length() - 1, parts()
    hint = [8 * 2**n for n in range(levels + 1)]
    blocks = {
        "block_out_channels": [16 * 2**n for n in range(levels + 1)],
        "down_block_types": ["DownEncoderBlock2D"] * (levels + 1),
        "up_block_types": ["UpDecoderBlock2D"] * (levels + 1),
    }
    torch.manual_seed(0)

    def changed(network: Any, **changes: Any) -> Any:
        return type(network).from_config(dict(network.config) | changes).eval().requires_grad_(False)

    return replace(
        own,
        unet=changed(own.unet, in_channels=channels, out_channels=channels),
        controlnet=changed(own.controlnet, in_channels=channels, conditioning_embedding_out_channels=hint),
        vae=changed(own.vae, latent_channels=channels, **blocks),
    )


def engine(config: EngineConfig = CONFIG) -> DiffusionEngine:
    """An engine on the CPU with the demo model."""
    return DiffusionEngine(config, assemble(config, parts(), "cpu"))


@cache
def image(width: int = 64, height: int = 64) -> bytes:
    """A red circle on white, as a PNG file. Made once, as benchmarks time what takes it."""
    pixels: Pixels = np.full((height, width, 3), 255, np.uint8)
    cv2.circle(pixels, (width // 2, height // 2), min(width, height) // 3, (220, 30, 30), -1)
    return codec.encode(pixels, Output(format="png"))


def task(seed: int = 1, width: int = 64, height: int = 64, text: str = TEXT, **options: Any) -> Task:
    """One image to make."""
    return Task(image(width, height), text, seed, EngineOptions(**options))


def run(engine: DiffusionEngine, slot: int) -> Tensor:
    """Take steps until no image has any to take; return the final latents of the one in a slot."""
    while engine.step():
        pass
    return engine.latents(slot)


def make(engine: DiffusionEngine, task: Task) -> Tensor:
    """Final latents of an image that is made alone."""
    engine.admit(0, engine.prepare(task))
    latents = run(engine, 0)
    engine.discard(0)
    return latents


def make_beside(engine: DiffusionEngine, slot: int, task: Task) -> Tensor:
    """The same, while others run."""
    engine.admit(slot, engine.prepare(task))
    latents = run(engine, slot)
    engine.discard(slot)
    return latents


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of what was expected."""
    return float((actual - expected).norm() / expected.norm())


def psnr(actual: Pixels, expected: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit pixels, in decibels; infinite if they are equal."""
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def of_transformers(tokenizer: ClipTokenizer) -> Any:
    """The same words in transformers' tokenizer."""
    from transformers import CLIPTokenizer

    words = json.loads(tokenizer.backend.to_str())["model"]
    merges = [tuple(pair) for pair in words["merges"]]
    return CLIPTokenizer(vocab=words["vocab"], merges=merges, model_max_length=TEXT_TOKENS)


@dataclass(frozen=True, slots=True)
class Reference:
    """The diffusers pipeline with the same weights and settings."""

    config: EngineConfig
    parts: Parts

    def latents(self, prepared: Prepared, text: str = TEXT, seed: int = 0) -> Tensor:
        """Final latents [C, h, w]; the seed is that of what the sampler draws at its steps, if it does."""
        latents: Tensor = self._run(prepared, text, "latent", seed)[0]
        return latents

    def pixels(self, prepared: Prepared, text: str = TEXT) -> Pixels:
        """The image that its VAE makes of them."""
        return np.asarray(self._run(prepared, text, "pil")[0])

    def _run(self, prepared: Prepared, text: str, output: str, seed: int = 0) -> Any:
        pipeline = self.pipeline()
        generator = torch.Generator().manual_seed(seed)
        torch.randn(prepared.noise.shape[1:], generator=generator)  # the initial noise, which it is given
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt=text + self.config.prompt.suffix,
            negative_prompt=self.config.prompt.negative,
            image=Image.fromarray(np.stack([prepared.edges] * 3, axis=-1)),
            latents=prepared.noise[:1].to(self.parts.unet.device, self.parts.unet.dtype),
            generator=generator,
            num_inference_steps=self.config.sampler.steps,
            guidance_scale=self.config.guidance_scale,
            controlnet_conditioning_scale=self.config.control_scale,
            output_type=output,
        ).images

    def pipeline(self) -> Any:
        """The pipeline itself, anew."""
        import diffusers

        kind = getattr(diffusers, self.config.sampler.name)
        return diffusers.StableDiffusionControlNetPipeline(
            vae=self.parts.vae,
            text_encoder=self.parts.text_encoder,
            tokenizer=of_transformers(self.parts.tokenizer),
            unet=self.parts.unet,
            controlnet=self.parts.controlnet,
            scheduler=kind.from_config(self.parts.scheduler, **self.config.sampler.options),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def with_sampler(name: str, steps: int = 4, **options: Any) -> EngineConfig:
    """The usual configuration with another sampler."""
    return replace(CONFIG, sampler=Sampler(name=name, steps=steps, options=options))
