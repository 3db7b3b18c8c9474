"""The scenes of a training, rendered once by all cores and kept on disk."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from example.demo_model.drawing import SIZE, Field, edges
from example.demo_model.layouts import Layout
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.photograph_sources import Photograph, photographs
from example.demo_model.scenes import HELD_OUT, Word, lesson

CELLS = 16  # of the labels, a side
OWNED = 0.85  # of a cell's pixels, for it to belong to a part
UNLABELLED = 255
HINTED = (150, 300)  # Canny's thresholds, above those it will have: a hint then always stands for a clear edge
CHUNK = 64  # scenes that a process draws from one seed, so that the corpus does not depend on the number of processes

CellLabels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Corpus:
    """`images` RGB [n, 256, 256, 3]; their edge maps as bits, `hints` [n, 256 * 256 / 8]; `inked` [n], 1 for drawings
    made from their edge maps; `kinds` and `colours` [n, 16, 16]: what each cell shows.

    A kind is 0 where no named shape is, and 1 + its index in SHAPES where one is; a colour is its index in COLOURS, or
    UNLABELLED where a cell has several.
    """

    images: npt.NDArray[np.uint8]
    hints: npt.NDArray[np.uint8]
    inked: npt.NDArray[np.uint8]
    kinds: CellLabels
    colours: CellLabels
    captions: list[str]
    words: list[tuple[Word, ...]]

    @classmethod
    def render(cls, folder: Path, count: int, seed: int, processes: int | None = None) -> "Corpus":
        """Draw `count` scenes into a folder, or take those that an earlier call with the same numbers left there.

        Raises ValueError for a seed that evaluation keeps to itself.
        """
        if not 0 <= seed < HELD_OUT:
            raise ValueError(
                f"the seed is {seed}; training takes 0 to {HELD_OUT - 1}, evaluation those from {HELD_OUT}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        texts = folder / f"scenes-{count}-{seed}.json"
        if not texts.exists():
            _allocate(folder, count)
            _write(texts, list(_rendered(folder, count, seed, processes or os.cpu_count() or 1)))
        written = json.loads(texts.read_text())
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(
            **arrays,
            captions=[caption for caption, _ in written],
            words=[tuple(Word(*word) for word in words) for _, words in written],
        )


ARRAYS = {
    "images": (SIZE, SIZE, 3),
    "hints": (SIZE * SIZE // 8,),
    "inked": (),
    "kinds": (CELLS, CELLS),
    "colours": (CELLS, CELLS),
}


def _allocate(folder: Path, count: int) -> None:
    for stale in folder.glob("scenes-*.json"):
        stale.unlink()
    for name, shape in ARRAYS.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (count, *shape))


def _rendered(folder: Path, count: int, seed: int, processes: int) -> Iterator[Any]:
    starts = range(0, count, CHUNK)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool, tqdm(total=count, desc="scenes", unit="scene") as bar:
        for texts in pool.map(partial(_chunk, folder, count, seed), starts):
            bar.update(len(texts))
            yield from texts


def _chunk(folder: Path, count: int, seed: int, start: int) -> list[Any]:
    """Draw the scenes from `start` on; return their captions and words."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, start))
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ARRAYS]
    texts: list[Any] = []
    for index in range(start, min(start + CHUNK, count)):
        scene = lesson(rng, _photographs())
        hint = edges(scene.image, *HINTED) if scene.hint is None else scene.hint
        values = (scene.image, np.packbits(hint), scene.hint is not None, *labels(scene.layout))
        for array, value in zip(arrays, values, strict=True):
            array[index] = value
        texts.append((scene.caption, [astuple(word) for word in scene.words]))
    return texts


@cache
def _photographs() -> list[Photograph]:
    """None where no package has any: then all edge maps are of drawn scenes."""
    try:
        return photographs()
    except FileNotFoundError:
        return []


def labels(layout: Layout | None) -> tuple[CellLabels, CellLabels]:
    """The kind and the colour of each cell, [16, 16] both; none without a layout."""
    kinds = np.zeros((CELLS, CELLS), np.uint8)
    colours = np.full((CELLS, CELLS), UNLABELLED, np.uint8)
    for part in layout.parts if layout else ():
        owned = _cell_means(part.seen) > OWNED
        colours[owned] = COLOURS.index(part.colour)
        if part.kind is not None:
            kinds[owned] = 1 + SHAPES.index(part.kind)
    return kinds, colours


def _cell_means(seen: Field) -> Field:
    return np.asarray(cv2.resize(seen, (CELLS, CELLS), interpolation=cv2.INTER_AREA), np.float32)


def _write(path: Path, texts: list[Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(texts))
    temporary.replace(path)
