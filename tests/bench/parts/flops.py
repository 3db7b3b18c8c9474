"""How much there is to compute for an image: counted by shapes, on torch's meta device, whatever the real device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workers.engine import kernels
from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.config import EngineConfig, rows_of
from workers.engine.denoiser import StepInputs
from workers.engine.model import Model, Parts, assemble
from workers.engine.networks import attention
from workers.engine.streams import SideStream


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of an image by its stages; a multiplication and an addition are two."""

    text: int
    hint: int
    step: int
    vae: int

    def image(self, steps: int) -> int:
        """All of an image."""
        return self.text + self.hint + steps * self.step + self.vae


def of_diffusers(config: EngineConfig, parts: Parts, side: int) -> Flops:
    """As diffusers computes an image: all rows through all of both networks, the hint's embedding at each step."""
    rows, (unet, controlnet, vae, text_encoder) = rows_of(config.guidance_scale), _shadows(parts)
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.device("meta"):
        latents, time = torch.zeros(rows, unet.config.in_channels, side // scale, side // scale), torch.zeros(1)
        text = torch.zeros(rows, TEXT_TOKENS, unet.config.cross_attention_dim)
        image, tokens = torch.zeros(rows, 3, side, side), torch.zeros(rows, TEXT_TOKENS, dtype=torch.int64)
    networks = _count(lambda: (unet(latents, time, text), controlnet(latents, time, text, controlnet_cond=image)))
    return Flops(_count(lambda: text_encoder(tokens)), 0, networks, _count(lambda: vae.decode(latents[:1])))


def of_engine(config: EngineConfig, parts: Parts, side: int) -> Flops:
    """As the engine computes it: its own passes on the same shapes."""
    unet, controlnet, vae, text_encoder = _shadows(parts)
    shadows = replace(parts, unet=unet, controlnet=controlnet, vae=vae, text_encoder=text_encoder)
    fused = config.speed.kernels and kernels.usable(parts.unet.device)
    model = assemble(config, shadows, "meta", fused=fused)
    inputs = _inputs(model, rows_of(config.guidance_scale), side)
    step = model.functions(attention, None).predict(SideStream(None))
    prompt = model.tokens.positive("a prompt").tokens
    return Flops(
        _count(lambda: model.text.keys_values(prompt)),
        _count(lambda: model.hint(torch.zeros(side, side, device="meta"))),
        _count(lambda: step(inputs)),
        _count(lambda: model.decode(inputs.latents[0])),
    )


def _inputs(model: Model, rows: int, side: int) -> StepInputs:
    """Those of one image."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1, *shape, device="meta", dtype=model.dtype)

    side //= model.latent_scale
    text, hint = zeros(rows, TEXT_TOKENS, model.text.width), zeros(side, side, model.hint_channels)
    return StepInputs(
        zeros(model.latent_channels, side, side), zeros(model.time_width), text, hint, *(zeros()[0:1] for _ in range(3))
    )


def _shadows(parts: Parts) -> tuple[Any, Any, Any, Any]:
    """The networks without values."""

    def shadow(part: Any) -> Any:
        return type(part).from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)

    with torch.device("meta"):
        return shadow(parts.unet), shadow(parts.controlnet), shadow(parts.vae), shadow(parts.text_encoder)


def _count(work: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
