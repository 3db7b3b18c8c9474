"""Pictures that the demo model has not seen: flat shapes in named colours on a named background, with their captions.

They are drawn as its training pictures were, so a caption says all there is to say of a scene's colours, and a shape's
region is known to the pixel.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Points: TypeAlias = npt.NDArray[np.float64]  # [n, 2], x to the right and y down; a shape's radius is about 1

SIZE = 256  # pixels, both sides
PALETTE: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (250, 225, 50),
    "green": (45, 165, 65),
    "cyan": (60, 205, 215),
    "blue": (35, 75, 220),
    "purple": (130, 45, 180),
    "pink": (245, 145, 195),
    "brown": (120, 70, 35),
    "black": (18, 18, 18),
    "white": (245, 245, 245),
    "gray": (130, 130, 130),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "hexagon", "blob")

COUNT_ODDS = (0.30, 0.35, 0.22, 0.13)  # of 1, 2, 3 and 4 shapes
RADII = ((48, 92), (38, 64), (34, 54), (30, 46))  # pixels, for as many
SHADE = 9.0  # a colour's channels vary by this much
TILT = 0.35  # radians, either way
GAP = 1.05  # between centres, in sums of radii
HOLE = (0.50, 0.62)  # of a ring, in radii
TRIES = 60  # to find a place
SUBPIXEL_BITS = 4
EDGE_WIDTH = 7  # pixels around an outline that belong to no region


@dataclass(frozen=True)
class Region:
    """Where a colour is: a shape, or the background; `mask` [h, w] leaves out a margin."""

    mask: Mask
    colour: str


@dataclass(frozen=True)
class Scene:
    """A picture (RGB [h, w, 3]) with its caption. The last region is the background."""

    picture: Pixels
    caption: str
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class _Shape:
    kind: str
    colour: str
    radius: float
    centre: Points


def scenes(count: int, seed: int) -> list[Scene]:
    """Some scenes; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def draw(rng: np.random.Generator) -> Scene:
    """One scene of one to four shapes that do not touch."""
    background = COLOURS[int(rng.integers(len(COLOURS)))]
    shapes = list(_placed_shapes(rng, [colour for colour in COLOURS if colour != background]))
    coverages = [_coverage(shape, rng) for shape in shapes]
    picture = np.full((SIZE, SIZE, 3), _shade(background, rng))
    for shape, coverage in zip(shapes, coverages, strict=True):
        picture += (coverage[..., None] / 255.0) * (_shade(shape.colour, rng) - picture)
    return Scene(
        picture=np.clip(picture, 0, 255).astype(np.uint8),
        caption=_caption(shapes, background),
        regions=_regions(shapes, coverages, background),
    )


def _placed_shapes(rng: np.random.Generator, colours: Sequence[str]) -> Iterator[_Shape]:
    """Different kinds, each where it is clear of those before; one that finds no place is left out."""
    count = int(rng.choice(len(COUNT_ODDS), p=COUNT_ODDS)) + 1
    placed: list[_Shape] = []
    for kind in rng.choice(SHAPES, count, replace=False):
        for _ in range(TRIES):
            radius = rng.uniform(*RADII[count - 1])
            centre = rng.uniform(radius + 4, SIZE - radius - 4, 2)
            shape = _Shape(str(kind), colours[int(rng.integers(len(colours)))], radius, centre)
            if all(math.dist(centre, other.centre) > (radius + other.radius) * GAP for other in placed):
                placed.append(shape)
                yield shape
                break


def _coverage(shape: _Shape, rng: np.random.Generator) -> Pixels:
    """How much of each pixel [h, w] a shape covers, up to 255."""
    outline = OUTLINES[shape.kind](rng) @ _rotation(rng.uniform(-TILT, TILT))
    coverage = _filled(outline * shape.radius + shape.centre)
    if shape.kind != "ring":
        return coverage
    hole = _filled(_circle(rng) * shape.radius * rng.uniform(*HOLE) + shape.centre)
    return np.asarray(cv2.subtract(coverage, hole), np.uint8)


def _filled(outline: Points) -> Pixels:
    coverage = np.zeros((SIZE, SIZE), np.uint8)
    corners = np.round(outline * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(coverage, [corners], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
    return coverage


def _regions(shapes: Sequence[_Shape], coverages: Sequence[Pixels], background: str) -> tuple[Region, ...]:
    margin = np.ones((EDGE_WIDTH, EDGE_WIDTH), np.uint8)
    inner = [
        Region(cv2.erode(coverage, margin) > 200, shape.colour)
        for shape, coverage in zip(shapes, coverages, strict=True)
    ]
    outside = cv2.dilate(np.maximum.reduce(coverages), margin) < 50
    return (*inner, Region(outside, background))


def _shade(colour: str, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.clip(np.array(PALETTE[colour]) + rng.uniform(-SHADE, SHADE, 3), 0, 255)


def _caption(shapes: Sequence[_Shape], background: str) -> str:
    named = [f"{_article(shape.colour)} {shape.colour} {shape.kind}" for shape in shapes]
    listed = " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
    return f"{listed} on {_article(background)} {background} background"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# ----------------------------------------------------------------------------------------------------------- outlines


def _rotation(angle: float) -> Points:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _polar(angles: npt.NDArray[np.float64], radii: npt.NDArray[np.float64] | float = 1.0) -> Points:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _turn(corners: int) -> npt.NDArray[np.float64]:
    return np.linspace(0, 2 * math.pi, corners, endpoint=False)


def _circle(rng: np.random.Generator) -> Points:
    return _polar(_turn(72))


def _square(rng: np.random.Generator) -> Points:
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.86


def _triangle(rng: np.random.Generator) -> Points:
    return _polar(_turn(3) - math.pi / 2, 1.12)


def _star(rng: np.random.Generator) -> Points:
    return _polar(_turn(10) - math.pi / 2, np.where(np.arange(10) % 2 == 0, 1.12, 0.48))


def _heart(rng: np.random.Generator) -> Points:
    t = _turn(72)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _hexagon(rng: np.random.Generator) -> Points:
    return _polar(_turn(6) + rng.uniform(0, 1))


def _blob(rng: np.random.Generator) -> Points:
    angles = _turn(90)
    radii = np.ones_like(angles)
    for waves in range(2, 6):
        radii += rng.uniform(0.04, 0.36 / waves**0.6) * np.cos(waves * angles + rng.uniform(0, 2 * math.pi))
    return _polar(angles, radii)


OUTLINES: Mapping[str, Callable[[np.random.Generator], Points]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _circle,
    "heart": _heart,
    "hexagon": _hexagon,
    "blob": _blob,
}
