"""Layouts: shapes, forms of one colour, and mosaics, on a background or side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from example.demo_model.drawing import (
    COLUMNS,
    ROWS,
    SIZE,
    Field,
    Labels,
    Points,
    coverages,
    curve,
    noise,
    stacked,
    stroke,
)
from example.demo_model.outlines import SHAPES, coverage
from example.demo_model.palette import COLOURS

GROUND = "background"  # the noun of what lies behind all else
REGION = "region"  # the noun of a mosaic's parts

COUNT_ODDS = (0.30, 0.35, 0.22, 0.13)  # of 1, 2, 3 and 4 shapes
RADII = ((48, 92), (38, 64), (34, 54), (30, 46))  # pixels, for as many
WIDE_RADII = ((24, 118), (22, 90), (20, 74), (18, 62))
GAP = 1.05  # between centres, in sums of radii
OVERLAP = 0.62  # the same, where shapes may lie upon each other
TRIES = 60  # to find a place
BORDER = (1.0, 2.5)  # pixels, of a silhouette: how wide it is


@dataclass(frozen=True)
class Part:
    """One thing that a caption names, and where it shows. `kind` is one of SHAPES, if that is what it is."""

    colour: str
    noun: str
    seen: Field
    kind: str | None = None


@dataclass(frozen=True)
class Layout:
    """The parts of an image, the ground first if it has one; what is seen of them adds up to 1.

    `tone` [h, w], 0 in most places, tells a figure's lighter and darker parts.
    """

    parts: tuple[Part, ...]
    tone: Field | None = None

    @property
    def has_ground(self) -> bool:
        """Whether something is named as lying behind."""
        return self.parts[0].noun == GROUND


def shapes(rng: np.random.Generator, ground: str | None = None, *, wide: bool = False) -> Layout:
    """One to four shapes of different kinds; if `wide`, of more sizes and some upon others."""
    ground = ground or any_colour(rng)
    count = int(rng.choice(len(COUNT_ODDS), p=COUNT_ODDS)) + 1
    gap = OVERLAP if wide and rng.random() < 0.6 else GAP
    kinds, layers = _placed(rng, count, (WIDE_RADII if wide else RADII)[count - 1], gap)
    seen = stacked(layers)
    parts = [Part(any_colour(rng, but=(ground,)), kind, each, kind) for kind, each in zip(kinds, seen[1:], strict=True)]
    return Layout((Part(ground, GROUND, seen[0]), *parts))


def _placed(rng: np.random.Generator, count: int, radii: tuple[int, int], gap: float) -> tuple[list[str], list[Field]]:
    """Kinds with their coverage, each clear of those before; one that finds no place is left out."""
    kinds: list[str] = []
    layers: list[Field] = []
    places: list[tuple[float, Points]] = []
    for kind in rng.choice(SHAPES, count, replace=False):
        for _ in range(TRIES):
            radius = rng.uniform(*radii)
            centre = rng.uniform(min(radius + 4, SIZE / 2), max(SIZE - radius - 4, SIZE / 2), 2)
            if all(math.dist(centre, other) > (radius + extent) * gap for extent, other in places):
                places.append((radius, centre))
                kinds.append(str(kind))
                layers.append(coverage(str(kind), radius, centre, rng))
                break
    return kinds, layers


def form(rng: np.random.Generator, ground: str | None = None) -> Layout:
    """Something of one colour that has no name of its own: a silhouette, some shapes, or strokes."""
    ground = ground or any_colour(rng)
    noun, covered = FORMS[int(rng.choice(len(FORMS), p=(0.4, 0.35, 0.25)))](rng)
    seen = stacked([covered])
    return Layout((Part(ground, GROUND, seen[0]), Part(any_colour(rng, but=(ground,)), noun, seen[1])))


def silhouette(rng: np.random.Generator) -> Field:
    """The inside of a contour, smooth or ragged, of something in the middle of the image or all over it."""
    field = noise(rng, rng.uniform(1.5, 8), int(rng.integers(1, 5)))
    if rng.random() < 0.5:
        x = COLUMNS / SIZE - 0.5 - rng.uniform(-0.15, 0.15)
        y = ROWS / SIZE - 0.5 - rng.uniform(-0.15, 0.15)
        field = field * 0.6 + 1.6 - 8 * rng.uniform(0.8, 2) * x**2 - 8 * rng.uniform(0.8, 2) * y**2
    field -= rng.uniform(-0.4, 0.4)
    slope = np.hypot(*np.gradient(field)) + 1e-3
    return np.asarray(np.clip(field / slope / rng.uniform(*BORDER) + 0.5, 0, 1), np.float32)


def _a_silhouette(rng: np.random.Generator) -> tuple[str, Field]:
    return str(rng.choice(("shape", "shape", "object", "form", "figure"))), silhouette(rng)


def _some_shapes(rng: np.random.Generator) -> tuple[str, Field]:
    count = int(rng.integers(1, 6))
    layers = [
        coverage(str(rng.choice(SHAPES)), rng.uniform(22, 80), rng.uniform(10, SIZE - 10, 2), rng) for _ in range(count)
    ]
    return "shapes" if count > 1 else "shape", np.maximum.reduce(layers)


def _strokes(rng: np.random.Generator) -> tuple[str, Field]:
    layers = [stroke(curve(rng), int(rng.integers(3, 14))) for _ in range(int(rng.integers(1, 7)))]
    return str(rng.choice(("lines", "curves", "strokes"))), np.maximum.reduce(layers)


FORMS = (_a_silhouette, _some_shapes, _strokes)


def mosaic(rng: np.random.Generator, colours: Sequence[str] | None = None) -> Layout:
    """Two to four colours that share the whole image: cells, contour lines, or shapes upon shapes."""
    named = colours or some_colours(rng, int(rng.integers(2, 5)))
    drawing = MOSAICS[int(rng.choice(len(MOSAICS), p=(0.42, 0.40, 0.18)))]
    seen = coverages(drawing(rng, len(named)), len(named))
    return Layout(tuple(Part(colour, REGION, each) for colour, each in zip(named, seen, strict=True)))


def _cells(rng: np.random.Generator, count: int) -> Labels:
    """Voronoi cells, some with warped borders."""
    cells = int(rng.integers(max(4, count), 22))
    warp = 14.0 if rng.random() < 0.4 else 0.0
    x, y = COLUMNS + warp * noise(rng, 4), ROWS + warp * noise(rng, 4)
    points = rng.uniform(0, SIZE, (cells, 2))
    nearest = np.stack([(x - px) ** 2 + (y - py) ** 2 for px, py in points]).argmin(axis=0)
    owners = rng.integers(0, count, cells)
    owners[:count] = np.arange(count)
    return np.asarray(owners[nearest])


def _contours(rng: np.random.Generator, count: int) -> Labels:
    field = noise(rng, rng.uniform(2, 7), int(rng.integers(1, 4)))
    return np.digitize(field, np.sort(rng.uniform(-1.1, 1.1, count - 1)))


def _heap(rng: np.random.Generator, count: int) -> Labels:
    labels = np.zeros((SIZE, SIZE), np.intp)
    for _ in range(int(rng.integers(3, 9))):
        centre = rng.uniform(20, SIZE - 20, 2)
        labels[coverage(str(rng.choice(SHAPES)), rng.uniform(30, 90), centre, rng) > 0.5] = rng.integers(0, count)
    return labels


MOSAICS = (_cells, _contours, _heap)


def any_colour(rng: np.random.Generator, but: Sequence[str] = ()) -> str:
    """A colour's name, none of `but`."""
    return str(rng.choice([colour for colour in COLOURS if colour not in but]))


def some_colours(rng: np.random.Generator, count: int, but: Sequence[str] = ()) -> list[str]:
    """Names of so many different colours."""
    names = [colour for colour in COLOURS if colour not in but]
    return [str(colour) for colour in rng.choice(names, count, replace=False)]
