"""OpenVINO in place of torch on a CPU: the same images, taken over in the background, and no image lost by its faults.

Converting takes many seconds. So one conversion serves all tests, and where a test wants one to happen, a copy of it is
what that makes. The slow tests convert indeed.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from tests.service.running import ROOT, Service, alive, descendants, result_pixels, until
from tests.workers.engine import demo
from tests.workers.engine.demo import psnr, relative_error
from workers.convert import read_engine
from workers.engine import build
from workers.engine.compiling import WrongResultError
from workers.engine.config import EngineConfig, Sampler, Sizing, Speed
from workers.engine.engine import DiffusionEngine
from workers.engine.kernel_probe import CACHE as LOCKED
from workers.engine.model import Model
from workers.engine.runtimes import openvino_files as files
from workers.engine.runtimes.export import graphs
from workers.engine.runtimes.files import GRAPHS, RuntimeProblem
from workers.engine.runtimes.openvino import OpenVino, OpenVinoModel, _Bound
from workers.engine.runtimes.openvino_graphs import read
from workers.engine.trials import COMPILING, Trials

CONFIG = replace(
    read_engine(ROOT / "configs" / "demo.yaml"),
    runtime="openvino",
    dtype="float32",
    slots=3,
    sampler=Sampler(steps=4),
    size=Sizing(short_side=64, long_side=128, multiple=8),
)
ONE = replace(CONFIG, slots=1)
EQUAL = 1e-3
PATIENCE = 600.0
FAILED = "compile: failed"
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _lock_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Else the compiler waits for those of other tests, as torch itself sets the variable to a folder of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCKED, str(tmp_path_factory.mktemp("lock")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo model's converted networks, in a cache of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(files.CACHE, str(tmp_path_factory.mktemp("openvino")))
        made = files.folder_for(CONFIG)
        files.convert(CONFIG, made)
        yield made


class Converter:
    """Stands in for the conversion: a copy of what one made, when `gate` is open and unless `spoil` damages it."""

    def __init__(self, made: Path) -> None:
        self._made = made
        self.gate = threading.Event()
        self.gate.set()
        self.spoil: Callable[[Path], object] = lambda folder: None
        self.calls = 0

    def __call__(self, config: EngineConfig, folder: Path) -> None:
        self.calls += 1
        assert self.gate.wait(PATIENCE)
        shutil.copytree(self._made, folder, dirs_exist_ok=True)
        self.spoil(folder)


@pytest.fixture
def converter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    """What converts, with an empty cache."""
    made = Converter(folder)
    monkeypatch.setenv(files.CACHE, str(tmp_path))
    monkeypatch.setattr(files, "convert", made)
    return made


MADE: list[DiffusionEngine] = []


@pytest.fixture(autouse=True)
def _dropped_engines() -> Iterator[None]:
    """An engine of a test takes 200 MB, and its compiler's thread would keep it."""
    yield
    for made in MADE:
        vars(made._execution).clear()
        vars(made).clear()
    MADE.clear()
    gc.collect()


def engine(config: EngineConfig = CONFIG) -> DiffusionEngine:
    """An engine for one test."""
    made = build(config, "cpu")
    assert isinstance(made, DiffusionEngine)
    MADE.append(made)
    return made


def warm(config: EngineConfig = CONFIG) -> DiffusionEngine:
    """An engine in which all that is wanted from the start is compiled."""
    made = engine(config)
    made.warm_up()
    assert made.wait_until_compiled(PATIENCE)
    return made


@cache
def by_torch(**changes: Any) -> DiffusionEngine:
    made = engine(replace(CONFIG, runtime="torch", **changes))
    MADE.remove(made)
    return made


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Callable[..., DiffusionEngine]:
    """Engines by number format, made once, without faults."""

    @cache
    def made(dtype: str = "float32") -> DiffusionEngine:
        one = warm(replace(CONFIG, dtype=dtype))  # type: ignore[arg-type]
        MADE.remove(one)
        assert upgraded(one) == (3, 1)
        assert one.status().fallbacks == ()
        return one

    return made


def compiled_files(dtype: str = "float32") -> Path:
    return files.cache() / f"compiled-{dtype}"


