import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.workers.engine import demo
from workers.engine import build
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig, Weights
from workers.engine.engine import DiffusionEngine
from workers.engine.model import dtype_of, load, read, to_pixels
from workers.engine.weights import MissingWeightsError

NETWORK_FILE = "diffusion_pytorch_model.safetensors"
HALF_FILE = "diffusion_pytorch_model.fp16.safetensors"


def copy_of_the_demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo.FOLDER, tmp_path / "model"))


def configured(folder: Path, controlnet: Path | None = None) -> EngineConfig:
    return replace(
        demo.CONFIG, model=Weights(path=str(folder)), controlnet=Weights(path=str(controlnet)) if controlnet else None
    )


@pytest.mark.parametrize(
    "missing",
    [
        "unet/config.json",
        f"unet/{NETWORK_FILE}",
        f"controlnet/{NETWORK_FILE}",
        f"vae/{NETWORK_FILE}",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named_with_the_command_that_gets_it(tmp_path: Path, missing: str) -> None:
    folder = copy_of_the_demo(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(MissingWeightsError, match=f"{missing} is missing; .*python -m workers.fetch CONFIG"):
        build(configured(folder), "cpu")


def test_a_repository_that_was_not_fetched_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = replace(demo.CONFIG, model=Weights(path="nobody/nothing", revision="0" * 40))
    with pytest.raises(MissingWeightsError, match=f"nobody/nothing at revision {'0' * 40} is missing"):
        read(config, torch.float32)


def test_a_fetched_repository_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(demo.FOLDER, tmp_path / "models--some--model" / "snapshots" / ("1" * 40))
    parts = read(replace(demo.CONFIG, model=Weights(path="some/model", revision="1" * 40)), torch.float32)
    assert parts.unet.config.cross_attention_dim == 96


def test_weights_go_straight_to_the_device() -> None:
    parts = read(demo.CONFIG, torch.float16, "meta")  # where there is no memory that they could have come from
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        assert {(weight.device.type, weight.dtype) for weight in part.parameters()} == {("meta", torch.float16)}


def test_no_model_at_all_is_said() -> None:
    with pytest.raises(MissingWeightsError, match=r"engine\.model is missing"):
        read(replace(demo.CONFIG, model=None), torch.float32)


def test_the_controlnet_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = copy_of_the_demo(tmp_path)
    shutil.move(folder / "controlnet", tmp_path / "elsewhere")
    parts = read(configured(folder, tmp_path / "elsewhere"), torch.float32)
    assert parts.controlnet.dtype == torch.float32


@pytest.mark.parametrize(
    ("full", "dtype", "taken"), [(False, torch.float32, 1), (True, torch.float32, 0), (True, torch.bfloat16, 1)]
)
def test_half_precision_files_are_read_unless_full_ones_are_wanted(
    tmp_path: Path, full: bool, dtype: torch.dtype, taken: float
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of_the_demo(tmp_path)
    weights = {name: torch.ones_like(tensor) for name, tensor in load_file(folder / "unet" / NETWORK_FILE).items()}
    save_file(weights, folder / "unet" / HALF_FILE)
    if full:
        save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, folder / "unet" / NETWORK_FILE)
    else:
        (folder / "unet" / NETWORK_FILE).unlink()
    unet = read(configured(folder), dtype).unet
    assert unet.dtype == dtype
    assert unet.conv_in.weight.unique().tolist() == [taken]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cuda:0", torch.float16),
        ("auto", "cpu", torch.float32),
        ("auto", "cpu with bfloat16", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_the_number_format_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, expected: torch.dtype
) -> None:
    device, _, extra = device.partition(" with ")
    monkeypatch.setattr("workers.engine.config.computes_in_bfloat16", lambda: bool(extra))
    assert dtype_of(replace(demo.CONFIG, dtype=name), device) == expected  # type: ignore[arg-type]


def test_the_weights_are_for_inference_only() -> None:
    demo.engine()
    parts = demo.parts()
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_pixels_are_rounded_to_the_nearest_and_clamped() -> None:
    from diffusers.image_processor import VaeImageProcessor

    decoded = torch.linspace(-1.2, 1.2, 3 * 40 * 25).view(3, 40, 25)
    expected = VaeImageProcessor().postprocess(decoded[None], output_type="np")[0]
    assert to_pixels(decoded).tolist() == (expected * 255).round().astype("uint8").tolist()


def test_bfloat16_works_on_the_cpu() -> None:
    rough, exact = (pixels_of(replace(demo.CONFIG, dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert demo.psnr(rough, exact) > 25


def pixels_of(config: EngineConfig) -> Pixels:
    engine = DiffusionEngine(config, load(config, "cpu"))
    engine.admit(0, engine.prepare(demo.task()))
    demo.run(engine, 0)
    return engine.collect(engine.finish(0))
