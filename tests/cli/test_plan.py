"""The plan that a command line leads to: inputs, outputs, seeds."""

import argparse
from pathlib import Path

import pytest

from app.cli.plan import CommandError, add_flags, parse_flags, plan
from app.params import OutputOptions, Rules, engine_options
from app.settings import load
from tests.service.running import ROOT
from workers.engine.contract import EngineOptions

SEEDS = [5]
RULES = Rules.of(load(ROOT / "configs/demo.yaml", {}))


def given(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    add_flags(parser)
    return parser.parse_args(["a red heart", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    for name in ("a.png", "b.jpg", "b.webp", "c.gif", "d.txt", ".e.png"):
        (path / name).write_bytes(b"")
    (path / "f.png").mkdir()
    return path


def targets(source: Path, out: Path | None, seeds: list[int]) -> list[str]:
    planned = plan(source, out, seeds, "jpeg", None)
    return [str(item.target.relative_to(source.parent)) for item in planned.items]


def test_every_field_of_a_request_is_a_flag() -> None:
    flags = (
        *("--negative", "fog", "--steps", "7", "--guidance-scale", "2", "--control-scale", "0.5"),
        *("--canny-low", "50", "--canny-high", "90", "--temperature", "0.5", "-n", "2", "--seed", "-4"),
    )
    fields = parse_flags(given(*flags), RULES)
    assert (fields.text, fields.random_seed, fields.number_of_images) == ("a red heart", -4, 2)
    assert engine_options(fields, OutputOptions()) == EngineOptions(
        negative="fog", steps=7, guidance_scale=2, control_scale=0.5, canny_low=50, canny_high=90, temperature=0.5
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--temperature", "nan"], "--temperature: temperature is nan; it must be above 0"),
        (["--number", "9"], "--number: number_of_images is 9; it must be from 1 to 8"),
        (["--seed", str(2**64)], "--seed: random_seed is"),
        (["--negative", "\udcff"], "--negative is not valid UTF-8"),
        (["--negative", "x" * 10_001], "--negative: negative_prompt has 10001 characters"),
    ],
)
def test_invalid_values_are_refused_by_the_name_of_the_flag(flags: list[str], text: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_flags(given(*flags), RULES)
    assert str(refused.value).startswith(text)


def test_seeds_that_are_drawn_differ() -> None:
    assert len({parse_flags(given(), RULES).random_seed for _ in range(3)}) > 1


def test_an_image_goes_where_it_is_sent(folder: Path, tmp_path: Path) -> None:
    image = folder / "a.png"
    assert targets(image, None, SEEDS) == ["a-5.jpg"]
    assert targets(image, folder / "x.PNG", SEEDS) == ["x.PNG"]
    assert targets(image, folder / "x.png", [5, 6]) == ["x-5.png", "x-6.png"]
    assert plan(image, tmp_path, SEEDS, "jpeg", "webp").items[0].target == tmp_path / "a-5.webp"


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "png"), ("x.jpg", "jpeg"), ("x.JPEG", "jpeg"), ("x.webp", "webp")]
)
def test_the_suffix_decides_the_format(folder: Path, name: str, kind: str) -> None:
    assert plan(folder / "a.png", folder / name, SEEDS, "jpeg", None).file_format == kind


def test_of_a_folder_whatever_is_called_an_image_is_taken_by_a_name_of_its_own(folder: Path) -> None:
    names = ["a.jpg", "b.jpg.jpg", "b.webp.jpg", "c.jpg"]
    planned = plan(folder, None, SEEDS, "jpeg", None)
    assert [item.target for item in planned.items] == [folder.with_name("in-out") / name for name in names]
    several = plan(folder, None, [5, 6], "png", None)
    assert [item.target.name for item in several.items][:2] == ["a-5.png", "a-6.png"]


def test_a_link_that_leads_nowhere_is_not_passed_over(folder: Path) -> None:
    (folder / "g.png").symlink_to("nowhere")
    assert "in-out/g.jpg" in targets(folder, None, SEEDS)


@pytest.mark.parametrize(
    ("source", "out", "text"),
    [
        ("nothing", None, "there is no such file or folder"),
        ("in/f.png", None, "no images in this folder"),
        ("in", "in/../in", "is the input folder itself"),
        ("in", "in/a.png", "is a file, but"),
        ("in/a.png", "in/a.png", "is the input image itself"),
        ("in/a.png", "in/a.bmp", "unknown image format"),
    ],
)
def test_contradictory_paths_are_refused(folder: Path, source: str, out: str | None, text: str) -> None:
    above = folder.parent
    with pytest.raises(CommandError, match=text):
        plan(above / source, above / out if out else None, SEEDS, "jpeg", None)


def test_two_images_that_would_become_one_are_refused(folder: Path) -> None:
    (folder / "b.jpg.png").write_bytes(b"")
    with pytest.raises(CommandError, match=r"b\.jpg and b\.jpg\.png would both become b\.jpg\.jpg; rename one of them"):
        plan(folder, None, SEEDS, "jpeg", None)


def test_a_format_that_the_suffix_contradicts_is_refused(folder: Path) -> None:
    with pytest.raises(CommandError, match="is not a webp, as --format asks"):
        plan(folder / "a.png", folder / "x.png", SEEDS, "jpeg", "webp")