def upgraded(made: DiffusionEngine) -> tuple[int, int]:
    """How many steps and how many VAEs OpenVINO runs."""
    graphs = dict(made.status().graphs)
    return graphs["steps compiled"], graphs["VAE compiled"]


def openvino(made: DiffusionEngine) -> OpenVino:
    faster = made._execution._faster
    assert isinstance(faster, OpenVino)
    return faster


def three(made: DiffusionEngine, *asked: dict[str, Any]) -> list[Tensor]:
    """Latents of three images, each joining a step after the last."""
    for seed, options in enumerate(asked or ({}, {}, {})):
        made.admit(seed, made.prepare(demo.task(seed, **options)))
        made.step()
    while made.step():
        pass
    latents = [made.latents(slot) for slot in range(3)]
    for slot in range(3):
        made.discard(slot)
    return latents


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (64, 128)])
def test_an_image_of_any_size_is_torchs(compiled: Any, width: int, height: int) -> None:
    made, task = compiled(), demo.task(1, width, height)
    first = demo.make(made, task)  # by the copy for any shape
    made.decode(demo.make(made, task))
    assert made.wait_until_compiled(PATIENCE)
    expected, actual = demo.make(by_torch(), task), demo.make(made, task)
    assert max(relative_error(latents, expected) for latents in (first, actual)) <= EQUAL
    assert actual.shape == (demo.CHANNELS, *demo.latent_size(width, height))
    pixels = made.decode(actual).astype(int)
    assert abs(pixels - by_torch().decode(expected)).max() <= 1
    assert made._execution.spaces.of(demo.latent_size(width, height)).plain_parts() == []


def test_images_that_join_and_leave_at_other_steps_are_torchs(compiled: Any) -> None:
    for actual, expected in zip(three(compiled()), three(by_torch()), strict=True):
        assert relative_error(actual, expected) <= EQUAL


