"""Our forward passes against those of diffusers, on the same modules."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.engine import demo
from tests.workers.engine.demo import relative_error
from workers.engine import networks
from workers.engine.conditioning import (
    hint_embedding,
    keys_values,
    keys_values_widths,
    pack_ends,
    pack_projections,
    pack_upsamplers,
    shift_widths,
    time_table,
)
from workers.engine.denoiser import Denoiser, Passes, min_temperature
from workers.engine.model_checks import UnsupportedModelError, check_architecture
from workers.engine.networks import Control, LayerInputs
from workers.engine.streams import SideStream

TOLERANCE = 1e-5
IMAGES, SIDE = 2, 8
# Fused passes call our operators, which on a CPU run their reference.
fused_too = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@pytest.fixture(autouse=True)
def _packed_and_without_gradients() -> Any:
    with torch.no_grad():
        for net in (demo.parts().unet, demo.parts().controlnet):
            pack_projections(net)
            pack_ends(net)
        pack_upsamplers(demo.parts().unet)
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(net: Any, timesteps: Tensor, features: Tensor) -> LayerInputs:
    """What a network is told, for timesteps [R] and text features [R, 77, width]."""
    shifts = torch.split(time_table(net, timesteps), shift_widths(net), dim=1)
    text = torch.stack([keys_values(net, row) for row in features])
    return LayerInputs(shifts, torch.split(text, keys_values_widths(net), dim=-1))


def doubled(x: Tensor) -> Tensor:
    """One row an image becomes two, side by side."""
    return x.repeat_interleave(2, 0)


def unet_noise(
    unet: Any, controlnet: Any, told: LayerInputs, residuals: tuple[list[Tensor], Tensor], fused: bool
) -> Tensor:
    """Encoder and decoder, for the latents below."""
    encoder = LayerInputs(shift_widths(controlnet), keys_values_widths(controlnet))  # type: ignore[arg-type] # as many
    encoding, decoding = told.halves(encoder)
    features = networks.unet_features(unet, LATENTS, encoding, fused=fused)
    return networks.unet_noise(unet, features, decoding, residuals, torch.ones(IMAGES), fused=fused)


LATENTS = random(IMAGES, demo.CHANNELS, SIDE, SIDE)
IMAGE = random(IMAGES, 3, demo.SCALE * SIDE, demo.SCALE * SIDE, seed=1).sigmoid()
TIMESTEPS = torch.tensor([801.0, 42.0])
SCALES = torch.tensor([0.4, 1.3])


def control_of(inputs: LayerInputs, scale: Tensor) -> Control:
    """What the ControlNet is told of the image below."""
    return Control(hint_embedding(demo.parts().controlnet, IMAGE), scale, torch.ones_like(scale), inputs)


def features(rows: int) -> Tensor:
    return random(rows, 77, demo.parts().unet.config.cross_attention_dim, seed=2)


def test_the_time_table_holds_what_the_modules_compute() -> None:
    unet = demo.parts().unet
    embedding = unet.time_embedding(unet.time_proj(TIMESTEPS))
    resnets = [r for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for r in block.resnets]
    expected = [resnet.time_emb_proj(resnet.nonlinearity(embedding)) for resnet in resnets]
    table = time_table(unet, TIMESTEPS)
    assert table.shape == (len(TIMESTEPS), sum(shift_widths(unet)))
    for actual, plain in zip(torch.split(table, shift_widths(unet), dim=1), expected, strict=True):
        assert torch.equal(actual, plain)


def test_the_flat_keys_and_values_hold_what_the_modules_compute() -> None:
    unet = demo.parts().unet
    blocks = [block for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) if hasattr(block, "attentions")]
    layers = [layer for block in blocks for attention in block.attentions for layer in attention.transformer_blocks]
    text = features(1)[0]
    expected = [project(text) for layer in layers for project in (layer.attn2.to_k, layer.attn2.to_v)]
    flat = keys_values(unet, text)
    for actual, plain in zip(torch.split(flat, keys_values_widths(unet), dim=1), expected, strict=True):
        assert torch.equal(actual, plain)


def test_the_hint_embedding_is_diffusers() -> None:
    controlnet = demo.parts().controlnet
    expected = controlnet.controlnet_cond_embedding(IMAGE)
    assert relative_error(hint_embedding(controlnet, IMAGE), expected) <= TOLERANCE


@fused_too
def test_the_controlnet_is_diffusers(fused: bool) -> None:
    controlnet = demo.parts().controlnet
    text = features(IMAGES)
    control = control_of(inputs_of(controlnet, TIMESTEPS, text), torch.ones(IMAGES))
    skips, middle = networks.control_residuals(controlnet, LATENTS, control, fused=fused)
    expected = controlnet(LATENTS, TIMESTEPS, text, IMAGE)
    assert len(skips) == len(expected.down_block_res_samples)
    for actual, plain in zip((*skips, middle), (*expected[0], expected[1]), strict=True):
        assert relative_error(actual, plain) <= TOLERANCE


def test_a_temperature_of_one_changes_no_bit() -> None:
    controlnet = demo.parts().controlnet
    control = control_of(inputs_of(controlnet, TIMESTEPS, features(IMAGES)), torch.ones(IMAGES))
    skips, middle = networks.control_residuals(controlnet, LATENTS, control)
    x = networks.Sum(controlnet.conv_in(LATENTS), other=control.hint)
    plain, plain_middle = networks._encode(controlnet, x, networks._LayerQueue(control.inputs, networks.attention))
    assert torch.equal(middle, controlnet.controlnet_mid_block(plain_middle))
    for actual, conv, expected in zip(skips, controlnet.controlnet_down_blocks, plain, strict=True):
        assert torch.equal(actual, conv(expected))


def test_half_precision_holds_the_queries_of_its_lowest_temperature() -> None:
    controlnet = copy.deepcopy(demo.parts().controlnet).half()
    control = control_of(inputs_of(controlnet, TIMESTEPS, features(IMAGES).half()), torch.ones(IMAGES))
    inverse_temperature = torch.full((IMAGES,), 1 / min_temperature(torch.float16)).half()
    control = replace(control, hint=control.hint.half(), inverse_temperature=inverse_temperature)
    skips, middle = networks.control_residuals(controlnet, LATENTS.half(), control)
    assert all(residual.isfinite().all() for residual in (*skips, middle))


def assert_the_unet_is_diffusers(unet: Any, controlnet: Any, text: Tensor, *, fused: bool) -> None:
    residuals = controlnet(LATENTS, TIMESTEPS, text, IMAGE)
    actual = unet_noise(unet, controlnet, inputs_of(unet, TIMESTEPS, text), (residuals[0], residuals[1]), fused)
    expected = unet(
        LATENTS,
        TIMESTEPS,
        text,
        down_block_additional_residuals=residuals[0],
        mid_block_additional_residual=residuals[1],
    ).sample
    assert relative_error(actual, expected) <= TOLERANCE


@fused_too
def test_the_unet_is_diffusers(fused: bool) -> None:
    unet, controlnet = demo.parts().unet, demo.parts().controlnet
    assert_the_unet_is_diffusers(unet, controlnet, features(IMAGES), fused=fused)


@fused_too
def test_guidance_shares_what_its_halves_have_in_common(fused: bool) -> None:
    unet, controlnet = demo.parts().unet, demo.parts().controlnet
    text, timesteps = features(2 * IMAGES), doubled(TIMESTEPS)
    control = control_of(inputs_of(controlnet, timesteps, text), doubled(SCALES))
    passes = Passes.of(unet, controlnet, fused=fused)
    actual = Denoiser(passes, SideStream(None))(LATENTS, inputs_of(unet, timesteps, text), control)

    residuals = controlnet(doubled(LATENTS), timesteps, text, doubled(IMAGE))
    scaled = [residual * doubled(SCALES)[:, None, None, None] for residual in (*residuals[0], residuals[1])]
    expected = unet(
        doubled(LATENTS),
        timesteps,
        text,
        down_block_additional_residuals=scaled[:-1],
        mid_block_additional_residual=scaled[-1],
    ).sample
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= TOLERANCE


@fused_too
def test_linear_projections_as_in_stable_diffusion_2_are_covered(fused: bool) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    shape = {
        "in_channels": demo.CHANNELS,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 16,
        "attention_head_dim": (2, 4),
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    torch.manual_seed(0)
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(out_channels=demo.CHANNELS, up_block_types=up, **shape).eval()
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 8, 8), **shape).eval()
    check_architecture(unet.config, controlnet.config, 16)
    pack_projections(unet)
    pack_ends(unet)
    pack_upsamplers(unet)
    assert_the_unet_is_diffusers(unet, controlnet, random(IMAGES, 77, 16), fused=fused)


def test_attention_is_the_textbooks() -> None:
    q, k, v = (random(2, tokens, 12, seed=seed) for seed, tokens in enumerate((5, 7, 7)))
    expected = torch.empty(2, 5, 12)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        expected[..., part] = ((q[..., part] @ k[..., part].mT) / 2).softmax(-1) @ v[..., part]
    assert relative_error(networks.attention(q, k, v, 3), expected) <= TOLERANCE


@fused_too
def test_the_passes_can_be_traced_whole(fused: bool) -> None:
    """Without a break: what compilers ask for."""
    unet, controlnet = demo.parts().unet, demo.parts().controlnet
    text = features(IMAGES)
    control = control_of(inputs_of(controlnet, TIMESTEPS, text), SCALES)
    plain = Passes.of(unet, controlnet, fused=fused)
    trace = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    traced = Passes(trace(plain.control), trace(plain.encode), trace(plain.decode))
    actual, expected = (
        Denoiser(passes, SideStream(None))(LATENTS, inputs_of(unet, TIMESTEPS, text), control)
        for passes in (traced, plain)
    )
    assert relative_error(actual, expected) <= TOLERANCE


def test_packed_projections_are_the_three_and_store_nothing_twice() -> None:
    unet = demo.parts().unet
    own = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    pack_projections(unet)
    pack_projections(unet)  # once for all
    x = random(2, 5, own.to_q.in_features)
    parts = own.to_q, own.to_k, own.to_v
    for packed, part in zip(own.to_qkv(x).chunk(3, dim=-1), parts, strict=True):
        assert relative_error(packed, part(x)) <= TOLERANCE
    memory = own.to_qkv.weight.untyped_storage().data_ptr()
    assert all(part.weight.untyped_storage().data_ptr() == memory for part in parts)


def test_ends_are_packed_once_as_recorded_graphs_read_them_where_they_are() -> None:
    transformer = demo.parts().unet.mid_block.attentions[0]
    pack_ends(demo.parts().unet)
    end = transformer.end
    pack_ends(demo.parts().unet)
    assert transformer.end is end


@pytest.mark.parametrize(
    ("network", "key", "value"),
    [
        ("UNet", "class_embed_type", "timestep"),
        ("UNet", "addition_embed_type", "text_time"),
        ("UNet", "dual_cross_attention", True),
        ("UNet", "resnet_time_scale_shift", "scale_shift"),
        ("UNet", "in_channels", 9),
        ("UNet", "down_block_types", ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")),
        ("UNet", "norm_num_groups", None),
        ("UNet", "block_out_channels", (64, 80, 128)),
        ("UNet", "cross_attention_dim", 128),
        ("ControlNet", "global_pool_conditions", True),
        ("ControlNet", "controlnet_conditioning_channel_order", "bgr"),
        ("ControlNet", "only_cross_attention", True),
        ("ControlNet", "layers_per_block", 2),
        ("ControlNet", "in_channels", 4),
    ],
)
def test_another_architecture_is_refused_by_the_name_of_its_key(network: str, key: str, value: object) -> None:
    unet, controlnet = dict(demo.parts().unet.config), dict(demo.parts().controlnet.config)
    {"UNet": unet, "ControlNet": controlnet}[network][key] = value
    with pytest.raises(UnsupportedModelError, match=key):
        check_architecture(unet, controlnet, 96)


def test_another_text_encoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cross_attention_dim of the UNet is 96, .*hidden_size is 768"):
        check_architecture(demo.parts().unet.config, demo.parts().controlnet.config, 768)
