"""How much there is to compute for an image: counted by shapes, whatever the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.model import Parts


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations (a multiplication and an addition are two) of one sample, as diffusers computes it.

    What the engine saves counts as done: so a share of the peak compares whole images, not kernels.
    """

    unet: int
    controlnet: int
    vae: int
    text: int

    def step(self, rows: int) -> int:
        """A step of so many rows: two an image under guidance."""
        return rows * (self.unet + self.controlnet)

    def image(self, rows: int, steps: int) -> int:
        """All of an image, the text encoder run once a row."""
        return rows * self.text + steps * self.step(rows) + self.vae


def count(parts: Parts, side: int) -> Flops:
    """Count by the shapes alone, on torch's meta device; for images of `side` x `side` pixels."""
    unet, controlnet, vae, text_encoder = (
        _shadow(part) for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder)
    )
    scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    with torch.device("meta"):
        latents, time = torch.zeros(1, 4, side // scale, side // scale), torch.zeros(1)
        text = torch.zeros(1, TEXT_TOKENS, unet.config.cross_attention_dim)
        image = torch.zeros(1, 3, side, side)
        tokens = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64)
    return Flops(
        unet=_counted(lambda: unet(latents, time, text)),
        controlnet=_counted(lambda: controlnet(latents, time, text, controlnet_cond=image)),
        vae=_counted(lambda: vae.decode(latents)),
        text=_counted(lambda: text_encoder(tokens)),
    )


def _shadow(part: Any) -> Any:
    """The same architecture without values."""
    with torch.device("meta"):
        if hasattr(part, "from_config"):
            return type(part).from_config(part.config)
        return type(part)(part.config)


def _counted(work: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
