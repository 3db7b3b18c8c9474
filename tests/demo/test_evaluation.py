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
from example.demo_model.drawing import SIZE
from example.demo_model.evaluation import PROMPTS, Scores, _count, evaluate, held_out, obedience, photograph_as
from example.demo_model.painter import Painter, Painting
from example.demo_model.scenes import Scene, flat_scenes, mixed_scenes
from example.demo_model.scoring import edges
from example.demo_model.sheet import contact_sheet
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


def test_the_photograph_fills_the_frame_and_has_edges_all_over() -> None:
    scene = photograph_as("a face")

    assert scene.caption == "a face"
    assert scene.image.shape == (SIZE, SIZE, 3)
    quarters = [half for row in np.split(edges(scene.image), 2) for half in np.split(row, 2, axis=1)]
    assert all(quarter.sum() > 500 for quarter in quarters)


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
    assert scores.unrepeated == 0.0 < scores.difference
    assert scores.size == pytest.approx(13e6, rel=0.2)
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
        "control off",
        "chance",
        "VAE",
        "another seed",
        "same seed",
        "alone",
        "weights",
    ):
        assert any(row in line for line in lines), row
    for prompt in (*PROMPTS, "mean"):
        assert any(line.startswith("| photograph") and prompt in line for line in lines)
    assert f"| flat scenes: edge F1, 2 px | {scores.flat.edges:.3f} |" in lines


def test_the_scores_are_json(scores: Scores) -> None:
    read = json.loads(json.dumps(scores.as_dict()))

    assert read["flat"]["shapes"]["of"] == scores.flat.shapes.of
    assert read["photograph"] == scores.photograph
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
