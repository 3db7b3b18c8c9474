"""The forward passes of Stable Diffusion's networks, over the modules that diffusers loads.

They read from top to bottom and leave out what does not change between steps: time projections, and keys and values of
cross-attention, are computed once (`constants.py`) and passed in, one tensor per layer, in running order. Nothing waits
for the device and no Python number varies: shapes alone decide which kernels run, so a step can be recorded or
compiled. `denoiser.py` puts the three passes together.

Shapes: B images, each with one row, or with two under classifier-free guidance (unconditional, conditional), which
makes R rows in all. An image's rows are alike until they first meet the text, so all before that runs on B rows only:
exact, and 3.8% of a step saved with SD 1.5. Where B-row tensors meet R-row ones, `_plus`, `_beside` and `_alike` fit
them without a copy.

Feature maps stay in the channels-last layout, in which convolutions are fastest and tokens need no copy. The exception
is torch's group norm, which on CUDA takes and makes the contiguous layout only (`native_group_norm`, in ATen/native/
group_norm.cpp). So it copies its input, and the convolution after it copies once more: 2 x 88 copies a step with SD
1.5. torch's compiler decomposes it instead, into 300 kernels.

So on CUDA the passes are `fused`: a group norm adds what it normalises, and activates it, in one or two kernels of our
own (`kernels/group_norm.py`). For that, sums wait until they are read (`Sum`), and convolutions leave their bias to the
next kernel. 1x1 convolutions are matrix products, whose kernels add the bias, and each transformer ends with a single
one (`conditioning.pack_ends`). What is enlarged has a smaller convolution (`conditioning.pack_upsamplers`). The VAE has
a pass here only for all that; elsewhere diffusers' own does.

Source of the architecture: diffusers 0.42, UNet2DConditionModel, ControlNetModel and AutoencoderKL.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import Conv2d, Module
from torch.nn.functional import conv2d, gelu, interpolate, linear, scaled_dot_product_attention, silu

from workers.engine.kernels.group_norm import add_group_norm, group_norm

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D
    from diffusers.models.upsampling import Upsample2D
    from torch.nn import GroupNorm


Residuals: TypeAlias = tuple[list[Tensor], Tensor]  # for each skip connection, outermost first, and for the middle
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # queries, keys, values, heads


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of [rows, tokens, channels] over a number of heads: [rows, tokens, channels]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """The inputs of a network, or of a half of one, besides latents.

    `shifts`: each ResNet's time projection [R, channels]. `keys_values`: keys and values, alternately, of each
    cross-attention [R, 77, channels].
    """

    shifts: Sequence[Tensor]
    keys_values: Sequence[Tensor]

    def halves(self, encoder: "LayerInputs") -> tuple["LayerInputs", "LayerInputs"]:
        """Split into the inputs of an encoder with as many layers as another one, and of the rest."""
        shifts, keys_values = len(encoder.shifts), len(encoder.keys_values)
        return (
            LayerInputs(self.shifts[:shifts], self.keys_values[:keys_values]),
            LayerInputs(self.shifts[shifts:], self.keys_values[keys_values:]),
        )


class _LayerQueue:
    """Yields the inputs layer by layer, and computes attention; `inverse_temperature` [R] multiplies its logits.

    `fused`: whether the layers are to use kernels of our own.
    """

    def __init__(
        self, inputs: LayerInputs, attend: Attend, inverse_temperature: Tensor | None = None, *, fused: bool = False
    ) -> None:
        self.shifts: Iterator[Tensor] = iter(inputs.shifts)
        self.keys_values: Iterator[Tensor] = iter(inputs.keys_values)
        self.fused = fused
        self._attend = attend
        self._inverse_temperature = inverse_temperature

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        # Kernels take one factor for all rows. Logits are linear in the queries, so each row's factor scales those.
        if self._inverse_temperature is not None:
            queries = queries * _alike(self._inverse_temperature, queries)[:, None, None]
        return self._attend(queries, keys, values, heads)


@dataclass(frozen=True, slots=True)
class Control:
    """The ControlNet's inputs: the hint embedding [B, channels, h, w] and those of its layers. `scale` [R] multiplies
    its residuals, `inverse_temperature` [R] the logits of its attention."""

    hint: Tensor
    scale: Tensor
    inverse_temperature: Tensor
    inputs: LayerInputs


def control_residuals(
    controlnet: "ControlNetModel", latents: Tensor, control: Control, attend: Attend = attention, *, fused: bool = False
) -> Residuals:
    """The ControlNet's residuals for each skip connection of the UNet, and for its middle; for latents [B, C, h, w].

    They are not scaled yet: `unet_noise` scales as it adds, which saves a pass over each.
    """
    feed = _LayerQueue(control.inputs, attend, control.inverse_temperature, fused=fused)
    x = _conv(controlnet.conv_in, latents, feed)
    x.other = control.hint
    skips, middle = _encode(controlnet, x, feed)
    convs = controlnet.controlnet_down_blocks
    residuals = [_pointwise(conv, skip, feed) for conv, skip in zip(convs, skips, strict=True)]
    return residuals, _pointwise(controlnet.controlnet_mid_block, middle, feed)


def unet_features(
    unet: "UNet2DConditionModel",
    latents: Tensor,
    inputs: LayerInputs,
    attend: Attend = attention,
    *,
    fused: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """The UNet's encoder and middle, which need no ControlNet: the skip connections, and the middle's output."""
    feed = _LayerQueue(inputs, attend, fused=fused)
    return _encode(unet, _conv(unet.conv_in, latents, feed), feed)


def unet_noise(
    unet: "UNet2DConditionModel",
    features: tuple[list[Tensor], Tensor],
    inputs: LayerInputs,
    residuals: Residuals,
    scale: Tensor,
    attend: Attend = attention,
    *,
    fused: bool = False,
) -> Tensor:
    """The UNet's decoder: the noise [R, C, h, w], from its encoder's features and the residuals, scaled by [R]."""
    skips = [_controlled(skip, residual, scale) for skip, residual in zip(features[0], residuals[0], strict=True)]
    feed = _LayerQueue(inputs, attend, fused=fused)
    x = _decode(unet, Sum(_controlled(features[1], residuals[1], scale)), skips, feed)
    noise: Tensor = unet.conv_out(_normalise(unet.conv_norm_out, x, feed, activate=True, keep=False))
    return noise


def vae_image(vae: "AutoencoderKL", latents: Tensor) -> Tensor:
    """The VAE's decoder, always fused: the image [B, 3, 8h, 8w], from latents [B, C, h, w]."""
    decoder, feed = vae.decoder, _LayerQueue(LayerInputs((), ()), attention, fused=True)
    x = _conv(decoder.conv_in, latents if vae.post_quant_conv is None else vae.post_quant_conv(latents), feed)
    first, *resnets = decoder.mid_block.resnets
    x = _resnet(first, x, feed)
    for module, resnet in zip(decoder.mid_block.attentions, resnets, strict=True):
        x = _resnet(resnet, x if module is None else _self_attention(module, x, feed), feed)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, feed)
        for sampler in block.upsamplers or ():
            x = _upsampled(sampler, x.value(), [2 * side for side in x.x.shape[-2:]], feed)
    image: Tensor = decoder.conv_out(_normalise(decoder.conv_norm_out, x, feed, activate=True, keep=False))
    return image


