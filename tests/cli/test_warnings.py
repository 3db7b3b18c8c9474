"""The warnings of `generate`; and inputs that are edge maps."""

from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import generate, lines_of, run
from tests.service.running import file_of, pixels_of, png

SMALL = {"ENGINE__SAMPLER__STEPS": 2, "ENGINE__SIZE__SHORT_SIDE": 64, "ENGINE__SLOTS": 2, "WORKERS__THREADS": 1}
PROMPT = "a red circle on a blue background"
CUT = "The prompt has "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    for name in ("a", "b", "c"):
        (made / f"{name}.png").write_bytes(png(64, 64))
    (made / "blank.png").write_bytes(file_of(np.full((64, 64, 3), 90, np.uint8)))
    return made


def test_a_warning_is_told_once_with_all_images_that_it_is_about(folder: Path, tmp_path: Path) -> None:
    done = run("generate", folder, f"{PROMPT}, " * 12, "-o", tmp_path / "out", **SMALL)
    assert done.returncode == 0, done.stderr
    assert len(lines_of(done)) == 4
    told = [line for line in done.stderr.splitlines() if CUT in line]
    assert len(told) == 2
    assert told[0].startswith(str(folder))
    assert told[1].startswith("The same for ")
    assert all(str(folder / f"{name}.png") in "".join(told) for name in ("a", "b", "c", "blank"))
    (blank,) = [line for line in done.stderr.splitlines() if "No edges were found" in line]
    assert blank.startswith(f"{folder / 'blank.png'}: ")


@pytest.mark.slow
def test_an_edge_map_is_used_as_it_is(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[20:24, 10:54] = pixels[40:44, 10:54] = 255
    (tmp_path / "edges.png").write_bytes(file_of(pixels))
    made = []
    for kind in ("photo", "edges"):
        out = tmp_path / f"of-{kind}.png"
        done = run(
            *("generate", tmp_path / "edges.png", PROMPT, "-o", out, "--seed", 1, "--control-image", kind), **SMALL
        )
        assert done.returncode == 0, done.stderr
        made.append(pixels_of(out.read_bytes()).astype(int))
    assert np.abs(made[0] - made[1]).max() > 0


def test_contradictory_settings_are_reported_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(64, 64))
    done = generate(tmp_path / "a.png", "--control-image", "edges", "--canny-high", 50)
    assert done.returncode == 2
    assert "--canny-high: control_image is edges: no edges are detected in an edge map." in done.stderr
    done = generate(tmp_path / "a.png", "--control-image", "depth")
    assert done.returncode == 2
    assert "choose from" in done.stderr
