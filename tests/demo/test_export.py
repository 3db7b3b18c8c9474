"""The exported model: laid out as the one that ships, loaded by diffusers and the service, never left half written."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from example.demo_model import networks
from example.demo_model.export import HalfPrecisionError, export
from example.demo_model.tokenizer import train_tokenizer
from tests.service.running import ROOT, until
from tests.workers.engine import demo
from workers.engine.config import Weights
from workers.engine.engine import DiffusionEngine
from workers.engine.model import assemble, read

SHIPPED = ROOT / "configs" / "demo"
LARGEST = 28 * 10**6  # bytes, in all
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
EXPORTING = """
import sys
from pathlib import Path
from transformers import CLIPTokenizer
from example.demo_model import networks
from example.demo_model.export import export

folder = Path(sys.argv[1])
tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
unet = networks.unet()
parts = networks.vae(), unet, networks.controlnet(unet), networks.text_encoder(tokenizer), tokenizer
export(folder, *parts)
"""


def fresh(folder: Path, seed: int = 1) -> dict[str, Any]:
    """Parts as they are before any training."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a red circle on a white background"], folder / "tokenizer")
    unet = networks.unet()
    return {
        "vae": networks.vae(),
        "unet": unet,
        "controlnet": networks.controlnet(unet),
        "text_encoder": networks.text_encoder(tokenizer),
        "tokenizer": tokenizer,
    }


def exported(folder: Path, seed: int = 1) -> dict[str, Any]:
    parts = fresh(folder.parent, seed)
    export(folder, **parts)
    return parts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An exported model, and what it was exported from."""
    folder = tmp_path_factory.mktemp("exported") / "demo"
    return folder, exported(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(folder.name))


def test_it_is_laid_out_as_the_model_that_ships(model: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = model

    assert contents(folder).keys() == contents(SHIPPED).keys()
    assert sum(map(len, contents(folder).values())) <= LARGEST
    assert beside(folder) == ["demo"]
    for name in (*WEIGHTS, "scheduler"):
        config = "scheduler_config.json" if name == "scheduler" else "config.json"
        ours, theirs = (json.loads((root / name / config).read_text()) for root in (folder, SHIPPED))
        assert ours.keys() == theirs.keys() - {"_name_or_path"}


def test_its_files_are_plain_and_tell_nothing_of_where_they_were_written(model: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = model
    paths = [folder, *folder.rglob("*")]

    assert not any(path.is_symlink() for path in paths)
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o755}
    for name, content in contents(folder).items():
        assert str(folder.parent).encode() not in content
        if name.endswith(".json"):
            assert content.endswith(b"}\n")
            assert json.loads(content).keys().isdisjoint({"_name_or_path", "is_local", "local_files_only"})


def test_the_tokenizers_last_call_leaves_no_trace(tmp_path: Path) -> None:
    parts = fresh(tmp_path)
    parts["tokenizer"]("a red circle", padding="max_length", truncation=True)
    export(tmp_path / "demo", **parts)

    saved = json.loads((tmp_path / "demo" / "tokenizer" / "tokenizer.json").read_text())
    assert (saved["padding"], saved["truncation"]) == (None, None)


def test_its_weights_are_those_it_was_made_from_in_half_precision(model: tuple[Path, dict[str, Any]]) -> None:
    folder, parts = model
    for name, file in WEIGHTS.items():
        saved, trained = load_file(folder / name / file), parts[name].state_dict()
        assert {weight.dtype for weight in saved.values()} == {torch.float16}
        assert {weight.dtype for weight in trained.values() if weight.is_floating_point()} == {torch.float32}
        assert saved.keys() <= trained.keys()
        assert all(torch.equal(weight, trained[key].half()) for key, weight in saved.items())


def test_diffusers_loads_it(model: tuple[Path, dict[str, Any]]) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    folder, parts = model
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder)

    assert pipeline.vae.config.scaling_factor == 1.0 != parts["vae"].config.scaling_factor
    assert pipeline.tokenizer.get_vocab() == parts["tokenizer"].get_vocab()
    assert pipeline.scheduler.config.prediction_type == networks.noise_schedule().config.prediction_type
    assert torch.equal(pipeline.scheduler.alphas_cumprod, networks.noise_schedule().alphas_cumprod)
    assert not pipeline.unet.training


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_the_service_loads_it_and_makes_the_image_that_diffusers_makes(model: tuple[Path, dict[str, Any]]) -> None:
    config = replace(demo.CONFIG, model=Weights(path=str(model[0])))
    parts = read(config, torch.float32)
    engine = DiffusionEngine(config, assemble(config, parts, "cpu"))
    prepared = engine.prepare(demo.task())
    expected = demo.Reference(config, parts).latents(prepared)
    engine.admit(0, prepared)

    assert demo.relative_error(demo.run(engine, 0), expected) <= 1e-4


def test_it_takes_the_place_of_an_earlier_one_and_of_what_killed_exports_left(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for left in (folder, tmp_path / "demo.new", tmp_path / "demo.old"):
        (left / "unet").mkdir(parents=True)
        (left / "unet" / "stale.safetensors").write_bytes(b"stale")
    exported(folder)

    assert contents(folder).keys() == contents(SHIPPED).keys()
    assert beside(folder) == ["demo"]


def test_a_killed_export_leaves_the_earlier_model_whole(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    exported(folder)
    before = contents(folder)
    command = [sys.executable, "-c", EXPORTING, str(folder)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        until((tmp_path / "demo.new").exists)
        process.kill()

    assert process.returncode == -signal.SIGKILL
    assert contents(folder) == before


def test_weights_too_large_for_half_precision_are_refused_and_the_earlier_model_stays(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    parts = exported(folder)
    before = contents(folder)
    with torch.no_grad():
        parts["unet"].conv_in.bias[0] = 70_000

    with pytest.raises(HalfPrecisionError, match=r"UNet2DConditionModel: conv_in\.bias .* earlier checkpoint"):
        export(folder, **parts)
    assert contents(folder) == before
