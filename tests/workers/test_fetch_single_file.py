"""Checkpoints in one file: converted to diffusers' layout, or refused by what they are."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.workers import checkpoint
from tests.workers.engine import demo, full_size
from tests.workers.fetch_command import DEMO, WEIGHTS, assert_same_image, fetch_from, files_in
from tests.workers.hub import COMMIT, Hub
from workers import fetch
from workers.config import locate
from workers.engine.config import EngineConfig, Weights
from workers.engine.weights import absent
from workers.weights import checkpoints
from workers.weights.checkpoints import SD15, SD15_REPOSITORY

UNET, VAE, TEXT, CONTROL = (DEMO / name for name in ("unet", "vae", "text_encoder", "controlnet"))
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CONFIG = """
engine:
  model: {path: ./merged.safetensors}
  controlnet: {path: ./control.safetensors}
"""


def config_of(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config


def merged() -> dict[str, Tensor]:
    """The small model as one checkpoint, with what old ones have besides."""
    tensors = checkpoint.model(
        load_file(UNET / WEIGHTS), config_of(UNET), load_file(VAE / WEIGHTS), load_file(TEXT / "model.safetensors")
    )
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    return tensors | positions | {"model_ema.decay": torch.tensor(0.5), "betas": torch.ones(1000)}


def control() -> dict[str, Tensor]:
    return checkpoint.controlnet(load_file(CONTROL / WEIGHTS), config_of(CONTROL))


def both(folder: Path) -> None:
    save_file(merged(), folder / "merged.safetensors")
    save_file(control(), folder / "control.safetensors")


def run(folder: Path, *options: str, config: str = CONFIG) -> int:
    """The command, offline, with the small model's configurations instead of Stable Diffusion's."""
    (folder / "my.yaml").write_text(config)
    return fetch.main([str(folder / "my.yaml"), "--to", str(folder / "models"), "--like", str(DEMO), *options])


def located(folder: Path, engine: EngineConfig) -> EngineConfig:
    return locate(engine, folder, str(folder / "models"))


ENGINE = replace(
    demo.CONFIG, model=Weights(path="./merged.safetensors"), controlnet=Weights(path="./control.safetensors")
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    both(folder)
    assert run(folder) == 0
    return folder


def test_a_checkpoint_becomes_the_model_that_it_was_made_of(converted: Path) -> None:
    engine = located(converted, ENGINE)
    assert engine.model is not None
    assert engine.controlnet is not None
    model, controlnet = Path(engine.model.path), Path(engine.controlnet.path)
    for name in (f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"):
        assert_equal(load_file(model / name), load_file(DEMO / name))
    assert_equal(load_file(controlnet / WEIGHTS), load_file(CONTROL / WEIGHTS))
    taken = {name for name in files_in(DEMO) if not name.startswith(("controlnet/", "model_index", "about"))}
    assert files_in(model) == taken | {"contour.json"}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in expected.items())


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_it_makes_the_same_image(converted: Path) -> None:
    assert_same_image(located(converted, ENGINE))


def test_a_checkpoint_that_was_not_converted_is_absent(tmp_path: Path) -> None:
    both(tmp_path)
    assert absent(located(tmp_path, ENGINE)) == [
        f"engine.model: {tmp_path}/merged.safetensors",
        f"engine.controlnet: {tmp_path}/control.safetensors",
    ]
    somewhere = EngineConfig(model=Weights(path="some/x", revision=COMMIT, file="x.safetensors"), controlnet=None)
    assert absent(located(tmp_path, somewhere)) == ["engine.model: some/x (x.safetensors)"]


def test_a_checkpoint_that_has_changed_is_converted_anew(converted: Path) -> None:
    path = converted / "control.safetensors"
    was = path.stat().st_mtime_ns
    os.utime(path, ns=(was, was + 1))
    assert absent(located(converted, ENGINE)) == [f"engine.controlnet: {path}"]
    os.utime(path, ns=(was, was))
    assert absent(located(converted, ENGINE)) == []


VAE_KEY = "first_stage_model."


@pytest.mark.parametrize("alone", [True, False])
def test_the_vae_of_a_checkpoint_alone_or_with_its_model_becomes_what_it_was(tmp_path: Path, alone: bool) -> None:
    tensors = merged()
    if alone:
        tensors = {key.removeprefix(VAE_KEY): part for key, part in tensors.items() if key.startswith(VAE_KEY)}
    save_file(tensors, tmp_path / "vae.safetensors")
    config = (
        f"engine:\n  model: {{path: {DEMO}}}\n  controlnet: {{path: {CONTROL}}}\n  vae: {{path: ./vae.safetensors}}"
    )
    assert run(tmp_path, config=config) == 0
    vae = located(tmp_path, EngineConfig(vae=Weights(path="./vae.safetensors"))).vae
    assert vae is not None
    assert files_in(Path(vae.path)) == {"config.json", WEIGHTS, "contour.json"}
    assert_equal(load_file(Path(vae.path) / WEIGHTS), load_file(VAE / WEIGHTS))


def test_converted_weights_do_not_need_the_original(converted: Path, tmp_path: Path) -> None:
    hidden = (converted / "merged.safetensors").rename(tmp_path / "merged.safetensors")
    assert absent(located(converted, ENGINE)) == []
    hidden.rename(converted / "merged.safetensors")


# --------------------------------------------------------------------------------------------- repositories, tokenizers


@pytest.fixture
def small_sd15(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model's architecture in the place of Stable Diffusion's: without a tokenizer, as that has none."""
    folder = shutil.copytree(DEMO, tmp_path / "sd15", ignore=shutil.ignore_patterns("tokenizer", "*.safetensors"))
    monkeypatch.setattr("workers.weights.prepare.SD15", folder)