def has_pass(vae: "AutoencoderKL | AutoencoderTiny") -> bool:
    """Whether `vae_image` computes what a VAE does."""
    return set(vae.config.get("up_block_types", ())) == {"UpDecoderBlock2D"} and vae.config.act_fn == "silu"


def _controlled(features: Tensor, residual: Tensor, scale: Tensor) -> Tensor:
    return features.addcmul(residual, _alike(scale, residual)[:, None, None, None])


@dataclass(slots=True)
class Sum:
    """A feature map that is added when it is first read: by a group norm of ours as it reads it anyway.

    `x` [R, channels, h, w], `bias` [channels], `shift` [R, channels]; `other` as `x`, or with one row per image.
    """

    x: Tensor
    bias: Tensor | None = None
    shift: Tensor | None = None
    other: Tensor | None = None

    def value(self) -> Tensor:
        """The feature map."""
        for vector in (self.bias, self.shift):
            if vector is not None:
                self.x = self.x + vector.unflatten(-1, (-1, 1, 1))
        if self.other is not None:
            self.x = _plus(self.other, self.x)
        self.bias = self.shift = self.other = None
        return self.x

    def normalised(self, norm: "GroupNorm", *, activate: bool, keep: bool) -> Tensor:
        """Its group norm, and SiLU of that, by our kernels; `keep`: the sum will be read again."""
        height, width = self.x.shape[-2:]
        other = None if self.other is None else _tokens(self.other)
        terms = self.bias, self.shift, other
        given = _tokens(self.x), terms, norm.weight, norm.bias, norm.num_groups, norm.eps, activate
        if not keep or (self.bias is None and self.shift is None and other is None):  # `==` would compare tensors
            return _feature_map(group_norm(*given), height, width)
        total, result = add_group_norm(*given)
        self.x, self.bias, self.shift, self.other = _feature_map(total, height, width), None, None, None
        return _feature_map(result, height, width)


