"""Models the other way round: from diffusers' layout into that of the original latent-diffusion code, in one file.

Written from the original's module tree (ldm's openaimodel.py and model.py, ControlNet's cldm.py), not from the
conversion that it tests.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def model(unet: Tensors, unet_config: Mapping[str, Any], vae: Tensors, text_encoder: Tensors) -> dict[str, Tensor]:
    """A whole checkpoint."""
    blocks = len(next_blocks(vae))
    return {
        **{f"model.diffusion_model.{unet_key(key, unet_config)}": tensor for key, tensor in unet.items()},
        **{f"first_stage_model.{vae_key(key, blocks)}": as_convolution(key, tensor) for key, tensor in vae.items()},
        **{f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in text_encoder.items()},
    }


def controlnet(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A ControlNet's checkpoint."""
    return {f"control_model.{unet_key(key, config)}": tensor for key, tensor in tensors.items()}


def next_blocks(vae: Tensors) -> set[str]:
    """The numbers of the decoder's blocks."""
    return {match[1] for key in vae if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", key))}


def unet_key(key: str, config: Mapping[str, Any]) -> str:
    """The original's name of a weight of a UNet or ControlNet."""
    for ours, theirs in _UNET.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.*)", key):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(\w+)\.(.*)", key):
        return f"middle_block.{2 * int(match[1])}.{_RESNET[match[2]]}.{match[3]}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", key)
    assert match is not None, key
    return _block_key(match[1], int(match[2]), match[3], int(match[4]), match[5], config)


def _block_key(side: str, block: int, kind: str, n: int, rest: str, config: Mapping[str, Any]) -> str:
    length = config["layers_per_block"] + 1
    first, name = (1, "input_blocks") if side == "down" else (0, "output_blocks")
    at = f"{name}.{first + block * length + (n if kind in ('resnets', 'attentions') else length - 1)}"
    if kind == "resnets":
        layer, _, tail = rest.partition(".")
        return f"{at}.0.{_RESNET[layer]}.{tail}"
    if kind == "attentions":
        return f"{at}.1.{rest}"
    if kind == "downsamplers":
        return f"{at}.0.op.{rest.removeprefix('conv.')}"
    attends = config["up_block_types"][block].startswith("CrossAttn")
    return f"{at}.{2 if attends else 1}.{rest}"


def vae_key(key: str, blocks: int) -> str:
    """The original's name of a weight of a VAE."""
    key = re.sub(r"decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{blocks - 1 - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    for ours, theirs in _VAE_ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    return (
        key.replace("encoder.down_blocks.", "encoder.down.")
        .replace(".resnets.", ".block.")
        .replace("downsamplers.0.", "downsample.")
        .replace("upsamplers.0.", "upsample.")
        .replace("conv_norm_out", "norm_out")
        .replace("conv_shortcut", "nin_shortcut")
    )


def as_convolution(key: str, tensor: Tensor) -> Tensor:
    """The original's attention is made of convolutions of 1 x 1."""
    is_linear = ".attentions." in key and key.endswith(".weight") and tensor.ndim == 2
    return tensor[:, :, None, None] if is_linear else tensor
