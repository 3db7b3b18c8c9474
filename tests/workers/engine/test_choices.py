"""Attention kernels that were chosen once are chosen again, as what was compiled has them built in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.workers.engine.demo import relative_error
from tests.workers.engine.rivals import HEADS, TOLERANCE, Bench, expected, inputs, refuse
from workers.engine.attention import Attention
from workers.engine.choices import Choices
from workers.engine.kernel_probe import CACHE, cache_file

SHAPE = "2x2 6x5x8"


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "choices.json"


def choice(file: Path, bench: Bench, one: float, two: float, broken: str = "") -> str:
    """The kernel that a new process chooses for a shape."""
    kernels = [
        bench.kernel(name, seconds, *([refuse] if name == broken else []))
        for name, seconds in (("one", one), ("two", two))
    ]
    attention = Attention(kernels, bench.timer, kept=Choices(file))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    ((shape, name),) = attention.choices()
    assert shape == SHAPE
    return name


def test_what_was_chosen_is_tried_alone_and_chosen_again(file: Path) -> None:
    assert choice(file, Bench(), 1.0, 2.0) == "one"
    bench = Bench()
    assert choice(file, bench, 2.0, 1.0) == "one"
    assert set(bench.calls) == {"one"}


def test_what_was_chosen_and_fails_now_is_replaced(file: Path) -> None:
    assert choice(file, Bench(), 1.0, 2.0) == "one"
    assert choice(file, Bench(), 1.0, 2.0, broken="one") == "two"
    assert choice(file, Bench(), 1.0, 2.0) == "two"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"2x2 6x5x8": ["one"]}', b'{"2x2 6x5x8": "three"}'])
def test_a_file_that_makes_no_sense_is_no_choice(content: bytes, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert choice(file, Bench(), 2.0, 1.0) == "two"
    assert choice(file, Bench(), 1.0, 2.0) == "two"


def test_without_a_place_for_the_file_each_process_chooses(file: Path) -> None:
    file.parent.touch()
    assert choice(file, Bench(), 2.0, 1.0) == "two"
    assert choice(file, Bench(), 1.0, 2.0) == "one"


def test_what_another_worker_has_chosen_stays_in_the_file(file: Path) -> None:
    mine, other = Choices(file), Choices(file)
    other.keep("1x8 64x64x160", "flash")
    mine.keep("1x8 64x77x160", "cudnn")
    assert Choices(file).get("1x8 64x64x160") == "flash"
    assert Choices(file).get("1x8 64x77x160") == "cudnn"


def test_the_file_depends_on_the_device_and_on_all_other_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = torch.device("cpu")
    monkeypatch.delenv(CACHE, raising=False)
    assert cache_file("attention", device) is None
    monkeypatch.setenv(CACHE, str(tmp_path))
    files = [
        cache_file("attention", torch.device(kind), *facts)
        for kind, facts in (("cpu", ()), ("meta", ()), ("cpu", ("float16",)), ("cpu", ("float16", "flash")))
    ]
    assert len(set(files)) == len(files)
    assert all(each is not None and each.parent == tmp_path for each in files)
