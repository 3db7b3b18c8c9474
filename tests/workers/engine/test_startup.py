"""The files that are read ahead are exactly those that are loaded later."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.engine.demo import CONFIG, FOLDER
from workers.engine.config import Lora, Weights
from workers.engine.weights import files, read_ahead

NETWORKS = ("unet", "controlnet", "vae")
PARTS = (*(f"{name}/diffusion_pytorch_model" for name in NETWORKS), "text_encoder/model")


def folder(root: Path, *endings: str) -> Path:
    for part in PARTS:
        for ending in endings:
            path = root / f"{part}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
    (root / "unet/config.json").write_text("{}")
    return root


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_every_file_of_the_model_is_read() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors"))
    before = bytes_read()
    read_ahead(CONFIG, "cpu").join()
    assert bytes_read() - before >= size


@pytest.mark.parametrize(("device", "ending"), [("cpu", ".safetensors"), ("cuda:0", ".fp16.safetensors")])
def test_of_two_precisions_it_is_the_one_that_the_device_computes_in(tmp_path: Path, device: str, ending: str) -> None:
    weights = Weights(path=str(folder(tmp_path, ".safetensors", ".fp16.safetensors")))
    found = files(replace(CONFIG, model=weights, dtype="float32" if device == "cpu" else "auto"), device)
    assert {path.relative_to(tmp_path) for path in found} == {Path(f"{part}{ending}") for part in PARTS}


def test_a_controlnet_of_its_own_and_loras_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"weights")
    weights = Weights(path=str(folder(tmp_path / "model", ".safetensors")))
    control = folder(tmp_path / "other", ".safetensors") / "controlnet"
    (control / "config.json").write_text("{}")
    lora = Lora(path=str(tmp_path), file="lora.safetensors")
    found = list(files(replace(CONFIG, model=weights, controlnet=Weights(path=str(control)), loras=[lora]), "cpu"))
    assert control / "diffusion_pytorch_model.safetensors" in found
    assert tmp_path / "lora.safetensors" in found
    assert len(found) == 5


def test_missing_files_are_reported_by_the_loader(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")
    read_ahead(replace(CONFIG, model=Weights(path=str(tmp_path))), "cpu").join()  # an exception would fail the test
