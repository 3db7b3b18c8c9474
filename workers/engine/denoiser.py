"""A step's networks together: the ControlNet beside the UNet's encoder, the UNet's decoder over both, and guidance.

ControlNet and encoder have the same shapes at the same time, and with a small batch neither fills a large GPU: so they
run on two streams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from workers.engine.conditioning import keys_values_widths, shift_widths
from workers.engine.networks import (
    Attend,
    Control,
    LayerInputs,
    Residuals,
    attention,
    control_residuals,
    unet_features,
    unet_noise,
)
from workers.engine.streams import SideStream

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The networks' inputs at one step of B images, each at its own timestep.

    `latents` [B, C, h, w], `hint` [B, h, w, channels]. `times` [B, total] are the time projections of all ResNets,
    `text` [B, rows, 77, total] the keys and values of all cross-attentions, the UNet's before the ControlNet's; with
    two rows the first is the unconditional one. [B] each: `control_scale`; `guidance_scale`, where 1 is none and which
    has no effect on one row; `inverse_temperature`, which multiplies the logits of the ControlNet's attention.
    """

    latents: Tensor
    times: Tensor
    text: Tensor
    hint: Tensor
    control_scale: Tensor
    guidance_scale: Tensor
    inverse_temperature: Tensor


def min_temperature(dtype: torch.dtype) -> float:
    """The lowest temperature that can be computed with.

    Its inverse multiplies queries, which must stay within half precision, and logits, which must stay within float32.
    """
    return 2.0**-8 if dtype == torch.float16 else 2.0**-20


Predict: TypeAlias = Callable[[StepInputs], Tensor]  # to the guided noise [B, C, h, w], float32


@dataclass(frozen=True, slots=True)
class Passes:
    """The three forward passes of a step, eager or compiled."""

    control: Callable[[Tensor, Control], Residuals]
    encode: Callable[[Tensor, LayerInputs], tuple[list[Tensor], Tensor]]
    decode: Callable[[tuple[list[Tensor], Tensor], LayerInputs, Residuals, Tensor], Tensor]

    @classmethod
    def of(
        cls,
        unet: "UNet2DConditionModel",
        controlnet: "ControlNetModel",
        attend: Attend = attention,
        *,
        fused: bool = False,
    ) -> "Passes":
        """The eager passes of two networks; `fused` ones use kernels of ours, and `conditioning.pack_ends`."""
        return cls(
            partial(control_residuals, controlnet, attend=attend, fused=fused),
            partial(unet_features, unet, attend=attend, fused=fused),
            partial(unet_noise, unet, attend=attend, fused=fused),
        )

    def compiled(self, mode: str | None) -> "Passes":
        """The same passes, which torch compiles at their first call, once per shape. `mode` is torch.compile's."""
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
        return Passes(compiled(self.control), compiled(self.encode), compiled(self.decode))


@dataclass(frozen=True, slots=True)
class Denoiser:
    """Predicts noise. Not for two threads at once, as it owns a stream."""

    passes: Passes
    side_stream: SideStream

    def __call__(self, latents: Tensor, inputs: LayerInputs, control: Control) -> Tensor:
        """The noise [R, C, h, w] that the networks predict for scaled latents [B, C, h, w]."""
        encoding, decoding = inputs.halves(control.inputs)
        try:
            with self.side_stream.fork():
                residuals = self.passes.control(latents, control)
            features = self.passes.encode(latents, encoding)
        finally:
            # Also after an out-of-memory error: with an unjoined stream, CUDAGraph::capture_end raises before it tells
            # torch's allocator that the recording is over.
            self.side_stream.join()
        return self.passes.decode(features, decoding, residuals, control.scale)


@dataclass(frozen=True, slots=True)
class Layers:
    """How the flat tensors of `StepInputs` split into the layers of the UNet and of the ControlNet."""

    shifts: tuple[list[int], list[int]]
    keys_values: tuple[list[int], list[int]]

    @classmethod
    def of(cls, unet: "UNet2DConditionModel", controlnet: "ControlNetModel") -> "Layers":
        """The layers of two networks."""
        nets = unet, controlnet
        return cls(
            (shift_widths(nets[0]), shift_widths(nets[1])), (keys_values_widths(nets[0]), keys_values_widths(nets[1]))
        )

    def split(self, times: Tensor, text: Tensor) -> tuple[LayerInputs, LayerInputs]:
        """Split time projections [R, total] and keys and values [R, 77, total] by network and layer."""
        shifts = torch.split(times, [*self.shifts[0], *self.shifts[1]], dim=1)
        keys_values = torch.split(text, [*self.keys_values[0], *self.keys_values[1]], dim=-1)
        of_unet = len(self.shifts[0]), len(self.keys_values[0])
        return (
            LayerInputs(shifts[: of_unet[0]], keys_values[: of_unet[1]]),
            LayerInputs(shifts[of_unet[0] :], keys_values[of_unet[1] :]),
        )


@dataclass(frozen=True, slots=True)
class Guided:
    """Predicts the noise of each row, and combines the rows of an image by guidance. A `Predict`."""

    denoiser: Denoiser
    layers: Layers

    def __call__(self, inputs: StepInputs) -> Tensor:
        """The noise [B, C, h, w], float32."""
        rows = inputs.text.shape[1]
        times, scale, inverse_temperature = (
            each.repeat_interleave(rows, 0) for each in (inputs.times, inputs.control_scale, inputs.inverse_temperature)
        )
        unet, control = self.layers.split(times, inputs.text.flatten(0, 1))
        controlnet = Control(inputs.hint.permute(0, 3, 1, 2), scale, inverse_temperature, control)
        noise = self.denoiser(inputs.latents, unet, controlnet).float().unflatten(0, (-1, rows))
        unconditional: Tensor = noise[:, 0]
        conditional: Tensor = noise[:, -1]
        if rows == 2:
            # At a scale of 1 this is exactly the conditional noise, as without guidance.
            beyond = (inputs.guidance_scale - 1)[:, None, None, None]
            conditional = conditional + beyond * (conditional - unconditional)
        return conditional
