"""A folder of pictures: what is made, what is left alone, and how it goes on when it was interrupted."""

import os
import signal
import time
from pathlib import Path

import pytest

from app.cli.ledger import NAME, Entry, Ledger, Recipe
from tests.cli.command import ECHO, PROMPT, generate, lines_of, run, running
from tests.service.running import PATIENCE, alive, descendants, png, until
from workers.engine.contract import Options

COUNT = 6
# One at a time, so that there is always something left to do.
SLOW = {"WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 1, "ENGINE__ECHO__STEP_SECONDS": 0.15}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, all different."""
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
        assert "interrupted; the same command goes on" in said
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


def test_what_is_there_is_not_made_again_and_no_worker_is_started_for_it(folder: Path) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--seed", 5).returncode == 0
    first = births(out)
    again = generate(folder, "--seed", 5)
    assert (again.returncode, lines_of(again), births(out)) == (0, [], first)
    assert f"0 made, {COUNT} there already" in again.stderr
    assert "cpu0" not in again.stderr


def test_what_is_asked_for_otherwise_is_made_anew(folder: Path) -> None:
    out = folder.with_name("in-out")
    assert generate(folder, "--seed", 5).returncode == 0
    for arguments in (["--seed", 6], ["--seed", 6, "--negative", "fog"], ["--seed", 6, "--again"]):
        before = births(out)
        assert len(lines_of(generate(folder, *arguments))) == COUNT, arguments
        assert not before.items() & births(out).items()
    other = run("generate", folder, "another prompt", *ECHO, "--seed", 6)
    assert len(lines_of(other)) == COUNT


def test_only_a_picture_that_has_changed_is_made_anew(folder: Path) -> None:
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
    assert f"{out / '3.jpg'} is not from here, or was changed" in done.stderr
    assert (len(lines_of(done)), (out / "3.jpg").read_bytes()) == (COUNT - 1, b"mine")
    assert generate(folder, "--again").returncode == 0
    assert (out / "3.jpg").read_bytes() != b"mine"


def test_two_commands_do_not_write_to_one_folder(folder: Path) -> None:
    with running("generate", folder, PROMPT, *ECHO, **SLOW | {"ENGINE__ECHO__STEP_SECONDS": PATIENCE * 10}):
        until((folder.with_name("in-out") / NAME).exists)
        second = generate(folder)
    assert second.returncode == 2
    assert "another command makes pictures there" in second.stderr


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    recipe = Recipe(prompt=PROMPT, seed=1, options=Options(), picture="x", engine="y")
    entry = Entry(file="a.jpg", sha256="z", source="a.png", first_seed=1, recipe=recipe)
    with Ledger(tmp_path, ["a.jpg"]) as ledger:
        ledger.enter(entry)
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"file":"b.jp')
    (tmp_path / ".a.jpg.123").write_bytes(b"half")
    with Ledger(tmp_path, ["a.jpg"]) as ledger:
        assert ledger.seed(PROMPT, Options(), "y") == 1
        ledger.enter(Entry(file="c.jpg", sha256="z", source="c.png", first_seed=2, recipe=recipe))
    with Ledger(tmp_path, ["a.jpg"]) as ledger:
        assert ledger.seed(PROMPT, Options(), "y") == 2
    assert hidden(tmp_path) == set()


def test_names_that_are_no_text_are_names_as_well(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    name = os.fsdecode(b"\xff.png")
    (source / name).write_bytes(png(64, 64))
    done = generate(source)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "in-out") == {os.fsdecode(b"\xff.jpg")}
    assert "1 there already" in generate(source).stderr
