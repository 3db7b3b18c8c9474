"""The yardstick itself: scenes are what their captions say, and scores are high where they should be and only there."""

import itertools
import re

import numpy as np
import pytest

from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS, PALETTE, nearest_colour
from example.demo_model.scenes import Scene, flat_scenes
from example.demo_model.scoring import colours, edge_f1, edges

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
