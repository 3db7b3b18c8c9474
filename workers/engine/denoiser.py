"""A step's networks together: the ControlNet beside the UNet's encoder, then the UNet's decoder over both.

The ControlNet has the encoder's very shapes at the same moments, and with a small batch neither fills a large GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.networks import (
    Attend,
    Control,
    Given,
    Residuals,
    attention,
    control_residuals,
    unet_features,
    unet_noise,
)
from workers.engine.streams import Aside

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class Passes:
    """The three forward passes of a step, as they are or compiled."""

    control: Callable[[Tensor, Control], Residuals]
    encode: Callable[[Tensor, Given], tuple[list[Tensor], Tensor]]
    decode: Callable[[tuple[list[Tensor], Tensor], Given, Residuals, Tensor], Tensor]

    @classmethod
    def of(cls, unet: "UNet2DConditionModel", controlnet: "ControlNetModel", attend: Attend = attention) -> "Passes":
        """As they are."""
        return cls(
            partial(control_residuals, controlnet, attend=attend),
            partial(unet_features, unet, attend=attend),
            partial(unet_noise, unet, attend=attend),
        )

    def compiled(self, mode: str | None) -> "Passes":
        """Compiled by torch at their first call, once for each shape. `mode` is torch.compile's."""
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
        return Passes(compiled(self.control), compiled(self.encode), compiled(self.decode))


@dataclass(frozen=True, slots=True)
class Denoiser:
    """Predicts noise. Not for two threads at once: its stream is its own."""

    passes: Passes
    aside: Aside

    def __call__(self, latents: Tensor, given: Given, control: Control) -> Tensor:
        """The noise [R, 4, h, w] that the networks see in scaled latents [B, 4, h, w]."""
        encoding, decoding = given.halves(control.given)
        try:
            with self.aside.fork():
                residuals = self.passes.control(latents, control)
            features = self.passes.encode(latents, encoding)
        finally:
            # When memory gives out in between, too: torch's allocator does not survive a recording with a stream left
            # apart, as CUDAGraph::capture_end raises before it tells the allocator that the recording is over.
            self.aside.join()
        return self.passes.decode(features, decoding, residuals, control.scale)
