"""The outlines of the eight shapes that captions name, of radius about 1 around the origin."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from example.demo_model.drawing import Field, Points, filled

HOLE = (0.50, 0.62)  # of a ring, in radii
TILT = 0.35  # radians, either way


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
SHAPES = tuple(OUTLINES)


def coverage(kind: str, radius: float, centre: Points, rng: np.random.Generator, tilt: float = TILT) -> Field:
    """How much of each pixel [h, w] a shape covers, at a random tilt; `radius` and `centre` [2] in pixels."""
    outline = OUTLINES[kind](rng) @ _rotation(rng.uniform(-tilt, tilt))
    covered = filled(outline * radius + centre)
    if kind != "ring":
        return covered
    hole = filled(_circle(rng) * radius * rng.uniform(*HOLE) + centre)
    return np.asarray(np.maximum(covered - hole, 0), np.float32)