def test_images_that_each_ask_for_something_else_are_torchs(compiled: Any) -> None:
    asked = (
        {"steps": 3, "guidance_scale": 1.0, "temperature": 0.2},
        {"steps": 7, "guidance_scale": 6.5, "negative": "a blue square"},
        {"control_scale": 1.7, "temperature": 0.01},
    )
    for actual, expected in zip(three(compiled(), *asked), three(by_torch(), *asked), strict=True):
        assert relative_error(actual, expected) <= EQUAL


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_request_is_answered_with_the_same_bytes(compiled: Any, dtype: str) -> None:
    made = compiled(dtype)
    first, second = (made.encode(made.decode(demo.make(made, demo.task(3)))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_is_the_same_alone_and_among_others(compiled: Any, dtype: str) -> None:
    made = compiled(dtype)
    for seed, latents in enumerate(three(made)):
        assert psnr(made.decode(latents), made.decode(demo.make(made, demo.task(seed)))) >= 50


def test_images_in_bfloat16_are_those_in_float32(folder: Path) -> None:
    """As the demo configuration makes them."""
    shipped = replace(read_engine(ROOT / "configs" / "demo.yaml"), runtime="openvino", slots=1)
    half, full = (warm(replace(shipped, dtype=dtype)) for dtype in reversed(DTYPES))  # type: ignore[arg-type]
    assert upgraded(half) == upgraded(full) == (1, 1)
    for seed, text in enumerate(("a red circle", "a blue star at night", "a green square, neon")):
        task = demo.task(seed, 256, 256, text)
        one, other = (made.decode(demo.make(made, task)) for made in (half, full))
        assert psnr(one, other) >= 35


def test_what_was_compiled_in_one_format_is_not_taken_for_another(converter: Converter) -> None:
    for dtype in (*DTYPES, "float32"):
        made = warm(replace(ONE, dtype=dtype))  # type: ignore[arg-type]
        assert (upgraded(made), made.status().fallbacks) == ((1, 1), ())
    assert_served(made)


@pytest.mark.slow
def test_images_without_guidance_are_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row each, which is another network."""
    monkeypatch.setenv(files.CACHE, str(tmp_path))
    made = warm(replace(ONE, guidance_scale=1.0))
    assert upgraded(made) == (1, 1)
    expected = demo.make(by_torch(guidance_scale=1.0), demo.task(1))
    assert relative_error(demo.make(made, demo.task(1)), expected) <= EQUAL


# ---------------------------------------------------------------------------------------------------------- taking over


def test_torch_serves_during_the_conversion_and_openvino_takes_over_in_the_middle_of_an_image(
    converter: Converter,
) -> None:
    converter.gate.clear()
    made = engine(ONE)
    planned_with = made.warm_up()
    expected = demo.make(by_torch(), demo.task(0))
    assert torch.equal(demo.make(made, demo.task(0)), expected)
    assert upgraded(made) == (0, 0)
    made.admit(0, made.prepare(demo.task(0)))
    for _ in range(2):
        made.step()
    converter.gate.set()
    until(lambda: made._execution._compiler._compiled.qsize() > 0, PATIENCE)
    assert relative_error(demo.run(made, 0), expected) <= EQUAL
    assert upgraded(made) == (1, 0)
    assert made.costs() != planned_with
    assert made.wait_until_compiled(PATIENCE)
    assert upgraded(made) == (1, 1)
    assert made.status().fallbacks == ()
    assert converter.calls == 1


def test_a_conversion_is_no_trial_as_it_ends_in_another_process(converter: Converter) -> None:
    """So a worker that is killed meanwhile is followed by one that converts."""
    told: list[tuple[str, ...]] = []
    converter.gate.clear()
    made = build(ONE, "cpu", Trials(told.append))
    assert isinstance(made, DiffusionEngine)
    MADE.append(made)
    made.warm_up()
    until(lambda: converter.calls == 1, PATIENCE)
    assert (COMPILING,) not in told
    converter.gate.set()
    assert made.wait_until_compiled(PATIENCE)
    assert (COMPILING,) in told


ALONE = """
import os, sys
from tests.workers.engine import demo
from tests.workers.engine.test_openvino import CONFIG, engine
made = engine(CONFIG)
made.warm_up()
demo.make(made, demo.task(1, steps=3))
print(*{"diffusers", "transformers", "torch._dynamo"} & sys.modules.keys(), flush=True)
os._exit(0)  # as a worker: the compiler's thread is in OpenVINO
"""


def test_a_start_with_converted_networks_imports_no_others(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_second_start_does_without_torchs_networks(converter: Converter) -> None:
    first = warm(ONE)
    assert isinstance(first._model, Model)
    second = engine(ONE)
    assert isinstance(second._model, OpenVinoModel)
    second.warm_up()
    assert_served(second)  # before anything is compiled for its shapes
    assert second.wait_until_compiled(PATIENCE)
    assert upgraded(second) == (1, 1)
    assert second.status().fallbacks == ()
    assert converter.calls == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_that_is_computed_once_is_torchs(compiled: Any, dtype: str) -> None:
    ours, theirs = compiled(dtype)._model, by_torch(dtype=dtype)._model
    timesteps, edges = torch.tensor([999.0, 500.0, 333.25, 1.0]), (torch.rand(64, 96) > 0.9).to(ours.dtype)
    tokens = ours.tokens.positive("a red circle").tokens
    pairs = [(made.times(timesteps), made.hint(edges), made.text.keys_values(tokens)) for made in (ours, theirs)]
    for actual, expected in zip(*pairs, strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert relative_error(actual.float(), expected.float()) <= (EQUAL if dtype == "float32" else 0.02)
    for name in ("text", "hint", "times"):  # what a later call computes changes no earlier result
        assert openvino(compiled(dtype))._any_shape.keys() >= {name}
    first = ours.times(timesteps)
    kept = first.clone()
    ours.times(timesteps + 1)
    assert torch.equal(first, kept)


def test_another_sampler_is_planned_by_diffusers_and_kept(converter: Converter) -> None:
    warm(ONE)
    config = replace(ONE, sampler=Sampler(name="EulerAncestralDiscreteScheduler", steps=3, max_steps=5))
    plans = [engine(config)._model.plans for _ in range(2)]
    assert plans[0]._kept.keys() == {3}
    assert plans[1]._kept.keys() == {1, 2, 3, 4, 5}
    for steps in (3, 5):
        assert torch.equal(plans[0].of(steps).weights, plans[1].of(steps).weights)
    assert plans[0].layout == plans[1].layout


def test_an_input_is_copied_only_when_it_has_changed() -> None:
    own, given = torch.zeros(2), torch.ones(4)
    neither: Any = None
    bound = _Bound(neither, neither, [own])

    def copied(tensor: Tensor) -> bool:
        own.fill_(-1)
        bound.copy(0, tensor)
        return torch.equal(own, tensor)

    assert copied(given[:2])
    assert not copied(given[:2])
    assert copied(given[2:])
    assert copied(given[:2])
    given[3] = 5  # elsewhere in the same buffer
    assert copied(given[:2])
    assert copied(given[:2].clone())


def test_a_size_that_is_dropped_and_made_again_is_compiled_again(folder: Path) -> None:
    made = warm(replace(ONE, speed=Speed(other_sizes_gib=0)))
    for _ in range(2):
        demo.make(made, demo.task(1, 96))
        assert made.wait_until_compiled(PATIENCE)
        assert upgraded(made) == (2, 2)
        demo.make(made, demo.task(1, 104))
        assert made.wait_until_compiled(PATIENCE)
        assert made._execution.spaces.get(demo.latent_size(96)) is None
        assert upgraded(made) == (2, 2)  # of 64 and 104 pixels


def test_a_size_that_is_dropped_before_its_networks_take_over_is_not_measured(folder: Path) -> None:
    made = warm(replace(ONE, speed=Speed(other_sizes_gib=0)))
    demo.make(made, demo.task(1, 96))
    until(lambda: made._execution._compiler._compiled.qsize() > 0, PATIENCE)
    assert made._execution.spaces.make_room()
    sizes = made.costs().sizes
    assert made.wait_until_compiled(PATIENCE)
    assert made.costs().sizes == sizes
    assert upgraded(made) == (1, 1)
    assert made.status().fallbacks == ()


def test_without_room_for_copies_all_shapes_share_one_that_takes_any(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = warm(replace(CONFIG, speed=Speed(openvino_gib=0)))
    assert upgraded(made) == (3, 1)
    assert made.status().fallbacks == ()
    assert openvino(made)._any_shape.keys() == {*GRAPHS}
    assert openvino(made)._used == 0
    for actual, expected in zip(three(made), three(by_torch()), strict=True):
        assert relative_error(actual, expected) <= EQUAL


@pytest.mark.parametrize(("memory", "room"), [(2**30, 3), (16 * 2**30, 4), (24 * 2**30, 6), (2**40, 12)])
def test_the_room_for_copies_follows_from_the_memory_there_is(memory: int, room: int) -> None:
    assert Speed().openvino_bytes(memory) == room * 2**30
    assert Speed(openvino_gib=1.5).openvino_bytes(memory) == 3 * 2**29


def test_the_bound_counts_what_large_images_take(folder: Path) -> None:
    made = OpenVino(replace(CONFIG, speed=Speed(openvino_gib=0.2)), "float32")
    made.open()
    decode, used = made.functions().decode, 0
    for side in (64, 256, 512):
        decode(torch.zeros(demo.CHANNELS, *demo.latent_size(side, side)))
        assert (made._used > used) == (side < 512)
        used = made._used
    assert made._any_shape.keys() == {"vae"}


def test_copies_that_are_dropped_give_their_room_back(folder: Path) -> None:
    made = warm(replace(ONE, speed=Speed(other_sizes_gib=0)))
    used = openvino(made)._used
    demo.make(made, demo.task(1, 96))
    assert made.wait_until_compiled(PATIENCE)
    assert openvino(made)._used > used > 0
    assert made._execution.spaces.make_room()
    gc.collect()
    assert openvino(made)._used == used


def test_the_oldest_files_of_compiled_networks_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / f"{name}.blob").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.blob", (1000 - age, 1000 - age))
    (tmp_path / "other").write_bytes(bytes(1000))
    files.tidy(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.sha256")} == {"new", "old", "older"}
    monkeypatch.setattr(files, "_COMPILED_BYTES", 200)
    files.tidy(tmp_path)
    kept = {f"{name}.{kind}" for name in ("new", "old") for kind in ("blob", "sha256")}
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "other"}


def test_networks_that_are_not_used_for_long_are_deleted(tmp_path: Path) -> None:
    for age, name in enumerate(("one", "two", "three", "in use", "four", "of an older version")):
        (tmp_path / name).mkdir()
        for file in ("step.xml", "step.bin", *[files.FACTS] * (name != "of an older version")):
            (tmp_path / name / file).touch()
        if name == "in use":
            held = files.hold(tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "compiled-float32").mkdir()
    files.delete_old(tmp_path)
    kept = {"one", "two", "three", "in use", "compiled-float32"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    os.close(held)
    files.delete_old(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept - {"in use"}


def test_a_folder_that_is_used_again_is_kept(tmp_path: Path) -> None:
    for age in range(4):
        (tmp_path / str(age)).mkdir()
        for file in ("step.xml", files.FACTS):
            (tmp_path / str(age) / file).touch()
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    os.close(files.hold(tmp_path / "3"))
    files.delete_old(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"3", "0", "1"}


def test_a_fingerprint_is_of_samples_from_the_first_byte_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SAMPLES", 4)
    monkeypatch.setattr(files, "_SAMPLE_BYTES", 10)
    path, content = tmp_path / "weights", bytearray(1000)

    def changed(place: int) -> bool:
        path.write_bytes(content)
        before = files.fingerprint(path)
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        return files.fingerprint(path) != before

    seen = [place for place in range(1000) if changed(place)]
    assert seen == [*range(10), *range(330, 340), *range(660, 670), *range(990, 1000)]


def test_of_two_workers_one_converts(converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCKED, str(tmp_path / "lock"))
    both = [engine(ONE), engine(ONE)]
    for made in both:
        made.warm_up()
    for made in both:
        assert made.wait_until_compiled(PATIENCE)
        assert upgraded(made) == (1, 1)
    assert converter.calls == 1


# --------------------------------------------------------------------------------------------------------------- faults


def assert_served(made: DiffusionEngine) -> None:
    """That it makes torch's image."""
    assert relative_error(demo.make(made, demo.task(0)), demo.make(by_torch(), demo.task(0))) <= EQUAL


FAULTS = {
    "exit 3": "converting ended with exit code 3: no space left",
    "kill -9 $$": "converting ended with signal 9",
    "exec sleep 600": "converting took more than 0.5 s",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_conversion_that_fails_costs_speed_and_is_not_tried_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\necho $$ >> {calls}\necho "no space left" >&2\n{fault}\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(files, "TIMEOUT_S", 0.5)
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    made = warm()
    assert dict(made.status().fallbacks) == {FAILED: 4}  # three batch sizes, and the VAE
    assert upgraded(made) == (0, 0)
    (child,) = calls.read_text().split()
    assert not alive(int(child))
    assert FAULTS[fault] in caplog.text
    assert_served(made)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def blank(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def scramble(name: str) -> Callable[[Path], object]:
    """Other values, of the same length."""

    def spoil(folder: Path) -> None:
        weights = bytearray((folder / name).read_bytes())
        weights[::2] = weights[1::2] if len(weights) % 2 == 0 else weights[1::2] + b"\0"
        (folder / name).write_bytes(weights)

    return spoil


def flip(name: str) -> Callable[[Path], object]:
    """One bit of a file."""

    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def empty(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, 0)


SPOILS: dict[str, Callable[[Path], object]] = {
    **{f"{name} is cut": cut(name) for name in ("step.bin", "step.xml", "vae.bin", files.FACTS)},
    **{f"{name} is empty": empty(name) for name in ("text.bin", files.FACTS)},
    **{f"{name} is zeros": blank(name) for name in ("step.bin", "times.bin", files.FACTS)},
    **{f"{name} has other values": scramble(name) for name in ("vae.bin", "hint.bin")},
    **{f"{name} has a wrong bit": flip(name) for name in ("step.bin", "text.xml")},
    "text.bin is missing": lambda folder: (folder / "text.bin").unlink(),
}


QUICK = {"step.bin is cut", f"{files.FACTS} is zeros", "vae.bin has other values", "text.bin is missing"}


@pytest.mark.parametrize(
    "spoil", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in SPOILS]
)
def test_damaged_files_in_the_cache_are_made_again(converter: Converter, spoil: str) -> None:
    warm(ONE)
    SPOILS[spoil](files.folder_for(ONE))
    converter.gate.clear()
    second = engine(ONE)
    assert isinstance(second._model, Model)
    second.warm_up()  # which waits for no conversion
    converter.gate.set()
    assert second.wait_until_compiled(PATIENCE)
    assert (upgraded(second), second.status().fallbacks, converter.calls) == ((1, 1), (), 2)
    assert_served(second)


@pytest.mark.parametrize("spoil", ["step.xml is cut", "vae.bin has other values"])
def test_files_that_are_damaged_as_soon_as_they_are_made_are_not_used(converter: Converter, spoil: str) -> None:
    converter.spoil = SPOILS[spoil]
    made = warm()
    assert (upgraded(made), made.status().fallbacks, converter.calls) == ((0, 0), ((FAILED, 4),), 1)
    assert_served(made)


def test_plans_that_are_damaged_are_made_again(converter: Converter) -> None:
    warm(ONE)
    whole = {path: path.read_bytes() for path in files.folder_for(ONE).glob("plans-*")}  # of other tests' samplers, too
    damages: list[Callable[[bytes], bytes]] = [
        lambda file: b"",
        lambda file: file[: len(file) // 2],
        lambda file: bytes(len(file)),
        lambda file: file[:3000] + b"x" + file[3001:],
    ]
    assert whole
    for damaged in damages:
        for path, content in whole.items():
            path.write_bytes(damaged(content))
        assert_served(engine(ONE))
        assert engine(ONE)._model.plans._kept.keys() >= {1, 2, 3, 4, 50}


def test_a_wrong_network_is_not_taken_over(converter: Converter) -> None:
    """Whose conversion has failed unnoticed."""

    def spoil(folder: Path) -> None:
        scramble("vae.bin")(folder)
        facts = files.facts(folder)
        assert facts is not None
        written = {"vae.bin": (facts.files["vae.bin"][0], files.fingerprint(folder / "vae.bin"))}
        (folder / files.FACTS).write_bytes(
            msgspec.json.encode(msgspec.structs.replace(facts, files=facts.files | written))
        )

    converter.spoil = spoil
    made = warm(ONE)
    assert upgraded(made) == (1, 0)
    assert sum(times for _, times in made.status().fallbacks) == 1
    latents = demo.make(made, demo.task(0))
    assert psnr(made.decode(latents), by_torch().decode(latents)) >= 50


def test_a_folder_that_is_half_there_is_made_again(converter: Converter) -> None:
    warm(ONE)
    (files.folder_for(ONE) / "vae.xml").unlink()
    second = warm(ONE)
    assert (upgraded(second), second.status().fallbacks, converter.calls) == ((1, 1), (), 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda old: old[: len(old) // 2], id="cut", marks=pytest.mark.slow),
        pytest.param(lambda old: b"", id="empty", marks=pytest.mark.slow),
        pytest.param(lambda old: bytes(len(old)), id="zeros", marks=pytest.mark.slow),
        pytest.param(lambda old: old[: len(old) // 2] + bytes(len(old) - len(old) // 2), id="half zeros"),
        pytest.param(
            lambda old: old[: len(old) // 2] + b"\xff" * 4096 + old[len(old) // 2 + 4096 :],
            id="a wrong page",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_damaged_files_of_compiled_networks_are_compiled_anew(
    converter: Converter, content: Callable[[bytes], bytes]
) -> None:
    warm(ONE)
    blobs = list(compiled_files().glob("*.blob"))
    assert len(blobs) == 7  # of two networks for their shapes, and of all for any
    for blob in blobs:
        old = blob.read_bytes()
        blob.unlink()
        blob.write_bytes(content(old))
    second = engine(ONE)
    second.warm_up()
    assert_served(second)  # by the copies for any shape, too
    assert second.wait_until_compiled(PATIENCE)
    assert (upgraded(second), second.status().fallbacks) == ((1, 1), ())
    assert_served(second)


def test_converted_networks_in_a_cache_that_cannot_be_written_are_used(converter: Converter) -> None:
    compiled_files().touch()  # where a folder would be: root may write to any
    made = warm(ONE)
    assert (upgraded(made), made.status().fallbacks) == ((1, 1), ())


def test_an_openvino_that_cannot_be_imported_costs_speed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr("workers.engine.runtimes.openvino.openvino", broken)
    made = warm()
    assert (upgraded(made), made.status().fallbacks) == ((0, 0), ((FAILED, 4),))
    assert_served(made)


# ----------------------------------------------------------------------------------------------------------- conversion


def spawn(program: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)


CONVERT = """
from tests.workers.engine.test_openvino import CONFIG
from workers.engine.runtimes import openvino_files as files
files.convert(CONFIG, files.folder_for(CONFIG))
"""


@pytest.mark.parametrize("name", GRAPHS)
def test_a_conversion_is_proven_by_torch(folder: Path, name: str) -> None:
    call = files.call(dict(graphs(demo.parts(), 2))[name])
    files.prove(folder / f"{name}.xml", call)
    with pytest.raises(WrongResultError):
        files.prove(folder / f"{name}.xml", files.Call(call.inputs, call.output.flip(-1)))


@pytest.mark.parametrize("doubled", [True, False])
def test_a_convolution_of_a_doubled_feature_map_is_torchs(doubled: bool, tmp_path: Path) -> None:
    """It becomes four smaller ones, unless it reads another size: that of the feature map before an odd one."""
    ov = files.openvino()
    from openvino import opset13 as ops

    given, weight, size = torch.randn(2, 6, 5, 7), torch.randn(4, 6, 3, 3), [10, 14 if doubled else 13]
    x = ops.parameter([-1, 6, -1, -1], ov.Type.f32)
    larger = ops.interpolate(
        x, size, "nearest", "sizes", coordinate_transformation_mode="asymmetric", nearest_mode="floor", axes=[2, 3]
    )
    convolution = ops.convolution(larger, weight.numpy(), [1, 1], [1, 1], [1, 1], [1, 1])
    ov.save_model(ov.Model([convolution], [x]), tmp_path / "step.xml", compress_to_fp16=False)
    expected = torch.nn.functional.conv2d(torch.nn.functional.interpolate(given, size), weight, padding=1)
    core = ov.Core()
    for shapes in (None, [tuple(given.shape)]):
        model = read(core, tmp_path / "step.xml", "float32", shapes)
        kinds = [node.get_type_name() for node in model.get_ops()]
        assert kinds.count("Convolution") == (4 if doubled and shapes else 1)
        actual = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([given.numpy()])[0]
        assert relative_error(torch.from_numpy(actual), expected) <= EQUAL


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (2, 8, 35)])
def test_group_norms_of_the_vae_are_torchs(shape: tuple[int, ...], tmp_path: Path) -> None:
    """In float32 those of feature maps are written out. The mean is far from zero: sums of squares would not do."""
    ov = files.openvino()
    from openvino import opset13 as ops

    weight, bias = torch.randn(2, 8)
    x = ops.parameter([-1, 8, *[-1] * len(shape[2:])], ov.Type.f32)
    norm = ops.group_normalization(x, weight.numpy(), bias.numpy(), 4, 1e-5)
    ov.save_model(ov.Model([norm], [x]), tmp_path / "vae.xml", compress_to_fp16=False)
    given, core = 30 + torch.randn(shape) / 10, ov.Core()
    expected = torch.nn.functional.group_norm(given, 4, weight, bias, 1e-5)
    for dtype in DTYPES:
        model = read(core, tmp_path / "vae.xml", dtype)
        kinds = {node.get_type_name() for node in model.get_ops()}
        assert ("GroupNormalization" in kinds) == (dtype == "bfloat16" or len(shape) == 3)
        actual = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([given.numpy()])[0]
        assert relative_error(torch.from_numpy(actual), expected) <= EQUAL


@pytest.mark.slow
def test_a_conversion_ends_with_its_worker_and_what_it_left_is_deleted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.CACHE, str(tmp_path))
    with spawn(CONVERT) as worker:
        until(lambda: any(tmp_path.iterdir()), PATIENCE)  # it writes
        (child,) = descendants(worker.pid)
        assert Path(f"/proc/{child}/oom_score_adj").read_text() == "1000\n"
        worker.send_signal(signal.SIGKILL)
    until(lambda: not alive(child), PATIENCE)
    assert [path.name.startswith(files._UNFINISHED) for path in tmp_path.iterdir()] == [True]
    made = files.folder_for(CONFIG)
    files.convert(CONFIG, made)
    assert [*tmp_path.iterdir()] == [made]
    assert files.is_complete(made)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["ulimit -f 2000", "ulimit -f 20"])
def test_a_disk_that_is_full_costs_speed(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is played by a limit of a file's size, which the weights or even the graph exceed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntrap "" XFSZ\n{limit}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    made = warm(ONE)
    assert upgraded(made) == (0, 0)
    assert dict(made.status().fallbacks) == {FAILED: 2}
    assert_served(made)


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_costs_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.CACHE, "/proc/none")
    made = warm(ONE)
    assert dict(made.status().fallbacks) == {FAILED: 2}
    assert_served(made)


def test_nothing_is_reported_to_openvinos_makers(folder: Path) -> None:
    program = "import sys, workers.engine.runtimes.openvino as run; run.openvino().convert_model; "
    program += "print([name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("changes", "installed", "cuda", "expected"),
    [
        ({}, True, False, "openvino"),
        ({}, False, False, "torch"),
        ({}, True, True, "torch"),
        ({"dtype": "float16"}, True, False, "torch"),
        ({"speed": Speed(compile=False)}, True, False, "torch"),
        ({"runtime": "torch"}, True, False, "torch"),
    ],
)
def test_auto_is_openvino_where_that_can_run_the_networks(
    changes: dict[str, Any], installed: bool, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.config.installed", lambda name: installed)
    assert replace(EngineConfig(), **changes).runtime_on(cuda=cuda) == expected


def refused(environ: dict[str, str], before: str = "") -> str:
    """What the service says when it does not start with OpenVINO."""
    code = f"import sys; sys.path.insert(0, '.'); {before}from app.cli.serve import run; "
    code += "sys.exit(run(['--config', 'configs/demo.yaml', '--port', '0']))"
    asked = {"CONTOUR_ENGINE__RUNTIME": "openvino", "CUDA_VISIBLE_DEVICES": ""} | environ
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    return done.stderr


def test_where_it_is_asked_for_and_cannot_run_the_start_says_why() -> None:
    missing = refused({}, "sys.modules['openvino'] = None; ")
    assert "engine.runtime is openvino, but openvino is not installed: " in missing
    half = refused({"CONTOUR_ENGINE__DTYPE": "float16"})
    assert "engine.dtype is float16: OpenVINO runs the networks in bfloat16 or float32" in half
    with pytest.raises(RuntimeProblem, match="which runs on a CPU: make it auto, or set CUDA_VISIBLE_DEVICES="):
        files.check("float16", cuda=True)


# -------------------------------------------------------------------------------------------------------------- service


def decided(service: Service) -> tuple[float, float]:
    """Steps and VAEs that OpenVINO runs or torch runs as fast, as /metrics has them."""

    def count(part: str) -> float:
        kinds = f"{part} compiled", f"{part} kept uncompiled"
        return sum(service.sample("contour_worker_graphs", kind=kind) for kind in kinds)

    return count("steps"), count("VAE")


def test_the_service_starts_at_full_speed_with_converted_networks(folder: Path) -> None:
    with Service("demo", ENGINE__RUNTIME="auto") as service:
        service.wait_until_ready()
        assert service.readiness()["runtime"].startswith("OpenVINO in ")
        until(lambda: min(decided(service)) >= 1)  # it tells of them when it is ready
        first, second = (service.generate() for _ in range(2))
        assert result_pixels(first).shape == (256, 256, 3)
        assert first.content == second.content


@pytest.mark.slow
def test_the_service_answers_during_the_conversion_and_the_next_start_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is shipped: the demo configuration, and an empty cache."""
    monkeypatch.delenv(files.CACHE, raising=False)
    settings = {"WORKERS__CACHE": tmp_path, "ENGINE__RUNTIME": "auto", "ENGINE__OUTPUT__FORMAT": "png"}
    with Service("demo", **settings) as service:
        first = result_pixels(service.wait_until_ready().generate())
        assert decided(service) == (0, 0)
        until(lambda: decided(service) == (4, 1), PATIENCE)
        second = result_pixels(service.generate())
        assert psnr(first, second) >= 35
        assert service.sample("contour_worker_fallbacks_total") == 0
    with Service("demo", **settings) as service:
        service.wait_until_ready()
        until(lambda: decided(service) != (0, 0), PATIENCE)
        assert psnr(result_pixels(service.generate()), second) >= 35  # what runs it may be another choice