@pytest.mark.usefixtures("small_sd15")
def test_a_checkpoint_in_a_repository_gets_the_tokenizer_of_stable_diffusion(tmp_path: Path) -> None:
    save_file(merged(), tmp_path / "x.safetensors")
    config = f"""
engine:
  model: {{path: some/merged, revision: {COMMIT}, file: x.safetensors}}
  controlnet: {{path: {CONTROL}}}
"""
    tokenizer = {f"tokenizer/{path.name}": path.read_bytes() for path in (DEMO / "tokenizer").iterdir()}
    hub = Hub(
        {"some/merged": {"x.safetensors": (tmp_path / "x.safetensors").read_bytes(), "x.ckpt": b""}}
        | {SD15_REPOSITORY.path: tokenizer},
        commits={SD15_REPOSITORY.path: str(SD15_REPOSITORY.revision)},
    )
    done = fetch_from(hub, tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / f"model-some--merged-{COMMIT[:12]}-x-float16"
    assert done.stdout.splitlines()[0] == f"engine.model: {folder}"
    assert (folder / "tokenizer/tokenizer.json").read_bytes() == (DEMO / "tokenizer/tokenizer.json").read_bytes()
    assert {asked.file for asked in hub.asked} == {"x.safetensors", *tokenizer}


@pytest.mark.usefixtures("small_sd15")
def test_without_a_network_a_tokenizer_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "my.yaml").write_text(CONFIG)
    assert fetch.main([str(tmp_path / "my.yaml"), "--to", str(tmp_path / "models")]) == 1
    told = capsys.readouterr().err
    assert f"a single-file checkpoint has no tokenizer, so that of {SD15_REPOSITORY.path} is used, but: HF_HUB" in told
    assert "Name a folder that has one with --like" in told
    assert run(tmp_path) == 0


@pytest.mark.usefixtures("small_sd15")
def test_a_hub_without_the_tokenizer_is_told(tmp_path: Path) -> None:
    both(tmp_path)
    done = fetch_from(Hub(), tmp_path, config=CONFIG)
    assert done.returncode == 1
    assert f"so that of {SD15_REPOSITORY.path} is used, but: there is no such repository" in done.stderr


@pytest.mark.usefixtures("small_sd15")
def test_the_tokenizer_of_a_prepared_model_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(DEMO, tmp_path / "given" / SD15_REPOSITORY.path)
    sd15 = f"model: {{path: {SD15_REPOSITORY.path}, revision: {SD15_REPOSITORY.revision}}}"
    (tmp_path / "sd15.yaml").write_text(f"engine:\n  {sd15}\n  controlnet: {{path: {CONTROL}}}\n")
    to = ("--to", str(tmp_path / "models"))
    assert fetch.main([str(tmp_path / "sd15.yaml"), "--from", str(tmp_path / "given"), *to]) == 0
    (tmp_path / "my.yaml").write_text(CONFIG)
    assert fetch.main([str(tmp_path / "my.yaml"), *to]) == 0
    assert absent(located(tmp_path, ENGINE)) == []


def test_a_file_that_a_repository_has_not_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    config = f"""
engine:
  model: {{path: some/merged, revision: {COMMIT}, file: y.safetensors}}
  controlnet: {{path: {CONTROL}}}
"""
    done = fetch_from(Hub({"some/merged": {"x.safetensors": b"", "y.ckpt": b""}}), tmp_path, config=config)
    assert done.returncode == 1
    assert "the repository has no y.safetensors; its safetensors files: x.safetensors\n" in done.stderr


# ------------------------------------------------------------------------------------------------------------ refusals


