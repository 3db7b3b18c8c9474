"""What the networks need that does not change from step to step, computed once.

Per sampler: the time projections of all ResNets. Per prompt: the keys and values of all cross-attentions. Per image:
the hint embedding. Each is one flat tensor, with the layers side by side in running order.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.attention import BasicTransformerBlock


def time_table(net: "UNet2DConditionModel | ControlNetModel", timesteps: Tensor) -> Tensor:
    """The time projection of each ResNet at each of N timesteps [N]: [N, sum of `shift_widths`]."""
    # The sinusoids are float32 whatever the network is, as in diffusers.
    sinusoids = net.time_proj(timesteps).to(net.dtype)
    embedding = silu(net.time_embedding(sinusoids))
    return torch.cat([projection(embedding) for projection in time_projections(net)], dim=1)


def shift_widths(net: "UNet2DConditionModel | ControlNetModel") -> list[int]:
    """Channels of each ResNet's time projection, in running order."""
    return [projection.out_features for projection in time_projections(net)]


def keys_values(net: "UNet2DConditionModel | ControlNetModel", features: Tensor) -> Tensor:
    """Keys and values, alternately, of each cross-attention for text features [77, width]: [77, sum of widths]."""
    return torch.cat([projection(features) for projection in text_projections(net)], dim=1)


def keys_values_widths(net: "UNet2DConditionModel | ControlNetModel") -> list[int]:
    """Channels of each cross-attention's keys and values, alternately, in running order."""
    return [projection.out_features for projection in text_projections(net)]


def pack_projections(net: "UNet2DConditionModel | ControlNetModel") -> None:
    """Make one matrix product of each self-attention's three projections: `attn1.to_qkv`.

    The three stay, as views of the packed weights, so that diffusers' own forward pass runs on and nothing is stored
    twice.
    """
    for layer in _layers(net):
        own = layer.attn1
        if not own.fused_projections:
            own.fuse_projections()
            own.to_qkv.requires_grad_(False)
            for part, weight in zip((own.to_q, own.to_k, own.to_v), own.to_qkv.weight.data.chunk(3), strict=True):
                part.weight.data = weight


def hint_embedding(controlnet: "ControlNetModel", image: Tensor) -> Tensor:
    """The hint embedding [B, channels, h, w] of an image [B, 3, 8h, 8w] in 0 .. 1; it is added after `conv_in`."""
    embed = controlnet.controlnet_cond_embedding
    x = silu(embed.conv_in(image))
    for conv in embed.blocks:
        x = silu(conv(x))
    hint: Tensor = embed.conv_out(x)
    return hint


def time_projections(net: "UNet2DConditionModel | ControlNetModel") -> Iterator[nn.Linear]:
    """The layer that makes each ResNet's time projection, in running order."""
    for block in _blocks(net):
        for resnet in block.resnets:
            yield resnet.time_emb_proj


def text_projections(net: "UNet2DConditionModel | ControlNetModel") -> Iterator[nn.Linear]:
    """The layers that make each cross-attention's keys and values, alternately, in running order."""
    for layer in _layers(net):
        yield layer.attn2.to_k
        yield layer.attn2.to_v


def _layers(net: "UNet2DConditionModel | ControlNetModel") -> Iterator["BasicTransformerBlock"]:
    for block in _blocks(net):
        for transformer in getattr(block, "attentions", ()):
            yield from transformer.transformer_blocks


def _blocks(net: "UNet2DConditionModel | ControlNetModel") -> Iterator["UNet2DConditionModel"]:
    yield from net.down_blocks
    yield net.mid_block
    yield from getattr(net, "up_blocks", ())
