"""A folder of images: what is made, what is left alone, and how it goes on when it was interrupted."""

import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from app.cli import results
from app.params import RequestFields
from app.settings import Settings
from app.startup import about
from tests.cli.command import ECHO, PROMPT, generate, lines_of, run, running
from tests.service.running import PATIENCE, alive, descendants, png, until
from workers.engine.config import Canny, EngineConfig
from workers.engine.metadata import Metadata, Provenance, embed

COUNT = 6
# One at a time, so that there is always something left to do.
SLOW = {"WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 1, "ENGINE__ECHO__STEP_SECONDS": 0.15}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, all different."""
    path = tmp_path / "in"
    path.mkdir()
    for n in range(COUNT):
        (path / f"{n}.png").write_bytes(png(64 + n, 64))
    return path


def made(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.suffix == ".jpg"} if out.is_dir() else set()


def hidden(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name.startswith(".")}


def births(out: Path) -> dict[str, int]:
    """Which file each name stands for: one that is made anew is another."""
    return {name: (out / name).stat().st_ino for name in made(out)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_whole_files_and_no_process_and_goes_on(folder: Path, number: signal.Signals) -> None:
    out = folder.with_name("in-out")
    with running("generate", folder, PROMPT, *ECHO, **SLOW) as process:
        until(lambda: len(made(out)) >= 2)
        workers = descendants(process.pid)
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert workers
    until(lambda: not any(map(alive, workers)))
    first = births(out)
    assert 2 <= len(first) < COUNT
    if number != signal.SIGKILL:
        assert "interrupted; run the same command again to continue" in said
        assert not hidden(out)

    done = run("generate", folder, PROMPT, *ECHO, **SLOW)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT - len(first)} made, {len(first)} there already" in done.stderr
    assert "as before" in done.stderr  # the seed that was drawn
    assert made(out) == {f"{n}.jpg" for n in range(COUNT)}
    assert first.items() <= births(out).items()
    assert not hidden(out)


def test_a_step_that_takes_long_keeps_nobody_waiting(folder: Path) -> None:
    with running("generate", folder, PROMPT, *ECHO, **SLOW | {"ENGINE__ECHO__STEP_SECONDS": PATIENCE * 10}) as process:
        until(lambda: len(descendants(process.pid)) > 0)
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_existing_results_are_kept_and_no_worker_is_started(folder: Path) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--seed", 5).returncode == 0
    first = births(out)
    again = generate(folder, "--seed", 5)
    assert (again.returncode, lines_of(again), births(out)) == (0, [], first)
    assert f"0 made, {COUNT} there already" in again.stderr
    assert "cpu0" not in again.stderr


def test_changed_parameters_make_the_image_again(folder: Path) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--seed", 5).returncode == 0
    for arguments in (["--seed", 6], ["--seed", 6, "--negative", "fog"], ["--seed", 6, "--again"]):
        before = births(out)
        assert len(lines_of(generate(folder, *arguments))) == COUNT, arguments
        assert not before.items() & births(out).items()
    other = run("generate", folder, "another prompt", *ECHO, "--seed", 6)
    assert len(lines_of(other)) == COUNT


def test_only_an_image_that_has_changed_is_made_anew(folder: Path) -> None:
    assert generate(folder).returncode == 0
    (folder / "3.png").write_bytes(png(80, 80))
    done = generate(folder)
    assert lines_of(done) == [str(folder.with_name("in-out") / "3.jpg")]


def test_a_file_that_somebody_else_made_is_not_replaced(folder: Path) -> None:
    out = folder.with_name("in-out")
    out.mkdir()
    (out / "3.jpg").write_bytes(b"mine")
    done = generate(folder)
    assert done.returncode == 1
    assert f"{out / '3.jpg'} is not a result of this command, or was changed" in done.stderr
    assert (len(lines_of(done)), (out / "3.jpg").read_bytes()) == (COUNT - 1, b"mine")
    assert generate(folder, "--again").returncode == 0
    assert (out / "3.jpg").read_bytes() != b"mine"


def test_two_commands_do_not_write_to_one_folder(folder: Path) -> None:
    slow = SLOW | {"ENGINE__ECHO__STEP_SECONDS": PATIENCE * 10}
    with running("generate", folder, PROMPT, *ECHO, **slow) as process:
        until(lambda: bool(descendants(process.pid)))
        second = generate(folder)
    assert second.returncode == 2
    assert "another command is writing images there" in second.stderr
    assert generate(folder).returncode == 0  # the first was killed, and holds nothing any more


def test_unfinished_files_of_a_killed_command_are_removed(folder: Path) -> None:
    out = folder.with_name("in-out")
    out.mkdir()
    for name in (".0.jpg.123", ".0.jpg.mine", ".other.jpg.123"):
        (out / name).write_bytes(b"half")
    assert generate(folder).returncode == 0
    assert hidden(out) == {".0.jpg.mine", ".other.jpg.123"}


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_nothing_is_written_but_images_and_these_tell_what_made_them(folder: Path, file_format: str) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--format", file_format, "--seed", 5).returncode == 0
    suffix = {"jpeg": "jpg"}.get(file_format, file_format)
    assert {path.name for path in out.iterdir()} == {f"{n}.{suffix}" for n in range(COUNT)}
    told = results.read(out / f"1.{suffix}")
    assert told is not None
    assert (told.seed, told.size) == (5, (65, 64))
    assert f"{COUNT} there already" in generate(folder, "--format", file_format).stderr


def test_several_images_of_each_go_on_with_the_seeds_that_were_drawn(folder: Path) -> None:
    out = folder.with_name("in-out")
    first = lines_of(generate(folder, "-n", 3))
    assert len(first) == 3 * COUNT
    for path in first[::2]:
        Path(path).unlink()
    done = generate(folder, "-n", 3)
    assert "as before" in done.stderr
    assert sorted(lines_of(done)) == sorted(first[::2])
    assert {str(path) for path in out.iterdir()} == set(first)


def test_another_configuration_makes_other_images(folder: Path) -> None:
    assert generate(folder, "--seed", 5).returncode == 0
    for overrides in ({"ENGINE__PROMPT__SUFFIX": ", sharp"}, {"ENGINE__OUTPUT__QUALITY": 80}):
        assert len(lines_of(generate(folder, "--seed", 5, **overrides))) == COUNT
    same = {"ENGINE__OUTPUT__QUALITY": 80, "ENGINE__SLOTS": 3, "ENGINE__CANNY__LOW": 100}  # only how, and a default
    assert lines_of(generate(folder, "--seed", 5, **same)) == []


def test_an_option_that_says_what_is_configured_changes_nothing(folder: Path) -> None:
    assert generate(folder, "--seed", 5).returncode == 0
    assert lines_of(generate(folder, "--seed", 5, "--canny-low", 100, "--guidance-scale", 7.5)) == []


def test_automatic_thresholds_are_part_of_the_recipe_and_their_values_are_not(tmp_path: Path) -> None:
    settings = Settings(engine=EngineConfig(canny=Canny(auto=True)))
    automatic, named = (
        results.SharedParams(settings, RequestFields(text="a", canny_low=low), "png") for low in (None, 60)
    )
    made_from = replace(Provenance.of(automatic.task(png(64, 64), 5)), thresholds=(60, 200))
    (tmp_path / "a.png").write_bytes(Metadata(settings.engine, about(settings)).embed(png(64, 64), made_from))
    told = results.read(tmp_path / "a.png")

    assert told is not None
    assert told.thresholds == (60, 200)
    assert [each.made(told, png(64, 64), 5) for each in (automatic, named)] == [True, False]
    assert [each.former_seed(tmp_path) for each in (automatic, named)] == [5, None]


def test_another_version_of_the_program_does_not_make_all_again(folder: Path) -> None:
    assert generate(folder, "--seed", 5).returncode == 0
    for path in folder.with_name("in-out").iterdir():
        with Image.open(path) as image:
            text = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
            image.save(path, quality=95)
        path.write_bytes(embed(path.read_bytes(), re.sub("Contour .*", "Contour 9.9.9", text)))
    assert lines_of(generate(folder, "--seed", 5)) == []


def test_an_image_that_another_program_has_saved_is_not_replaced(folder: Path) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--seed", 5).returncode == 0
    with Image.open(out / "1.jpg") as image:
        image.save(out / "1.jpg", exif=image.getexif(), xmp=image.info["xmp"])
    with Image.open(out / "2.jpg") as image:
        image.save(out / "2.jpg")
    edited = {name: (out / name).read_bytes() for name in ("1.jpg", "2.jpg")}
    done = generate(folder, "--seed", 6)
    assert (done.returncode, len(lines_of(done))) == (1, COUNT - 2)
    assert all(f"{out / name} is not a result of this command, or was changed" in done.stderr for name in edited)
    assert {name: (out / name).read_bytes() for name in edited} == edited


def test_no_link_is_followed_to_write_and_no_folder_is_taken_for_an_image(folder: Path, tmp_path: Path) -> None:
    out, other = folder.with_name("in-out"), tmp_path / "other.jpg"
    out.mkdir()
    (out / "0.jpg").symlink_to(tmp_path / "nothing.jpg")
    (out / "1.jpg").mkdir()
    assert generate(folder, "--seed", 5).returncode == 1
    assert (out / "0.jpg").is_file()
    assert not (out / "0.jpg").is_symlink()
    assert not (tmp_path / "nothing.jpg").exists()
    shutil.move(out / "2.jpg", other)
    (out / "2.jpg").symlink_to(other)
    before = other.read_bytes()
    generate(folder, "--seed", 6)
    assert (other.read_bytes(), (out / "2.jpg").is_symlink()) == (before, False)


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_started(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = generate(folder, "-o", tmp_path / "file" / "out")
    assert (done.returncode, "cannot be written to" in done.stderr, "cpu" in done.stderr.lower()) == (2, True, False)


def test_names_that_are_no_text_are_names_as_well(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    name = os.fsdecode(b"\xff.png")
    (source / name).write_bytes(png(64, 64))
    done = generate(source)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "in-out") == {os.fsdecode(b"\xff.jpg")}
    assert "1 there already" in generate(source).stderr
