"""Drawings of edge maps: lines where the edges are, calm areas between them, colours where the prompt has them."""

import cv2
import numpy as np
import pytest

from example.demo_model.drawing import SIZE, Mask, edges
from example.demo_model.evaluation import PHOTOGRAPHS, photograph_scenes
from example.demo_model.ink import Parts, inked
from example.demo_model.palette import COLOURS, PALETTE, nearest_colour
from example.demo_model.prompts import STYLES, Prompt, prompt, vocabulary
from example.demo_model.scoring import edge_recall, mottle

RED, BLUE, GREEN = (np.array(PALETTE[name], np.float32) for name in ("red", "blue", "green"))
HINTS = [edges(scene.image) for scene in photograph_scenes(("",), len(PHOTOGRAPHS))]
OUTSIDE = (20, 20)


def boxed() -> Mask:
    """A closed square, a hundred pixels a side, with a line across its middle."""
    hint = np.zeros((SIZE, SIZE), np.uint8)
    cv2.rectangle(hint, (78, 78), (178, 178), 255)
    cv2.line(hint, (78, 128), (178, 128), 255)
    return hint > 0


def drawn(hint: Mask, asked: Prompt, seed: int = 0) -> np.ndarray:
    return inked(hint, Parts.of(hint), asked, np.random.default_rng(seed))


def test_what_lines_enclose_is_figure_and_what_the_rim_reaches_is_ground() -> None:
    figure = Parts.of(boxed()).figure

    assert figure[100, 128] > 0.9
    assert figure[OUTSIDE] < 0.1


def test_figure_and_ground_have_their_colours() -> None:
    image = drawn(boxed(), Prompt("", RED, BLUE, BLUE, "flat"))

    assert nearest_colour(np.median(image[85:120, 85:170], axis=(0, 1))) == "red"
    assert nearest_colour(image[OUTSIDE]) == "blue"


def test_the_last_region_is_the_ground_and_the_others_go_from_top_to_bottom() -> None:
    image = drawn(boxed(), Prompt("", RED, BLUE, BLUE, "flat", (RED, GREEN, BLUE)))

    assert [nearest_colour(image[place]) for place in ((100, 128), (150, 128), OUTSIDE)] == ["red", "green", "blue"]


@pytest.mark.parametrize("hint", HINTS, ids=PHOTOGRAPHS)
def test_a_photographs_edges_are_drawn_without_patches(hint: Mask) -> None:
    image = drawn(hint, Prompt("", RED, BLUE, BLUE, "flat"))

    assert edge_recall(hint, edges(image)) > 0.9
    assert mottle(image, hint) < 12


def test_a_seed_decides_what_a_prompt_leaves_open() -> None:
    asked = Prompt("", RED, BLUE, BLUE, "poster")
    one, same, other = (drawn(HINTS[0], asked, seed) for seed in (1, 1, 2))

    assert np.array_equal(one, same)
    assert np.abs(one.astype(int) - other).mean() > 1


def test_prompts_say_the_colours_that_they_name() -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt(rng) for _ in range(400)]

    assert {each.style for each in prompts} == set(STYLES)
    for each in prompts:
        for colour in each.named or ():
            assert colour in each.text
        for shade in each.regions:
            assert nearest_colour(shade) in each.text
    assert any(not set(COLOURS) & set(each.text.split()) for each in prompts)


def test_made_up_words_are_not_in_the_vocabulary() -> None:
    words = set(" ".join(vocabulary()).replace(",", " ").split())
    rng = np.random.default_rng(1)
    said = {word.strip(",") for _ in range(400) for word in prompt(rng).text.split()}

    assert {"watercolour", "sunset", "rose", "portrait", "background", "on"} <= words
    assert said - words  # people's prompts have such words
