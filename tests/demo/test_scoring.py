"""The yardstick itself: scenes are what their captions say, and scores are high where they should be and only there."""

import itertools
import re

import cv2
import numpy as np
import pytest

from example.demo_model.drawing import SIZE, Mask, Pixels, edges, noise
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS, PALETTE, nearest_colour
from example.demo_model.scenes import Scene, flat_scenes
from example.demo_model.scoring import colours, edge_f1, edge_recall, mottle

SCENES = flat_scenes(24, seed=5)
PHRASE = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
BACKGROUND = re.compile(rf" on an? ({'|'.join(COLOURS)}) background$")


def test_the_same_seed_draws_the_same_scenes() -> None:
    again = flat_scenes(24, seed=5)

    assert [scene.caption for scene in again] == [scene.caption for scene in SCENES]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(SCENES, again, strict=True))
    assert flat_scenes(1, seed=6)[0].caption != SCENES[0].caption


def test_scenes_are_varied() -> None:
    words = {word for scene in SCENES for word in re.findall(r"\w+", scene.caption)}

    assert words >= {*SHAPES, *COLOURS}
    assert {len(scene.regions) - 1 for scene in SCENES} == {1, 2, 3, 4}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_a_caption_names_every_region(scene: Scene) -> None:
    background = BACKGROUND.search(scene.caption)
    assert background is not None

    named = [colour for colour, _ in PHRASE.findall(scene.caption)]
    assert [*named, background[1]] == [region.colour for region in scene.regions]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_a_scene_has_its_own_colours_and_edges(scene: Scene) -> None:
    assert all(named == found for named, found in colours(scene, scene.image))
    assert len(colours(scene, scene.image)) == len(scene.regions)
    assert np.count_nonzero(edges(scene.image)) > 60


def test_captions_read_as_the_model_knows_them() -> None:
    three = next(scene.caption for scene in SCENES if len(scene.regions) == 4)

    assert re.fullmatch(r"an? \w+ \w+, an? \w+ \w+ and an? \w+ \w+ on an? \w+ background", three)


def test_edges_match_themselves() -> None:
    drawn = edges(SCENES[0].image)

    assert edge_f1(drawn, drawn) == 1.0


def test_edges_match_within_the_tolerance_and_not_past_it() -> None:
    line = np.zeros((64, 64), np.bool_)
    line[20, 10:50] = True

    assert edge_f1(line, np.roll(line, 1, axis=0)) == 1.0
    assert edge_f1(line, np.roll(line, 2, axis=0)) == 1.0
    assert edge_f1(line, np.roll(line, 3, axis=0)) == 0.0


def test_a_drawing_shifted_by_a_pixel_matches() -> None:
    drawn = edges(SCENES[0].image)

    assert edge_f1(drawn, np.roll(drawn, 1, axis=1)) == 1.0


def test_half_the_edges_are_two_thirds_of_the_score() -> None:
    whole = np.zeros((64, 64), np.bool_)
    whole[[10, 40], 10:50] = True
    half = whole.copy()
    half[40] = False

    assert edge_f1(whole, half) == pytest.approx(2 / 3)


def lines(*rows: int) -> Mask:
    """Lines of 40 pixels."""
    mask = np.zeros((64, 64), np.bool_)
    mask[list(rows), 10:50] = True
    return mask


@pytest.mark.parametrize(
    ("wanted", "found", "recall"),
    [
        (lines(10, 40), lines(10, 40), 1.0),
        (lines(10, 40), lines(10), 0.5),
        (lines(10), lines(10, 40), 1.0),  # what is too much costs nothing
        (lines(10), lines(12), 1.0),
        (lines(10), lines(13), 0.0),
        (lines(10), lines(), 0.0),
        (lines(), lines(10), 1.0),
    ],
)
def test_recall_is_the_share_of_the_wanted_edges_that_are_found(wanted: Mask, found: Mask, recall: float) -> None:
    assert edge_recall(wanted, found) == recall


def test_the_tolerance_of_recall_can_be_set() -> None:
    assert edge_recall(lines(10), lines(12), tolerance=1) == 0.0
    assert edge_recall(lines(10), lines(20), tolerance=10) == 1.0


def crowded() -> Mask:
    """The contours of blobs about 12 pixels wide: dense edges, but with areas between them."""
    return edges(np.repeat(np.where(blobs(), 255, 0).astype(np.uint8)[..., None], 3, axis=2))


def blobs() -> Mask:
    return noise(np.random.default_rng(3), 12) > 0


def leopard() -> Pixels:
    """Patches in two colours, with the contours where they are wanted."""
    return np.asarray(np.where(blobs()[..., None], (210, 180, 120), (60, 40, 30)), np.uint8)


def inked() -> Pixels:
    """The same contours as thin dark lines on one colour."""
    ink = cv2.GaussianBlur(crowded().astype(np.float32), (0, 0), 0.8)[..., None]
    return np.asarray(np.array((210, 180, 120)) * (1 - np.minimum(ink, 1)), np.uint8)


def test_patches_are_mottled_and_lines_are_not_though_both_keep_the_edges() -> None:
    hint = crowded()

    assert edge_recall(hint, edges(leopard())) > 0.95
    assert edge_recall(hint, edges(inked())) > 0.95
    assert mottle(leopard(), hint) > 11
    assert mottle(inked(), hint) < 8


def test_a_blank_image_has_no_mottle_and_no_recall() -> None:
    blank = np.full((SIZE, SIZE, 3), (90, 120, 30), np.uint8)

    assert mottle(blank, crowded()) == pytest.approx(0, abs=1e-3)
    assert edge_recall(crowded(), edges(blank)) == 0.0


def test_mottle_is_that_of_lightness() -> None:
    image = leopard()
    light = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2LAB)
    light[..., 0] = 50
    tinted = (cv2.cvtColor(light, cv2.COLOR_LAB2RGB) * 255).round().astype(np.uint8)

    assert mottle(tinted, crowded()) < 1


def test_mottle_counts_where_edges_are_dense_alone() -> None:
    half = np.arange(SIZE) < SIZE // 2
    hint = crowded() & half
    calm = np.where(half[:, None], inked(), leopard())

    assert mottle(calm, hint) < 0.8 * mottle(calm, crowded())
    assert mottle(leopard(), np.zeros((SIZE, SIZE), np.bool_)) == 0.0


def test_another_scenes_edges_score_low() -> None:
    drawn = [edges(scene.image) for scene in SCENES]
    scores = [edge_f1(one, other) for one, other in itertools.pairwise(drawn)]

    assert np.mean(scores) < 0.25


def test_no_edges_match_no_edges_alone() -> None:
    none = np.zeros((8, 8), np.bool_)

    assert edge_f1(none, none) == 1.0
    assert edge_f1(none, ~none) == 0.0


def test_a_recoloured_scene_has_wrong_colours() -> None:
    scene = next(scene for scene in SCENES if "gray" not in scene.caption)  # gray stays gray
    inverted = (255 - scene.image).astype(np.uint8)

    assert all(named != found for named, found in colours(scene, inverted))


@pytest.mark.parametrize("name", COLOURS)
def test_a_shade_of_a_colour_is_that_colour(name: str) -> None:
    assert nearest_colour(np.array(PALETTE[name]) + 9) == nearest_colour(np.array(PALETTE[name]) - 9) == name
