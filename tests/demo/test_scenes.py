"""The images that are learned from: captions say what is seen, labels lie where it is, and seeds decide the rest."""

import itertools
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from example.demo_model import captions, surfaces
from example.demo_model.corpus import CELLS, UNLABELLED, labels
from example.demo_model.drawing import SIZE, edges
from example.demo_model.figures import figure
from example.demo_model.layouts import Layout, form, mosaic, shapes
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS, CONTRAST, nearest_colour, shades
from example.demo_model.scenes import Scene, dense, dense_scenes, drawing, flat_scenes, lesson, mixed, mixed_scenes
from example.demo_model.scoring import colours, edge_f1

Draw = Callable[[np.random.Generator], Scene]


def drawn(draw: Draw, count: int, seed: int = 5) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


PLAIN_LESSON = partial(lesson, inked=0.0)
LESSONS = drawn(PLAIN_LESSON, 60)
EVERY = pytest.mark.parametrize("draw", [mixed, dense, PLAIN_LESSON, drawing])


@EVERY
def test_the_same_seed_draws_the_same_scenes(draw: Draw) -> None:
    for one, again in zip(drawn(draw, 6), drawn(draw, 6), strict=True):
        assert one.caption == again.caption
        assert np.array_equal(one.image, again.image)


@pytest.mark.parametrize("draw", [mixed, dense, PLAIN_LESSON])
def test_a_caption_names_every_colour_that_is_seen(draw: Draw) -> None:
    for scene in drawn(draw, 20):
        assert scene.layout is not None
        for part in scene.layout.parts:
            said = part.colour in scene.caption or (part.colour == "black" and "dark" in scene.caption)
            assert said or part.seen.mean() < 0.01, scene.caption


def test_lessons_are_of_every_style_shape_and_colour() -> None:
    words = {word for scene in drawn(PLAIN_LESSON, 150) for word in re.findall(r"\w+", scene.caption)}

    assert words >= {*COLOURS, "neon", "striped", "gradient", "circle", "disc", "square", "box", "star", "regions"}


def test_the_parts_of_a_layout_fill_the_image_once() -> None:
    for scene in LESSONS:
        assert scene.layout is not None
        total = np.sum([part.seen for part in scene.layout.parts], axis=0)
        assert np.allclose(total, 1, atol=1e-4), scene.caption


def test_of_shapes_upon_shapes_the_last_is_on_top() -> None:
    rng = np.random.default_rng(8)
    layouts = [shapes(rng, wide=True) for _ in range(40)]
    visible = [part.seen.max() for layout in layouts for part in layout.parts[1:]]
    sizes = [part.seen.sum() for layout in layouts for part in layout.parts[1:]]

    assert min(layout.parts[-1].seen.max() for layout in layouts) == 1.0
    assert np.mean(np.array(visible) > 0.99) > 0.95  # few are hidden
    assert max(sizes) > 20 * min(sizes)  # large ones and small ones


def test_photographs_have_as_dense_edges_as_figures() -> None:
    share = {
        name: np.mean([edges(scene.image).mean() for scene in scenes])
        for name, scenes in (("flat", flat_scenes(12, 3)), ("dense", dense_scenes(12, 3)))
    }

    assert share["dense"] > 3 * share["flat"]


def test_a_figure_has_edges_within_a_colour() -> None:
    rng = np.random.default_rng(2)
    layouts = [figure(rng) for _ in range(6)]
    toned = [surfaces.painted(layout, "flat", rng) for layout in layouts]
    bare = [surfaces.painted(Layout(layout.parts), "flat", rng) for layout in layouts]

    assert np.mean([edges(image).sum() for image in toned]) > 2 * np.mean([edges(image).sum() for image in bare])


