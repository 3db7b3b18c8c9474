"""Images without a server, as a person asks for them."""

import base64
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from app.params import SEED_MAX, SEED_MIN
from tests.cli.command import ECHO, PROMPT, generate, lines_of, run
from tests.service.running import PATIENCE, ROOT, Service, png, surroundings, until
from workers.engine.header import read_header

# By torch, as OpenVINO would take over at some step of one of two images that are compared.
SMALL = {
    "ENGINE__RUNTIME": "torch",
    "ENGINE__SAMPLER__STEPS": 2,
    "ENGINE__SIZE__SHORT_SIDE": 64,
    "ENGINE__SLOTS": 1,
    "WORKERS__THREADS": 1,
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(png(64, 64))
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_model_makes_of_a_folder_what_the_service_makes_and_a_broken_image_is_named(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, data in {"a.png": png(64, 64), "a.webp": png(96, 64), "bad.jpg": b"no image"}.items():
        (source / name).write_bytes(data)
    (source / "notes.txt").write_text("no image either")
    (source / ".hidden.png").write_bytes(png(64, 64))
    done = run("generate", source, PROMPT, "-o", out, "--seed", 3, "--format", "png", **SMALL)
    assert done.returncode == 1
    assert f"{source / 'bad.jpg'}: The image must be a PNG, JPEG or WebP" in done.stderr
    assert f"2 made, 0 there already, 1 failed: {source / 'bad.jpg'}" in done.stderr
    assert sorted(lines_of(done)) == [str(out / "a.png.png"), str(out / "a.webp.png")]
    assert files(out) == {"a.png.png", "a.webp.png"}
    encoded = base64.b64encode(png(96, 64)).decode()
    with Service("demo", ENGINE__OUTPUT__FORMAT="png", SERVER__EMBED_METADATA="full", **SMALL) as service:
        answer = service.wait_until_ready().generate(text=PROMPT, input_image_base64=encoded, random_seed=3).json()
    assert (out / "a.webp.png").read_bytes() == base64.b64decode(answer["output_image_base64"])


def test_the_suffix_decides_the_format(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.WebP"
    assert generate(image, "-o", out).returncode == 0
    assert read_header(out.read_bytes()).format == "WebP"


def test_without_a_place_it_goes_beside_the_old_one_named_by_a_seed_that_is_told(image: Path) -> None:
    done = generate(image)
    assert done.returncode == 0
    seed = re.search(r"seed (\d+) \(random\)", done.stderr)
    assert seed is not None
    assert files(image.parent) == {"image.png", f"image-{seed[1]}.jpg"}


def test_several_of_an_image_take_one_seed_after_the_other(image: Path, tmp_path: Path) -> None:
    done = generate(image, "-o", tmp_path / "out.png", "-n", 3, "--seed", SEED_MAX - 1)
    assert done.returncode == 0
    assert files(tmp_path) == {"image.png", *(f"out-{n}.png" for n in (SEED_MAX - 1, SEED_MAX, SEED_MIN))}


def test_errors_are_reported_before_anything_is_started(image: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (["--steps", 0, *ECHO], "--steps: steps is 0; it must be from 1 to"),
        (["-o", tmp_path / "out.gif", *ECHO], "unknown image format; use one of .png"),
        (["-o", tmp_path / "nowhere" / "out.png", *ECHO], "nowhere: there is no such folder"),
        (["--config", "configs/sd15-canny.yaml"], "python -m workers.fetch configs/sd15-canny.yaml"),
    ):
        done = run("generate", image, PROMPT, *arguments, WORKERS__MODELS=tmp_path)
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr
        assert "cpu0" not in done.stderr
    assert files(tmp_path) == {"image.png"}


def test_a_broken_image_is_a_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(64, 64)[:200])
    done = generate(broken, "-o", tmp_path / "out.png")
    assert done.returncode == 1
    assert f"{broken}: The PNG image is damaged or cut short" in done.stderr
    assert files(tmp_path) == {"broken.png"}


def test_an_image_that_ends_its_workers_is_a_failure(image: Path, tmp_path: Path) -> None:
    done = generate(image, "-o", tmp_path / "out.png", WORKERS__CPU_WORKERS=1, ENGINE__FAULTS__EXIT=1.0)
    assert done.returncode == 1
    assert "This request failed on 2 workers" in done.stderr
    assert files(tmp_path) == {"image.png"}


def test_a_model_that_cannot_be_loaded_is_not_tried_again_and_again(image: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs/demo", tmp_path / "demo")
    shutil.copy(ROOT / "configs/demo.yaml", tmp_path)
    path = tmp_path / "demo/vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_num_groups": 7}))
    done = run("generate", image, PROMPT, "-o", tmp_path / "out.png", "--config", tmp_path / "demo.yaml")
    assert done.returncode == 1
    assert "stopped: no worker can be started (cpu0: " in done.stderr
    assert done.stderr.count("exited") == 1


def test_on_a_terminal_it_shows_how_far_it_is(image: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    slow = surroundings(ENGINE__ECHO__STEPS=4, ENGINE__ECHO__STEP_SECONDS=0.3)
    command = [sys.executable, "-m", "app", "generate", str(image), PROMPT, *ECHO, "-o", str(tmp_path / "out.png")]
    with subprocess.Popen(command, cwd=ROOT, env=slow, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = read_all(ours)
        assert process.wait(PATIENCE) == 0
    assert "loading 00:0" in said
    assert re.search(r"step 2 of 4\s+50% \|█+ +\|", said)
    assert str(tmp_path / "out.png") in said


def read_all(terminal: int) -> str:
    """What is written to a terminal, until nobody has it open any more."""
    said = b""

    def ended() -> bool:
        nonlocal said
        try:
            said += os.read(terminal, 2**16)
        except OSError:
            os.close(terminal)
            return True
        return False

    until(ended)
    return said.decode()