def _normalise(norm: "GroupNorm", x: Sum, feed: _LayerQueue, *, activate: bool, keep: bool = True) -> Tensor:
    if feed.fused:
        return x.normalised(norm, activate=activate, keep=keep)
    h: Tensor = norm(x.value())
    return silu(h) if activate else h


def _conv(conv: Conv2d, x: Tensor, feed: _LayerQueue) -> Sum:
    # cuDNN's convolution has no bias in torch: that is a kernel of its own, eager or compiled.
    return Sum(conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias) if feed.fused else Sum(conv(x))


def _pointwise(conv: Module, x: Tensor, feed: _LayerQueue) -> Tensor:
    """A 1x1 convolution. As a matrix product its bias is added by the product's kernel."""
    if not feed.fused or not isinstance(conv, Conv2d):  # as when it is quantised
        result: Tensor = conv(x)
        return result
    return _feature_map(linear(_tokens(x), conv.weight.flatten(1), conv.bias), *x.shape[-2:])


def _encode(net: "UNet2DConditionModel | ControlNetModel", x: Sum, feed: _LayerQueue) -> tuple[list[Tensor], Tensor]:
    """The contracting half and the middle: the skip connections, outermost first, and the middle's output."""
    skips = [x]
    for block in net.down_blocks:
        skips += _down(block, skips[-1], feed)
    middle = net.mid_block
    x = _resnet(middle.resnets[0], skips[-1], feed)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = _transformer(attention, x, feed)
        x = _resnet(resnet, x, feed)
    return [skip.value() for skip in skips], x.value()


def _down(block: "CrossAttnDownBlock2D", x: Sum, feed: _LayerQueue) -> list[Sum]:
    outputs = []
    for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
        x = _resnet(resnet, x, feed)
        if attention is not None:
            x = _transformer(attention, x, feed)
        outputs.append(x)
    for sampler in block.downsamplers or ():
        outputs.append(_conv(sampler.conv, outputs[-1].value(), feed))
    return outputs


def _decode(unet: "UNet2DConditionModel", x: Sum, skips: list[Tensor], feed: _LayerQueue) -> Sum:
    """The expanding half: joins the skip connections, innermost first."""
    for block in unet.up_blocks:
        x = _up(block, x, skips, feed)
    return x


def _up(block: "CrossAttnUpBlock2D", x: Sum, skips: list[Tensor], feed: _LayerQueue) -> Sum:
    for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
        x = _resnet(resnet, Sum(_beside(x.value(), skips.pop())), feed)
        if attention is not None:
            x = _transformer(attention, x, feed)
    for sampler in block.upsamplers or ():
        # To the next skip's size, not to twice its own: odd sizes were rounded up on the way down.
        x = _upsampled(sampler, x.value(), skips[-1].shape[-2:], feed)
    return x


def _upsampled(module: "Upsample2D", x: Tensor, size: Sequence[int], feed: _LayerQueue) -> Sum:
    """A feature map enlarged to a size, and the convolution of that."""
    twice = [2 * side for side in x.shape[-2:]]
    if not feed.fused or list(size) != twice:
        return _conv(module.conv, interpolate(x, size=list(size), mode="nearest"), feed)
    h = module.phases(x).unflatten(1, (2, 2, -1))  # [R, odd columns, odd rows, channels, h + 1, w + 1]
    # Odd rows lie one place further than even ones, and so do odd columns. These are views: all is moved once.
    h = h.unfold(4, 2, 1).diagonal(0, 2, 6).unfold(4, 2, 1).diagonal(0, 1, 6)  # [R, channels, h, w, row, column]
    return Sum(_feature_map(h.permute(0, 2, 4, 3, 5, 1), *size))


def _attentions(block: "CrossAttnDownBlock2D | CrossAttnUpBlock2D") -> "Sequence[Transformer2DModel | None]":
    """One for each ResNet, or as many Nones."""
    attentions: Sequence[Transformer2DModel | None] = getattr(block, "attentions", [None] * len(block.resnets))
    return attentions


def _resnet(module: "ResnetBlock2D", x: Sum, feed: _LayerQueue) -> Sum:
    h = _conv(module.conv1, _normalise(module.norm1, x, feed, activate=True), feed)
    if module.time_emb_proj is not None:
        h.shift = _alike(next(feed.shifts), h.x)
    h = _conv(module.conv2, _normalise(module.norm2, h, feed, activate=True, keep=False), feed)
    h.other = x.value() if module.conv_shortcut is None else _pointwise(module.conv_shortcut, x.value(), feed)
    return h


