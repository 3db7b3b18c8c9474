"""Finding photographs in folders laid out as installed packages are."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from example.demo_model import photograph_sources as module
from example.demo_model.photograph_sources import GROUND, VARIABLE, photographs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched, and nothing else is: no package counts as installed."""
    monkeypatch.setattr(module, "SHARE", tmp_path / "nothing")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def _write(path: Path, height: int = 80, width: int = 100, channels: int = 4) -> None:
    """A red picture; one with four channels is transparent in its left half."""
    pixels = np.zeros((height, width, channels), np.uint8)
    pixels[..., 2] = 255
    if channels == 4:
        pixels[:, width // 2 :, 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def test_a_stamp_lies_on_grey_and_its_alpha_is_the_figure(folder: Path) -> None:
    _write(folder / "tuxpaint/stamps/animals/birds/owl.png")
    (owl,) = photographs()
    assert owl.name == "tuxpaint: animals/birds/owl"
    assert owl.image.dtype == np.uint8
    assert owl.image.shape == (80, 100, 3)
    assert owl.image[0, 0].tolist() == [GROUND] * 3
    assert owl.image[0, -1].tolist() == [255, 0, 0]
    assert owl.figure is not None
    assert owl.figure.dtype == np.float32
    assert owl.figure[0, 0] == 0
    assert owl.figure[0, -1] == 1


def test_a_large_one_is_scaled_down_with_its_figure(folder: Path) -> None:
    _write(folder / "tuxpaint/stamps/animals/whale.png", 200, 400)
    (whale,) = photographs(longest=100)
    assert whale.image.shape == (50, 100, 3)
    assert whale.figure is not None
    assert whale.figure.shape == (50, 100)


def test_drawings_small_ones_and_those_for_judging_are_left_out(folder: Path) -> None:
    for name in ("animals/cartoon/cat", "animals/mammals/hedgehog", "symbols/chess/king"):
        _write(folder / f"tuxpaint/stamps/{name}.png")
    _write(folder / "tuxpaint/stamps/food/nut.png", 20, 20)
    _write(folder / "skimage/data/astronaut.png", channels=3)
    _write(folder / "skimage/data/camera.png", channels=3)
    assert [each.name for each in photographs()] == ["skimage: camera"]


def test_a_folder_of_plain_images_is_read_in_order_without_figures(folder: Path) -> None:
    for name in ("street.png", "face.jpg", "astronaut.png"):
        _write(folder / name, channels=3)
    found = photographs()
    assert [each.name.split(": ")[1] for each in found] == ["face", "street"]
    assert all(each.figure is None for each in found)


def test_without_any_the_error_says_what_to_install(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"apt install tuxpaint-stamps-default.*scikit-image.*scikit-learn"):
        photographs()
