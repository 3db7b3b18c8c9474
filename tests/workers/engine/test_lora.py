"""LoRA fusion against that of diffusers and peft, on the small model."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, Reference, relative_error
from workers.engine.config import Lora
from workers.engine.engine import DiffusionEngine
from workers.engine.lora import LoraError, _layers, fuse
from workers.engine.model import assemble, read
from workers.engine.weights import MissingWeightsError

RANK, ALPHA, SCALE = 4, 2.5, 0.7
# Those of an LCM-LoRA: train_lcm_distill_lora_sd_wds.py, in diffusers' examples/consistency_distillation.
LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def chosen(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers of all kinds that LoRAs change."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(LAYERS)
    }


def random_lora(unet: nn.Module, key: Callable[[str, str], str]) -> dict[str, Tensor]:
    """Changes of a tenth or so of the weights' own size."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in chosen(unet).items():
        out, *rest = layer.weight.shape
        ones = [1] * len(rest[1:])
        strength = float(layer.weight.std())
        tensors[key(name, "down")] = torch.randn(RANK, *rest, generator=generator) * strength
        tensors[key(name, "up")] = torch.randn(out, RANK, *ones, generator=generator) * 0.1
    return tensors


def kohya(name: str, part: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}.lora_{part}.weight"


def peft(name: str, part: str) -> str:
    return f"unet.{name}.lora_{'A' if part == 'down' else 'B'}.weight"


def file_of(tensors: dict[str, Tensor], folder: Path, **metadata: str) -> Path:
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata or None)
    return path


def fresh() -> Any:
    return read(CONFIG, torch.float32)


@pytest.fixture
def parts() -> Any:
    """Weights that a test may change."""
    return fresh()


def with_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {key.partition(".")[0] for key in tensors}
    return tensors | {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}


def by_diffusers(source: dict[str, Tensor] | Path) -> Any:
    """Parts into which diffusers has fused a LoRA, from its tensors or its file."""
    parts = fresh()
    pipeline = Reference(CONFIG, parts).pipeline()
    pipeline.load_lora_weights(dict(source) if isinstance(source, dict) else str(source))
    pipeline.fuse_lora(lora_scale=SCALE)
    pipeline.unload_lora_weights()
    return parts


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_weights_come_out_as_diffusers_fuses_them(form: str, parts: Any, tmp_path: Path) -> None:
    plain = random_lora(parts.unet, kohya if form == "kohya" else peft)
    tensors = with_alpha(plain) if form == "kohya" else plain
    before = {name: layer.weight.clone() for name, layer in chosen(parts.unet).items()}
    assert fuse(file_of(tensors, tmp_path), SCALE, parts.unet, parts.text_encoder) == len(before)
    expected = dict(by_diffusers(tensors).unet.named_parameters())
    for name, weight in parts.unet.named_parameters():
        assert relative_error(weight, expected[name]) <= 1e-6
    assert all(relative_error(layer.weight, before[name]) > 1e-2 for name, layer in chosen(parts.unet).items())


def test_an_image_in_four_steps_is_diffusers(tmp_path: Path) -> None:
    tensors = with_alpha(random_lora(demo.parts().unet, kohya))
    path = file_of(tensors, tmp_path)
    config = replace(
        demo.with_sampler("LCMScheduler"), guidance_scale=1.0, loras=[Lora(path=str(path.parent), scale=SCALE)]
    )
    engine = DiffusionEngine(config, assemble(config, read(config, torch.float32), "cpu"))
    task = demo.task(5)
    prepared = engine.prepare(task)
    expected = Reference(config, by_diffusers(tensors)).latents(prepared, seed=task.seed)
    assert relative_error(demo.make(engine, task), expected) <= 1e-4
    plain = demo.engine(replace(config, loras=[]))
    assert relative_error(demo.make(plain, task), expected) > 1e-2