def test_light_and_shade_leave_the_edges_of_plain_shapes_alone() -> None:
    layouts = [scene.layout for scene in drawn(mixed, 40) if scene.layout and scene.layout.parts[-1].kind]
    pairs = [
        (
            surfaces.painted(layout, "flat", np.random.default_rng(seed), variety)
            for seed, variety in ((1, surfaces.PLAIN), (2, surfaces.WIDELY_VARIED))
        )
        for layout in layouts[:12]
    ]

    kept = [edge_f1(edges(plain), edges(lit)) for plain, lit in pairs]
    assert np.mean(kept) > 0.97


def test_seeds_decide_light_and_shade() -> None:
    layouts = [shapes(np.random.default_rng(seed)) for seed in range(12)]

    def difference(variety: surfaces.Variety) -> float:
        pairs = [
            [surfaces.painted(layout, "flat", np.random.default_rng(seed), variety).astype(int) for seed in (1, 2)]
            for layout in layouts
        ]
        return float(np.mean([np.abs(one - other).mean() for one, other in pairs]))

    assert 1 < difference(surfaces.PLAIN) < 9
    assert difference(surfaces.VARIED) > 12
    assert difference(surfaces.WIDELY_VARIED) > 18


def test_neon_shines_along_outlines_and_mosaics_are_lit_within() -> None:
    rng = np.random.default_rng(6)
    star = shapes(rng, "black")
    tubes = surfaces.painted(star, "neon", rng)
    lit = surfaces.painted(mosaic(rng, ["black", "yellow"]), "neon", rng)
    inside = star.parts[1].seen > 0.5

    assert np.median(tubes[~inside]) < 40
    assert tubes[inside].max() > 150
    assert np.median(tubes[inside].max(axis=1)) < 120  # hollow
    assert nearest_colour(np.median(lit[lit.max(axis=2) > 150], axis=0)) == "yellow"


@pytest.mark.parametrize("spread", [0.0, 9.0, 26.0])
def test_shades_go_by_their_colours_name_and_show_against_each_other(spread: float) -> None:
    rng = np.random.default_rng(0)
    for one, other in itertools.combinations(COLOURS, 2):
        first, second = shades([one, other], rng, spread)
        assert (nearest_colour(first), nearest_colour(second)) == (one, other)
        assert np.abs(first - second).max() >= CONTRAST


def test_the_same_colour_twice_is_one_shade() -> None:
    one, other, _ = shades(["red", "red", "blue"], np.random.default_rng(0), 20.0)

    assert np.array_equal(one, other)


def test_regions_have_the_colours_that_captions_name() -> None:
    scenes = [scene for scene in mixed_scenes(60, 5) if scene.regions]
    found = [named == seen for scene in scenes for named, seen in colours(scene, scene.image)]

    assert len(scenes) > 30
    assert np.mean(found) > 0.85  # stripes and gradients are half another shade


def test_labels_lie_where_the_parts_are() -> None:
    layout = shapes(np.random.default_rng(11))
    kinds, named = labels(layout)

    assert kinds.shape == named.shape == (CELLS, CELLS)
    middle = SIZE // CELLS // 2
    for part in layout.parts:
        cells = part.seen[middle :: SIZE // CELLS, middle :: SIZE // CELLS]
        owned = named == COLOURS.index(part.colour)
        assert cells[owned & (kinds == (1 + SHAPES.index(part.kind) if part.kind else 0))].mean() > 0.9
    assert (named == UNLABELLED).any()  # along the outlines


def test_words_are_those_of_the_caption() -> None:
    worded = [scene for scene in LESSONS if scene.words]

    assert len(worded) > 10
    for scene in worded:
        for word in scene.words:
            assert f"{word.colour} {word.noun}" in scene.caption
            assert word.kind in SHAPES


@pytest.mark.parametrize(("noun", "phrase"), [("dress", "a red dress"), ("shapes", "red shapes"), ("owl", "a red owl")])
def test_one_thing_has_an_article_and_several_have_none(noun: str, phrase: str) -> None:
    layout = form(np.random.default_rng(1), "black")
    renamed = Layout((layout.parts[0], type(layout.parts[1])("red", noun, layout.parts[1].seen)))

    assert captions.plain_caption(renamed) == f"{phrase} on a black background"
