"""Evaluating a model: by the one that ships, with few scenes and steps; and comparing two."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from example.demo_model import comparison
from example.demo_model import painter as by_pipeline
from example.demo_model.comparison import twenty
from example.demo_model.drawing import SIZE, edges
from example.demo_model.evaluation import (
    FOLDER,
    LARGE,
    LOOKED_AT,
    PHOTOGRAPHS,
    Scores,
    _count,
    clarity,
    evaluate,
    held_out,
    obedience,
    photograph_scenes,
)
from example.demo_model.painter import Painter, Painting
from example.demo_model.scenes import Scene, flat_scenes, mixed_scenes
from example.demo_model.sheet import GAP, contact_sheet
from tests.demo.test_sheet import varied
from workers.convert import read_engine

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # diffusers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

MODEL = Path(__file__).parents[2] / "configs" / "demo"
STEPS = 4


@pytest.fixture(scope="module")
def scores() -> Scores:
    return evaluate(MODEL, scenes=2, steps=STEPS)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(MODEL)


def perfect(scenes: Sequence[Scene]) -> list[Painting]:
    return [Painting(scene, scene.image) for scene in scenes]


def test_it_is_judged_as_it_is_served() -> None:
    served = read_engine(MODEL.with_suffix(".yaml"))

    assert (served.guidance_scale, served.sampler.steps) == (by_pipeline.GUIDANCE, by_pipeline.STEPS)
    assert served.sampler.name == "UniPCMultistepScheduler"


def test_held_out_scenes_are_as_many_as_asked_for_and_different() -> None:
    scenes = held_out(flat_scenes, 30)

    assert len({scene.image.tobytes() for scene in scenes}) == 30
    assert [scene.caption for scene in held_out(flat_scenes, 30)] == [scene.caption for scene in scenes]
    assert all(edges(scene.image).sum() > 60 for scene in scenes)


def test_perfect_images_have_a_perfect_score() -> None:
    scenes = held_out(flat_scenes, 12)
    score = obedience(perfect(scenes))

    assert score.edges == 1.0
    assert score.shapes.right == score.shapes.of == sum(len(scene.regions) - 1 for scene in scenes)
    assert score.backgrounds.right == score.backgrounds.of == 12


def test_a_wrong_background_is_not_laid_to_the_shapes() -> None:
    scene = held_out(flat_scenes, 1)[0]
    *shapes, background = scene.regions
    image = scene.image.copy()
    image[background.mask] = 255 - image[shapes[0].mask].mean(axis=0).astype(np.uint8)
    score = obedience([Painting(scene, image)])

    assert (score.backgrounds.right, score.backgrounds.of) == (0, 1)
    assert score.shapes.right == score.shapes.of == len(shapes)


def test_scenes_without_regions_have_edges_alone_to_score() -> None:
    scenes = held_out(mixed_scenes, 40)
    bare = [scene for scene in scenes if not scene.regions]
    score, of_bare = obedience(perfect(scenes)), obedience(perfect(bare))

    assert bare
    assert score.backgrounds.of <= 40 - len(bare)
    assert score.shapes.right >= 0.8 * score.shapes.of > 0
    assert (of_bare.shapes.of, of_bare.backgrounds.of) == (0, 0)


@pytest.mark.parametrize("side", [SIZE, LARGE])
def test_the_photographs_fill_the_frame_and_have_dense_edges(side: int) -> None:
    scenes = photograph_scenes(["a face", "a tree"], side=side)

    assert [scene.caption for scene in scenes] == ["a face"] * 6 + ["a tree"] * 6
    for one, again in zip(scenes[:6], scenes[6:], strict=True):
        assert one.image.shape == (side, side, 3)
        assert edges(one.image).mean() > 0.03
        assert np.array_equal(one.image, again.image)


def test_half_of_the_photographs_were_never_looked_at_and_all_have_a_licence() -> None:
    licences = (FOLDER / "README.md").read_text()

    assert len(LOOKED_AT) == len(PHOTOGRAPHS) - 3 == 3
    assert sorted(PHOTOGRAPHS) == sorted(file.stem for file in FOLDER.glob("*.jpg"))
    assert all(f"| `{name}.jpg` |" in licences for name in PHOTOGRAPHS)
    assert all(file.stat().st_size < 60_000 for file in FOLDER.glob("*.jpg"))


def test_photographs_themselves_are_clear_and_blank_images_are_not() -> None:
    scenes = photograph_scenes(["a face"])
    own = clarity(perfect(scenes))
    blank = clarity([Painting(scene, np.zeros_like(scene.image)) for scene in scenes])

    assert (own.recall, own.least) == (1.0, 1.0)
    assert 7 < own.mottle < 12 < own.most < 14
    assert (blank.recall, blank.least, blank.mottle, blank.most) == (0.0, 0.0, 0.0, 0.0)


def test_clarity_is_the_mean_and_the_worst() -> None:
    one, other = photograph_scenes(["a face"], 2)
    score = clarity([Painting(one, one.image), Painting(other, np.zeros_like(other.image))])

    assert (score.recall, score.least) == (0.5, 0.0)
    assert score.mottle == score.most / 2 > 0


def test_an_image_is_the_same_in_any_batch(painter: Painter) -> None:
    scenes = held_out(flat_scenes, 3)
    together = painter.paint_scenes(scenes, seed=7, steps=STEPS)
    alone = Painter(MODEL, batch=1).paint_scenes(scenes, seed=7, steps=STEPS)

    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.image.astype(int) - other.image).mean() <= 0.01
    assert not np.array_equal(together[0].image, together[1].image)


def test_a_seed_is_an_images_own_place_in_the_list(painter: Painter) -> None:
    scenes = held_out(flat_scenes, 1) * 2
    (_, second), (alone,) = (
        painter.paint_scenes(list_, seed, steps=2) for list_, seed in ((scenes, 3), (scenes[:1], 4))
    )

    assert np.abs(second.image.astype(int) - alone.image).mean() <= 0.01


def test_the_vae_gives_images_back(painter: Painter) -> None:
    images = [scene.image for scene in held_out(flat_scenes, 2)]

    for before, after in zip(images, painter.reconstruct(images), strict=True):
        assert np.abs(before.astype(int) - after).mean() < 8


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no model"):
        evaluate(tmp_path, scenes=2)


def test_a_single_scene_has_no_other_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="1 scenes: at least 2"):
        evaluate(MODEL, scenes=1)


def test_the_model_that_ships_scores_as_it_should(scores: Scores) -> None:
    assert scores.flat.edges > 0.7
    assert max(scores.uncontrolled, scores.chance) < scores.flat.edges - 0.4
    assert scores.ceiling.flat.edges > 0.9
    assert scores.unrepeated == 0.0 < scores.flat_seeds.difference
    assert min(scores.open_seeds.difference, scores.named_seeds.difference) > 1
    assert list(scores.photographs) == list(PHOTOGRAPHS[:2])
    assert all(0.5 < each.least <= each.recall <= 1 for each in (*scores.photographs.values(), scores.large))
    assert all(3 < each.mottle <= each.most < 25 for each in (*scores.photographs.values(), scores.large))
    assert scores.size == pytest.approx(12e6, rel=0.2)
    assert 0 < min(scores.paintings.seconds) <= scores.seconds


def test_the_progress_bar_ends_full(scores: Scores) -> None:
    painted = [each for name, each in vars(scores.paintings).items() if name != "seconds"]

    assert _count(2) == sum(map(len, painted))


def test_the_table_has_every_row(scores: Scores) -> None:
    lines = scores.table().splitlines()

    assert all(line.count("|") == 3 for line in lines)
    for row in (
        "flat",
        "mixed",
        "dense",
        "384 px",
        "themselves",
        "no colour named",
        "two colours named",
        "control off",
        "chance",
        "VAE",
        "another seed",
        "same seed",
        "alone",
        "weights",
    ):
        assert any(row in line for line in lines), row
    for name in PHOTOGRAPHS[:2]:
        assert any(line.startswith(f"| {name}: edge recall") for line in lines)
    assert f"| flat scenes: edge F1, 2 px | {scores.flat.edges:.3f} |" in lines


def test_the_scores_are_json(scores: Scores) -> None:
    read = json.loads(json.dumps(scores.as_dict()))

    assert read["flat"]["shapes"]["of"] == scores.flat.shapes.of
    assert read["photographs"]["cat"]["mottle"] == scores.photographs["cat"].mottle
    assert "paintings" not in read


def test_the_sheet_shows_what_was_scored(scores: Scores, tmp_path: Path) -> None:
    contact_sheet(scores, tmp_path / "sheet.jpg")

    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 3 * 2 * SIZE
        assert sheet.height > 3 * SIZE
        assert varied(sheet)


def test_the_twenty_scenes_of_a_comparison_stay_the_same() -> None:
    one, again = twenty(), twenty()

    assert len(one) == 20
    assert len({(scene.caption, scene.image.tobytes()) for scene in one}) == 20
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, again, strict=True))


def test_two_models_are_shown_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "twenty", lambda: twenty()[:4])
    comparison.compare(MODEL, MODEL, tmp_path / "both.jpg", steps=1)

    with Image.open(tmp_path / "both.jpg") as sheet:
        assert sheet.width > 2 * 3 * SIZE
        assert sheet.height > 2 * SIZE
        first = np.asarray(sheet)[12 : 12 + SIZE, 12 : 12 + 3 * SIZE].astype(int)
    one, other = first[:, SIZE : 2 * SIZE], first[:, 2 * SIZE :]
    assert np.abs(one[:, 8:-8] - other[:, 8:-8]).mean() < 3  # the same model, so all but what JPEG made of it
    assert np.abs(one - first[:, :SIZE]).mean() > 20


def test_two_models_paint_the_same_photographs_in_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = photograph_scenes(["a face"], 1), photograph_scenes(["a face"], 1, LARGE)
    monkeypatch.setattr(comparison, "photograph_scenes", lambda _, side: first[side == LARGE])
    comparison.compare(MODEL, MODEL, tmp_path / "both.jpg", photographs=True, steps=1)

    with Image.open(tmp_path / "both.jpg") as sheet:
        assert sheet.width == 4 * SIZE + 4 * LARGE + 3 * GAP
        pixels = np.asarray(sheet).astype(int)
    for left, scene in zip((GAP, 2 * GAP + 4 * SIZE), (first[0][0], first[1][0]), strict=True):
        shown = pixels[GAP : GAP + len(scene.image), left : left + len(scene.image)]
        assert np.abs(shown - scene.image).mean() < 6
