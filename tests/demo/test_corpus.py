"""A corpus is rendered once, by any number of processes to the same images, and never from evaluation's seeds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from example.demo_model import corpus
from example.demo_model.corpus import Corpus
from example.demo_model.drawing import SIZE, edges
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.scenes import HELD_OUT
from example.demo_model.scoring import edge_recall

COUNT = 70  # more than a chunk


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.render(tmp_path_factory.mktemp("corpus"), COUNT, seed=3, processes=2)


def test_every_scene_is_there(rendered: Corpus) -> None:
    assert rendered.images.shape == (COUNT, SIZE, SIZE, 3)
    assert len(rendered.captions) == len(rendered.words) == COUNT
    assert min(image.std() for image in rendered.images) > 1
    assert rendered.kinds.max() <= len(SHAPES)
    assert len({image.tobytes() for image in rendered.images}) == COUNT


def test_labels_belong_to_the_captions(rendered: Corpus) -> None:
    for kinds, colours, words in zip(rendered.kinds, rendered.colours, rendered.words, strict=True):
        named = {(1 + SHAPES.index(word.kind), COLOURS.index(word.colour)) for word in words}
        assert {(kind, colour) for kind, colour in zip(kinds.flat, colours.flat, strict=True) if kind} <= named


def test_the_number_of_processes_changes_nothing(rendered: Corpus, tmp_path: Path) -> None:
    alone = Corpus.render(tmp_path, COUNT, seed=3, processes=1)

    assert alone.captions == rendered.captions
    assert np.array_equal(alone.images, rendered.images)


def test_existing_scenes_are_used_and_missing_ones_rendered(tmp_path: Path) -> None:
    first = Corpus.render(tmp_path, 3, seed=1, processes=1)
    written = tmp_path / "scenes-3-1.json"
    texts = json.loads(written.read_text())
    written.write_text(json.dumps([["changed by hand", []], *texts[1:]]))

    assert Corpus.render(tmp_path, 3, seed=1, processes=1).captions == ["changed by hand", *first.captions[1:]]
    assert Corpus.render(tmp_path, 2, seed=1, processes=1).captions == first.captions[:2]
    assert not written.exists()


def test_half_of_them_are_drawings_and_have_the_edges_that_they_were_made_from(rendered: Corpus) -> None:
    hints = np.unpackbits(rendered.hints, axis=1).reshape(-1, SIZE, SIZE) > 0

    assert 0.35 < rendered.inked.mean() < 0.65
    for image, hint, inked in zip(rendered.images, hints, rendered.inked, strict=True):
        if inked:
            assert edge_recall(hint, edges(image, 30, 60)) > 0.8
        else:
            assert np.array_equal(hint, edges(image, *corpus.HINTED))


@pytest.mark.parametrize("seed", [HELD_OUT, -1])
def test_seeds_of_evaluation_are_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the seed is {seed}; training takes 0 to {HELD_OUT - 1}")):
        Corpus.render(tmp_path, 1, seed)
    assert corpus.CHUNK < COUNT