def _transformer(module: "Transformer2DModel", x: Sum, feed: _LayerQueue) -> Sum:
    height, width = x.x.shape[-2:]
    h = _normalise(module.norm, x, feed, activate=False)
    # A 1x1 convolution or a linear layer: the same sum, on feature maps or on tokens.
    linear = module.use_linear_projection
    h = module.proj_in(_tokens(h)) if linear else _tokens(_pointwise(module.proj_in, h, feed))
    *blocks, last = module.transformer_blocks
    for block in blocks:
        h = _feed_forward(block, _attended(block, h, feed))
    h = _attended(last, h, feed)
    if feed.fused and hasattr(module, "end"):
        h = _feature_map(module.end(torch.cat([_gated(last, h), h], dim=-1)), height, width)
    elif linear:
        h = _feature_map(module.proj_out(_feed_forward(last, h)), height, width)
    else:
        h = _pointwise(module.proj_out, _feature_map(_feed_forward(last, h), height, width), feed)
    return Sum(h, other=x.value())


def _self_attention(module: "Attention", x: Sum, feed: _LayerQueue) -> Sum:
    """The VAE's."""
    tokens = _tokens(_normalise(module.group_norm, x, feed, activate=False))
    queries, keys, values = (layer(tokens) for layer in (module.to_q, module.to_k, module.to_v))
    h = module.to_out[0](feed.attend(queries, keys, values, module.heads))
    return Sum(_feature_map(h, *x.x.shape[-2:]), other=x.value())


def _attended(block: "BasicTransformerBlock", x: Tensor, feed: _LayerQueue) -> Tensor:
    """A block's first two thirds."""
    keys, values = next(feed.keys_values), next(feed.keys_values)

    own = block.attn1
    queries, own_keys, own_values = own.to_qkv(block.norm1(x)).chunk(3, dim=-1)
    x = x + own.to_out[0](feed.attend(queries, own_keys, own_values, own.heads))

    cross = block.attn2
    queries = _spread(cross.to_q(block.norm2(x)), keys)  # from here on, an image's rows differ
    return _plus(x, cross.to_out[0](feed.attend(queries, keys, values, cross.heads)))


def _gated(block: "BasicTransformerBlock", x: Tensor) -> Tensor:
    h, gate = block.ff.net[0].proj(block.norm3(x)).chunk(2, dim=-1)
    gated: Tensor = h * gelu(gate)
    return gated


def _feed_forward(block: "BasicTransformerBlock", x: Tensor) -> Tensor:
    change: Tensor = block.ff.net[2](_gated(block, x))
    return x + change


def _tokens(x: Tensor) -> Tensor:
    """[rows, channels, h, w] as [rows, h * w, channels]; free of copies in the channels-last layout."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _feature_map(x: Tensor, height: int, width: int) -> Tensor:
    """[rows, h * w, channels] as [rows, channels, h, w] in the channels-last layout."""
    return x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


def _spread(tokens: Tensor, like: Tensor) -> Tensor:
    """Repeat each image's row until there are as many rows as in `like`."""
    copies = like.shape[0] // tokens.shape[0]
    return tokens if copies == 1 else tokens.repeat_interleave(copies, 0)


def _plus(x: Tensor, change: Tensor) -> Tensor:
    """Return the sum; `x` may have one row per image, and `change` all rows."""
    copies = change.shape[0] // x.shape[0]
    return x + change if copies == 1 else (x[:, None] + change.unflatten(0, (-1, copies))).flatten(0, 1)


def _beside(x: Tensor, skip: Tensor) -> Tensor:
    """Concatenate the channels; `skip` may have one row per image, and `x` all rows."""
    copies = x.shape[0] // skip.shape[0]
    if copies == 1:
        return torch.cat([x, skip], dim=1)
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        # For OpenVINO, which would copy all of both to the channels-last layout, and back.
        return torch.cat([x.unflatten(0, (-1, copies)), skip[:, None].expand(-1, copies, -1, -1, -1)], 2).flatten(0, 1)
    repeated = _tokens(skip)[:, None].expand(-1, copies, -1, -1)
    return _feature_map(torch.cat([_tokens(x).unflatten(0, (-1, copies)), repeated], -1).flatten(0, 1), *x.shape[-2:])


def _alike(rows: Tensor, like: Tensor) -> Tensor:
    """The first row of each image, if `like` has one row per image; an image's rows are equal."""
    copies = rows.shape[0] // like.shape[0]
    return rows if copies == 1 else rows[::copies]