@pytest.mark.parametrize("before", ["lora_te_", "lora_te1_", "text_encoder."])
def test_the_text_encoder_comes_out_as_diffusers_fuses_it(before: str, parts: Any, tmp_path: Path) -> None:
    layers = {name: layer for name, layer in parts.text_encoder.named_modules() if isinstance(layer, nn.Linear)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in layers.items():
        path = f"text_model.{name.removeprefix('text_model.')}"
        key = f"{before}{path}.lora_{{}}.weight" if before.endswith(".") else kohya(path, "{}")
        key = key.replace("lora_unet_", before)
        down, up = ("A", "B") if before.endswith(".") else ("down", "up")
        tensors[key.format(down)] = torch.randn(RANK, layer.in_features, generator=generator) * 0.1
        tensors[key.format(up)] = torch.randn(layer.out_features, RANK, generator=generator) * 0.1
    plain = {name: layer.weight.clone() for name, layer in layers.items()}
    assert fuse(file_of(tensors, tmp_path), SCALE, parts.unet, parts.text_encoder) == len(layers)
    expected = by_diffusers(tensors).text_encoder
    for name, layer in layers.items():
        assert relative_error(layer.weight, expected.get_submodule(name).weight) <= 1e-6
        assert relative_error(layer.weight, plain[name]) > 1e-3


def test_alpha_in_the_metadata_counts_as_with_diffusers(parts: Any, tmp_path: Path) -> None:
    settings = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.target_modules": list(chosen(parts.unet))}
    path = file_of(random_lora(parts.unet, peft), tmp_path, lora_adapter_metadata=json.dumps(settings))
    fuse(path, SCALE, parts.unet, parts.text_encoder)
    expected = by_diffusers(path).unet
    for name, layer in chosen(parts.unet).items():
        assert relative_error(layer.weight, expected.get_submodule(name).weight) <= 1e-6


def test_several_are_added_up(parts: Any, tmp_path: Path) -> None:
    path = file_of(random_lora(parts.unet, peft), tmp_path)
    fuse(path, 0.5, parts.unet, parts.text_encoder)
    fuse(path, 0.25, parts.unet, parts.text_encoder)
    config = replace(CONFIG, loras=[Lora(path=str(tmp_path), scale=0.75)])
    at_once = dict(read(config, torch.float32).unet.named_parameters())
    for name, weight in parts.unet.named_parameters():
        assert relative_error(weight, at_once[name]) <= 1e-6


def test_the_sum_is_made_in_float32_whatever_the_weights_are(parts: Any, tmp_path: Path) -> None:
    path = file_of(random_lora(parts.unet, peft), tmp_path)
    half = copy.deepcopy(parts.unet).half()
    exact = copy.deepcopy(half).float()
    fuse(path, SCALE, half, parts.text_encoder)
    fuse(path, SCALE, exact, parts.text_encoder)
    for name, layer in chosen(half).items():
        assert torch.equal(layer.weight, exact.get_submodule(name).weight.half())


def test_names_are_unambiguous_in_stable_diffusion() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    assert len(_layers(unet)) == sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in unet.modules())
    assert len(chosen(unet)) == 278


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_mid_block_nowhere.lora_down.weight", "the UNet has no layer mid_block_nowhere"),
        ("lora_unet_conv_in.dora_scale", "the key lora_unet_conv_in.dora_scale is not of a plain LoRA"),
        ("lora_unet_conv_in.lokr_w1", "the key lora_unet_conv_in.lokr_w1 is not of a plain LoRA"),
        ("lora_unet_conv_in.lora_down.weight", "conv_in has only down; both down and up are needed"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_by_file_and_key(
    key: str, message: str, parts: Any, tmp_path: Path
) -> None:
    path = file_of({key: torch.zeros(1, 4, 3, 3)}, tmp_path)
    with pytest.raises(LoraError, match=message) as refused:
        fuse(path, 1.0, parts.unet, parts.text_encoder)
    assert str(path) in str(refused.value)


def test_other_shapes_are_refused(parts: Any, tmp_path: Path) -> None:
    changes = {kohya("conv_in", "down"): torch.zeros(2, 5, 3, 3), kohya("conv_in", "up"): torch.zeros(64, 2, 1, 1)}
    with pytest.raises(LoraError, match=r"conv_in: down \(2, 5, 3, 3\) and up .* do not fit a weight of"):
        fuse(file_of(changes, tmp_path), 1.0, parts.unet, parts.text_encoder)


@pytest.mark.parametrize("setting", ["use_dora", "use_rslora", "alpha_pattern"])
def test_settings_that_are_not_read_are_not_ignored(setting: str, parts: Any, tmp_path: Path) -> None:
    settings = json.dumps({"unet.lora_alpha": 4, f"unet.{setting}": {"conv_in": 2}})
    path = file_of(random_lora(parts.unet, peft), tmp_path, lora_adapter_metadata=settings)
    with pytest.raises(LoraError, match=f"unet.{setting} is set in its metadata, which is not supported"):
        fuse(path, 1.0, parts.unet, parts.text_encoder)


def test_a_layer_that_is_named_in_both_ways_is_refused(parts: Any, tmp_path: Path) -> None:
    tensors = random_lora(parts.unet, kohya) | random_lora(parts.unet, peft)
    with pytest.raises(LoraError, match=r"the key \S+ repeats a part of the layer that another key has"):
        fuse(file_of(tensors, tmp_path), 1.0, parts.unet, parts.text_encoder)


@pytest.mark.parametrize(("content", "told"), [(b"not tensors", "it cannot be read: "), (b"", "it cannot be read: ")])
def test_a_broken_file_is_said(content: bytes, told: str, parts: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraError, match=rf"broken\.safetensors: {told}"):
        fuse(path, 1.0, parts.unet, parts.text_encoder)


def test_a_file_without_changes_is_said(parts: Any, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="it is empty"):
        fuse(file_of({}, tmp_path), 1.0, parts.unet, parts.text_encoder)


def test_a_missing_lora_is_said(tmp_path: Path) -> None:
    config = replace(CONFIG, loras=[Lora(path=str(tmp_path), file="other.safetensors")])
    with pytest.raises(MissingWeightsError, match=r"other\.safetensors is missing"):
        read(config, torch.float32)
