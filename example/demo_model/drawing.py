"""Drawing tools: filled outlines, strokes, and smooth random fields."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

SIZE = 256  # pixels, both sides
SUBPIXEL_BITS = 4

Pixels: TypeAlias = npt.NDArray[np.uint8]  # [h, w, 3], RGB, or [h, w]
Mask: TypeAlias = npt.NDArray[np.bool_]  # [h, w]
Field: TypeAlias = npt.NDArray[np.float32]  # [h, w]; a coverage is between 0 and 1
Labels: TypeAlias = npt.NDArray[np.intp]  # [h, w], which of several parts each pixel belongs to
Points: TypeAlias = npt.NDArray[np.float64]  # [n, 2], x to the right and y down

ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def edges(image: Pixels, low: float = 100, high: float = 200) -> Mask:
    """Canny's edges [h, w] of an image (RGB [h, w, 3]), by default with the thresholds that the service has."""
    return cv2.Canny(image, low, high) > 0


def filled(outline: Points) -> Field:
    """How much of each pixel an outline (in pixels) covers."""
    coverage = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(coverage, [_fixed_point(outline)], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
    return np.asarray(coverage / np.float32(255), np.float32)


def stroke(line: Points, width: int) -> Field:
    """How much of each pixel a line (in pixels) covers."""
    coverage = np.zeros((SIZE, SIZE), np.uint8)
    cv2.polylines(coverage, [_fixed_point(line)], False, (255,), width, cv2.LINE_AA, SUBPIXEL_BITS)
    return np.asarray(coverage / np.float32(255), np.float32)


def curve(rng: np.random.Generator, controls: int = 5, margin: float = 20.0) -> Points:
    """A random Bezier curve across the image."""
    t = np.linspace(0, 1, 60)
    degree = controls - 1
    basis = [math.comb(degree, i) * (1 - t) ** (degree - i) * t**i for i in range(controls)]
    return np.asarray(np.stack(basis, axis=1) @ rng.uniform(-margin, SIZE + margin, (controls, 2)))


def noise(rng: np.random.Generator, cells: float, octaves: int = 1) -> Field:
    """A smooth random field of mean 0 and deviation 1, with about so many waves across; octaves add finer ones."""
    field = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(octaves):
        side = max(2, int(cells * 2**octave)) + 3
        grid = rng.standard_normal((side, side)).astype(np.float32)
        field += cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def ramp(rng: np.random.Generator) -> Field:
    """A slope in some direction, from -0.5 at one side of the image to 0.5 at the other."""
    angle = rng.uniform(0, 2 * math.pi)
    return np.asarray(((COLUMNS - SIZE / 2) * math.cos(angle) + (ROWS - SIZE / 2) * math.sin(angle)) / SIZE, np.float32)


def blurred(field: Field, sigma: float) -> Field:
    """A field under a Gaussian of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def coverages(labels: Labels, count: int) -> list[Field]:
    """How much of each pixel each label covers; they add up to 1. Labels are 0 to count - 1."""
    soft = [blurred((labels == label).astype(np.float32), 0.6) for label in range(count)]
    total = sum(soft[1:], start=soft[0])
    return [each / total for each in soft]


def stacked(layers: Sequence[Field]) -> list[Field]:
    """The visible share of the background and of each layer on it, the last on top; they add up to 1."""
    seen: list[Field] = []
    left = np.ones((SIZE, SIZE), np.float32)
    for layer in reversed(layers):
        seen.append(left * layer)
        left = left * (1 - layer)
    return [left, *reversed(seen)]


def _fixed_point(points: Points) -> npt.NDArray[np.int32]:
    return np.asarray(np.round(points * 2**SUBPIXEL_BITS), np.int32)
