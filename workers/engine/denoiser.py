"""A step's networks together: the ControlNet beside the UNet's encoder, the UNet's decoder over both, and guidance.

The ControlNet has the encoder's very shapes at the same moments, and with a small batch neither fills a large GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from workers.engine.constants import keys_values_widths, shift_widths
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
class Moment:
    """What the networks are told of B pictures, each at its own step.

    `latents` [B, 4, h, w], `hint` [B, h, w, channels]. `times` [B, total] are the time projections of all ResNets,
    `text` [B, rows, 77, total] the keys and values of all cross-attentions, the UNet's before the ControlNet's; with
    two rows the first is the unconditional one. `control_scale`, `guidance_scale` (with one row without effect, and 1
    is none with two) and `coldness` [B]: the last multiplies the logits of the ControlNet's attention.
    """

    latents: Tensor
    times: Tensor
    text: Tensor
    hint: Tensor
    control_scale: Tensor
    guidance_scale: Tensor
    coldness: Tensor


def coldest(dtype: torch.dtype) -> float:
    """The lowest temperature that networks can compute with: one over it must leave queries within what half precision
    can hold, and logits within float32."""
    return 2.0**-8 if dtype == torch.float16 else 2.0**-20


Predict: TypeAlias = Callable[[Moment], Tensor]  # the noise [B, 4, h, w] in float32, guided: what a step is made of


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


@dataclass(frozen=True, slots=True)
class Layers:
    """How the flat tensors of a moment split into the layers of the UNet and of the ControlNet."""

    shifts: tuple[list[int], list[int]]
    keys_values: tuple[list[int], list[int]]

    @classmethod
    def of(cls, unet: "UNet2DConditionModel", controlnet: "ControlNetModel") -> "Layers":
        """Those of two networks."""
        nets = unet, controlnet
        return cls(
            (shift_widths(nets[0]), shift_widths(nets[1])), (keys_values_widths(nets[0]), keys_values_widths(nets[1]))
        )

    def split(self, times: Tensor, text: Tensor) -> tuple[Given, Given]:
        """What each network is given, of time projections [R, total] and keys and values [R, 77, total]."""
        shifts = torch.split(times, [*self.shifts[0], *self.shifts[1]], dim=1)
        keys_values = torch.split(text, [*self.keys_values[0], *self.keys_values[1]], dim=-1)
        of_unet = len(self.shifts[0]), len(self.keys_values[0])
        return (
            Given(shifts[: of_unet[0]], keys_values[: of_unet[1]]),
            Given(shifts[of_unet[0] :], keys_values[of_unet[1] :]),
        )


@dataclass(frozen=True, slots=True)
class Guided:
    """Predicts the noise of pictures: their rows', and from these their own. A `Predict`."""

    denoiser: Denoiser
    layers: Layers

    def __call__(self, moment: Moment) -> Tensor:
        """The noise [B, 4, h, w], float32."""
        rows = moment.text.shape[1]
        times, scale, coldness = (
            each.repeat_interleave(rows, 0) for each in (moment.times, moment.control_scale, moment.coldness)
        )
        given, control = self.layers.split(times, moment.text.flatten(0, 1))
        told = Control(moment.hint.permute(0, 3, 1, 2), scale, coldness, control)
        noise = self.denoiser(moment.latents, given, told).float().unflatten(0, (-1, rows))
        unconditional: Tensor = noise[:, 0]
        conditional: Tensor = noise[:, -1]
        if rows == 2:
            # At a scale of 1 it is the conditional one to the bit, as without guidance.
            beyond = (moment.guidance_scale - 1)[:, None, None, None]
            conditional = conditional + beyond * (conditional - unconditional)
        return conditional
