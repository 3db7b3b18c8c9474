"""Stable Diffusion 1.5 with a ControlNet at full size, with seeded random weights: its cost without its download.

The architecture is that of stable-diffusion-v1-5 and of sd-controlnet-canny; the weights are drawn so that activations
keep their scale from layer to layer. Used by the tests here and by benchmarks.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, nn

from workers.engine.model import Parts
from workers.engine.tokenizer import ClipTokenizer

PARAMETERS = {"unet": 859_520_964, "controlnet": 361_279_120, "vae": 83_653_863, "text_encoder": 123_060_480}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_VOCABULARY = 49_408
_VAE_CHANNELS = (128, 256, 512, 512)


def random_parts(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Parts:
    """Random weights on a torch device (5.7 GB in float32); the same seed is the same weights on one kind of device."""
    generator = Generator(device).manual_seed(seed)
    empty = architecture()
    return replace(
        empty,
        unet=_filled(empty.unet, device, dtype, generator),
        controlnet=_filled(empty.controlnet, device, dtype, generator),
        vae=_filled(empty.vae, device, dtype, generator),
        text_encoder=_with_positions(_filled(empty.text_encoder, device, dtype, generator)),
    )


def architecture() -> Parts:
    """The same without weights, on torch's meta device."""
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        controlnet = ControlNetModel(cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=_VAE_CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * len(_VAE_CHANNELS),
            up_block_types=("UpDecoderBlock2D",) * len(_VAE_CHANNELS),
            layers_per_block=2,
            sample_size=512,
        )
        text_encoder = _text_encoder()
    return Parts(unet, controlnet, vae, text_encoder, tokenizer(), dict(SCHEDULER))


def tokenizer() -> ClipTokenizer:
    """CLIP's tokenizer with letters alone for words; its two special tokens have their usual numbers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": _VOCABULARY - 2, "<|endoftext|>": _VOCABULARY - 1}
    return ClipTokenizer(vocabulary, [])


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=_VOCABULARY,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=_VOCABULARY - 2,
            eos_token_id=_VOCABULARY - 1,
        )
    )


@torch.no_grad()
def _filled(part: nn.Module, device: str, dtype: torch.dtype, generator: Generator) -> Any:
    """Give storage and values to a module that has none."""
    part.to(dtype).to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        elif name.endswith("weight"):
            parameter.fill_(1)  # of a normalisation
        else:
            parameter.normal_(0, 0.02, generator=generator)
    return part.eval().requires_grad_(False)


def _with_positions(text_encoder: Any) -> Any:
    """The one buffer of all four parts, which is no parameter and was left empty."""
    for name, buffer in text_encoder.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return text_encoder
