"""Paints with any model folder as its users do: by the diffusers pipeline, with UniPC and classifier-free guidance.

Nothing of the service is needed, so a model that is half trained, or somebody else's, can be looked at as well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionControlNetPipeline, UniPCMultistepScheduler
from torch import Tensor

from example.demo_model.drawing import Mask, Pixels, edges
from example.demo_model.scenes import Scene
from example.demo_model.scoring import edge_f1

STEPS = 17
GUIDANCE = 2.0
BATCH = 8  # images


@dataclass(frozen=True)
class Painting:
    """An image that a model made from a scene's caption and edges."""

    scene: Scene
    image: Pixels

    @property
    def f1(self) -> float:
        """How well the scene's edges were kept, 0 .. 1."""
        return edge_f1(edges(self.scene.image), edges(self.image))


class Painter:
    """A model in a diffusers folder, in float32, on CUDA where there is one.

    `painted` is called with the number of images after each batch: the `update` of a progress bar.
    Raises FileNotFoundError where the folder holds none.
    """

    def __init__(self, folder: Path, batch: int = BATCH, painted: Callable[[int], object] = lambda _: None) -> None:
        self._pipeline = _pipeline(folder)
        self._batch = batch
        self._painted = painted

    def paint(
        self,
        prompts: Sequence[str],
        hints: Sequence[Mask],
        seed: int,
        guidance: float = GUIDANCE,
        control_scale: float = 1.0,
        steps: int = STEPS,
    ) -> list[Pixels]:
        """An image [h, w, 3] for each prompt and its hint (edges [h, w], the sides multiples of 8).

        The first has the given seed, each further one the next, so none depends on the size of the batches.
        """
        images: list[Pixels] = []
        for batch in _batches(len(prompts), self._batch):
            made = self._pipeline(
                prompt=list(prompts[batch]),
                image=_images([drawn(hint) for hint in hints[batch]]),
                generator=[torch.Generator().manual_seed(seed + place) for place in range(batch.start, batch.stop)],
                guidance_scale=guidance,
                controlnet_conditioning_scale=control_scale,
                num_inference_steps=steps,
                output_type="pt",
            )
            images += _pixels(made.images)
            self._painted(batch.stop - batch.start)
        return images

    def paint_scenes(self, scenes: Sequence[Scene], seed: int, **options: Any) -> list[Painting]:
        """A painting of each scene; `options` are those of `paint`."""
        hints = [edges(scene.image) for scene in scenes]
        images = self.paint([scene.caption for scene in scenes], hints, seed, **options)
        return [Painting(scene, image) for scene, image in zip(scenes, images, strict=True)]

    @torch.inference_mode()
    def reconstruct(self, images: Sequence[Pixels]) -> list[Pixels]:
        """Images [h, w, 3] as they come out of the VAE when nothing is done to their latents."""
        vae = self._pipeline.vae
        made: list[Pixels] = []
        for batch in _batches(len(images), self._batch):
            latents = vae.encode(_images(images[batch]).to(vae.device) * 2 - 1).latent_dist.mode()
            made += _pixels((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))
        return made

    def reconstruct_scenes(self, scenes: Sequence[Scene]) -> list[Painting]:
        """The same of scenes' own images."""
        images = self.reconstruct([scene.image for scene in scenes])
        return [Painting(scene, image) for scene, image in zip(scenes, images, strict=True)]


def _pipeline(folder: Path) -> Any:
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model: a diffusers folder with a model_index.json is needed")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def drawn(mask: Mask) -> Pixels:
    """A mask [h, w] in white on black, [h, w, 3]."""
    return np.repeat(mask[..., None].astype(np.uint8) * np.uint8(255), 3, axis=2)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _images(images: Sequence[Pixels]) -> Tensor:
    """float32 [n, 3, h, w] in 0 .. 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _pixels(images: Tensor) -> list[Pixels]:
    """A uint8 [h, w, 3] for each of [n, 3, h, w] in 0 .. 1."""
    return list((images.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).cpu().numpy())