def wide(key: str, *shape: int) -> dict[str, Tensor]:
    return {key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (wide("conditioner.embedders.1.model.logit_scale", 1), "is Stable Diffusion XL, which"),
        (wide("cond_stage_model.model.logit_scale", 1), "is Stable Diffusion 2, which"),
        (wide(FIRST, 64, 9, 3, 3), "is an inpainting model, which"),
        (wide(FIRST, 64, 8, 3, 3), "is InstructPix2Pix, which"),
        (
            wide("lora_unet_down_blocks_0.lora_up.weight", 4, 4),
            "is a LoRA, which cannot be engine.model: name it under engine.loras",
        ),
        (wide("double_blocks.0.img_attn.qkv.weight", 4, 4), "is Flux, which"),
        (
            wide("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 8, 1024),
            "is made for Stable Diffusion 2, which",
        ),
    ],
)
def test_another_kind_of_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Tensor], told: str
) -> None:
    save_file(wide(FIRST, 64, 4, 3, 3) | changes, tmp_path / "merged.safetensors")
    assert run(tmp_path) == 1
    assert f"engine.model: {tmp_path}/merged.safetensors: it {told}" in capsys.readouterr().err


def test_a_model_of_another_size_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both(tmp_path)
    like = shutil.copytree(SD15, tmp_path / "sd15")
    shutil.copytree(DEMO / "tokenizer", like / "tokenizer")
    assert run(tmp_path, "--like", str(like)) == 1
    assert ": its UNet has no down_blocks.0.attentions.0.norm.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("first_stage_model.", "has no VAE (first_stage_model.*): choose a checkpoint that has one"),
        ("cond_stage_model.", "has no text encoder (cond_stage_model.transformer.*): choose a checkpoint that has one"),
        ("model.diffusion_model.", "is of an unknown kind; it cannot be engine.model"),
        ("model.diffusion_model.out.2.bias", ": its UNet has no conv_out.bias"),
    ],
)
def test_missing_parts_of_a_checkpoint_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, told: str
) -> None:
    tensors = {key: tensor for key, tensor in merged().items() if not key.startswith(missing)}
    save_file(tensors, tmp_path / "merged.safetensors")
    assert run(tmp_path) == 1
    assert told in capsys.readouterr().err


def test_a_model_and_a_controlnet_are_not_taken_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both(tmp_path)
    swapped = CONFIG.replace("merged", "x").replace("control.", "merged.").replace("x.", "control.")
    assert run(tmp_path, config=swapped) == 1
    assert "it is a ControlNet: name it under engine.controlnet" in capsys.readouterr().err
    assert run(tmp_path, config=CONFIG.replace("control.", "merged.")) == 1
    assert "it is a model: name it under engine.model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("decoder.mid.block_1.conv1.weight", "it is a VAE: name it under engine.vae; it cannot be engine.model"),
        (
            "decoder.layers.0.weight",
            "it is a VAE in diffusers' layout: name its folder, which has a config.json, under",
        ),
    ],
)
def test_a_vae_is_not_taken_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, told: str
) -> None:
    save_file(wide(key, 4, 4), tmp_path / "merged.safetensors")
    assert run(tmp_path) == 1
    assert told in capsys.readouterr().err


def test_a_checkpoint_may_hold_a_model_and_a_controlnet(tmp_path: Path) -> None:
    save_file(merged() | control(), tmp_path / "merged.safetensors")
    assert run(tmp_path, config=CONFIG.replace("control.", "merged.")) == 0
    engine = located(tmp_path, replace(ENGINE, controlnet=ENGINE.model))
    assert engine.model is not None
    assert engine.controlnet is not None
    assert_equal(load_file(Path(engine.model.path) / "unet" / WEIGHTS), load_file(UNET / WEIGHTS))
    assert_equal(load_file(Path(engine.controlnet.path) / WEIGHTS), load_file(CONTROL / WEIGHTS))


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 1
    assert "there is no such file" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- the real architecture


@pytest.mark.parametrize("kind", ["unet", "controlnet", "vae", "text_encoder"])
def test_the_shipped_architecture_is_stable_diffusions(kind: checkpoints.Kind) -> None:
    network = getattr(full_size.architecture(), kind)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert checkpoints.expected_shapes(kind, checkpoints.config_in(SD15, kind)) == shapes
    assert sum(tensor.numel() for tensor in network.parameters()) == full_size.PARAMETERS[kind]


def test_the_original_names_of_stable_diffusion_are_converted() -> None:
    """On tensors without memory, so that the full size costs nothing."""
    parts, config = full_size.architecture(), checkpoints.config_in(SD15, "unet")
    original = checkpoint.model(
        parts.unet.state_dict(), config, parts.vae.state_dict(), parts.text_encoder.state_dict()
    ) | checkpoint.controlnet(parts.controlnet.state_dict(), config)
    assert {
        FIRST,
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "model.diffusion_model.input_blocks.9.0.op.weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight",
        "control_model.zero_convs.11.0.weight",
        "control_model.input_hint_block.14.bias",
    } <= original.keys()
    for kind, prefix in checkpoints.PREFIXES.items():
        config = checkpoints.config_in(SD15, kind)
        tensors = {key: tensor for key, tensor in original.items() if key.startswith(prefix)}
        found = checkpoints.renamed(kind, tensors, config)
        assert list(checkpoints.differences(checkpoints.expected_shapes(kind, config), found)) == []
