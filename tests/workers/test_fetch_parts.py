"""Which files of a repository are read, and which are refused for what they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from app.settings import load
from tests.workers.fetch_command import DEMO, WEIGHTS, controlnet, fetch_from, files_in, run_here, weights
from tests.workers.hub import COMMIT, Hub
from workers import fetch
from workers.engine.config import Weights
from workers.engine.weights import absent
from workers.weights.messages import FetchError
from workers.weights.repository import texts_of, weights_of

MODEL_FILES = (
    ".gitattributes",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/model.fp16.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


def test_of_a_model_half_precision_is_taken() -> None:
    assert weights_of("model", MODEL_FILES, "float16") == {
        "unet/diffusion_pytorch_model.safetensors": ["unet/diffusion_pytorch_model.fp16.safetensors"],
        "vae/diffusion_pytorch_model.safetensors": ["vae/diffusion_pytorch_model.fp16.safetensors"],
        "text_encoder/model.safetensors": ["text_encoder/model.fp16.safetensors"],
    }


def test_the_texts_beside_the_weights_are_taken() -> None:
    assert texts_of("model", MODEL_FILES) == [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/vocab.json",
    ]


def test_full_precision_is_taken_where_it_is_wanted() -> None:
    taken = weights_of("model", MODEL_FILES, "float32")
    assert taken["unet/diffusion_pytorch_model.safetensors"] == ["unet/diffusion_pytorch_model.safetensors"]


def test_without_half_precision_the_full_is_taken() -> None:
    assert weights_of("controlnet", ["config.json", WEIGHTS], "float16") == {WEIGHTS: [WEIGHTS]}


def test_shards_are_taken_if_all_are_there() -> None:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]

    assert weights_of("controlnet", shards, "float16") == {WEIGHTS: shards}
    with pytest.raises(FetchError, match=r"no diffusion_pytorch_model\.safetensors"):
        weights_of("controlnet", shards[1:], "float16")


def test_a_repository_of_another_layout_is_refused() -> None:
    with pytest.raises(FetchError, match=r"no vae/config\.json"):
        texts_of("model", [name for name in MODEL_FILES if name != "vae/config.json"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer, not the file itself: run git lfs pull",
        ),
        (b"PK\x03\x04rest", "a zip, as torch.save writes: a pickle, which can run any code and is not read"),
        (b"\x80\x02}q\x00.", "a pickle, which can run any code and is not read"),
        (weights()[:-1], "damaged or cut off"),
    ],
)
def test_files_that_are_not_safetensors_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str
) -> None:
    assert run_here(tmp_path, controlnet() | {WEIGHTS: content}) == 1
    assert f"{WEIGHTS} is not a complete safetensors file: it is {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conditioning_channels": 1}, "conditioning_channels of the ControlNet is 1; this engine runs 3 only"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type of the ControlNet is 'text_time'"),
    ],
)
def test_another_architecture_is_told_before_its_weights_are_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], told: str
) -> None:
    config = json.loads(controlnet()["config.json"]) | changes
    assert run_here(tmp_path, {"config.json": json.dumps(config).encode(), WEIGHTS: b"not read"}) == 1
    assert told in capsys.readouterr().err


VAE = f"""
engine:
  model: {{path: {DEMO}}}
  controlnet: {{path: {DEMO / "controlnet"}}}
  vae: {{path: some/vae, revision: {COMMIT}}}
"""
TINY = json.dumps({"_class_name": "AutoencoderTiny", "latent_channels": 4}).encode()


def test_of_a_vae_only_the_weights_and_their_description_are_fetched(tmp_path: Path) -> None:
    others = ("README.md", "diffusion_pytorch_model.bin", "taesd_decoder.safetensors", "taesd_encoder.safetensors")
    hub = Hub({"some/vae": {"config.json": TINY, WEIGHTS: weights()} | dict.fromkeys(others, b"other")})
    done = fetch_from(hub, tmp_path, config=VAE)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / f"vae-some--vae-{COMMIT[:12]}-float16"
    assert done.stdout.splitlines()[-1] == f"engine.vae: {folder}"
    assert files_in(folder) == {"config.json", WEIGHTS, "contour.json"}
    assert {asked.file for asked in hub.asked} == {"config.json", WEIGHTS}
    located = load(tmp_path / "my.yaml", {"CONTOUR_WORKERS__MODELS": str(tmp_path / "models")}).engine
    assert (located.vae, absent(located)) == (Weights(path=str(folder)), [])
    assert absent(load(tmp_path / "my.yaml", {}).engine) == ["engine.vae: some/vae"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (TINY.replace(b"latent", b"out"), "out_channels of the VAE is 4; this engine runs 3 only"),
        (b'{"_class_name": "VQModel"}', "is 'VQModel'; this engine runs AutoencoderKL or AutoencoderTiny"),
    ],
)
def test_another_vae_is_told_before_its_weights_are_fetched(tmp_path: Path, config: bytes, told: str) -> None:
    hub = Hub({"some/vae": {"config.json": config, WEIGHTS: weights()}})
    done = fetch_from(hub, tmp_path, config=VAE)
    assert (done.returncode, told in done.stderr) == (1, True)
    assert {asked.file for asked in hub.asked} == {"config.json"}


def test_a_repository_of_pickles_is_refused(tmp_path: Path) -> None:
    hub = Hub({"some/controlnet": {"config.json": b"{}", "diffusion_pytorch_model.bin": b"\x80"}})
    done = fetch_from(hub, tmp_path)
    assert done.returncode == 1
    assert "only pickles such as diffusion_pytorch_model.bin, which can run any code and are not read" in done.stderr
    assert hub.asked == []


def test_numbers_too_large_for_half_precision_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = save({"numbers": torch.tensor([1.0, 1e5])}, {"format": "pt"})
    assert run_here(tmp_path, controlnet() | {WEIGHTS: large}) == 1
    assert (
        "numbers has values up to 100000, which float16 cannot hold: choose another --dtype" in capsys.readouterr().err
    )
    assert run_here(tmp_path, {}, "--dtype", "float32") == 0


def test_numbers_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = save({"numbers": torch.tensor([1.0, torch.nan])}, {"format": "pt"})
    assert run_here(tmp_path, controlnet() | {WEIGHTS: none}) == 1
    assert "has NaN or infinite values: the file is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [
        ("some/model", 2, ".revision is missing, but must be the repository's commit: 40 digits of 0-9 and a-f\n"),
        ("./model.ckpt", 2, ".path is './model.ckpt', a pickle, which can run any code"),
        ("models/x.safetensors", 2, ".path is 'models/x.safetensors': write ./models/x.safetensors if"),
        ("./gone", 1, ": {folder}/gone: there is no such folder"),
        (".", 1, ": {folder}: there is no unet/config.json in it\n"),
    ],
)
def test_a_model_that_cannot_be_meant_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, code: int, told: str
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"engine: {{model: {{path: {model}}}, controlnet: {{path: .}}}}")
    assert fetch.main([str(path)]) == code
    said = capsys.readouterr().err.removeprefix(f"{path}: ")
    assert said.startswith(f"engine.model{told.format(folder=tmp_path)}")
