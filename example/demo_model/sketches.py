"""Edge maps to draw upon: of photographs, of things cut out of photographs, and of scenes as dense as they are."""

from collections.abc import Sequence

import cv2
import numpy as np

from example.demo_model.drawing import SIZE, Field, Mask, Pixels, edges, noise, ramp
from example.demo_model.photograph_sources import Photograph

LOW = (60.0, 100.0, 100.0, 100.0, 150.0)  # Canny's lower thresholds; the upper ones are twice as high
DENSITY = (0.025, 0.24)  # of edges: less is a plain shape, which gets no ink
TRIES = 30
CUT_OUT = 0.75  # of the edge maps of photographs: things with a known outline
SMALLEST = 150  # pixels; the side of a crop


def sketch(rng: np.random.Generator, photographs: Sequence[Photograph]) -> tuple[Mask, Field | None]:
    """Edges [256, 256] of a photograph, with its figure if that is known."""
    things = [each for each in photographs if each.figure is not None]
    views = [each for each in photographs if each.figure is None]
    for _ in range(TRIES):
        figure: Field | None = None
        if things and (not views or rng.random() < CUT_OUT):
            image, figure = _composed(rng, things)
        else:
            image = _exposed(_view(rng, views[int(rng.integers(len(views)))].image), rng)
        low = float(rng.choice(LOW))
        hint = edges(image, low, 2 * low)
        if DENSITY[0] < hint.mean() < DENSITY[1]:
            break
    return hint, figure


def _view(rng: np.random.Generator, image: Pixels) -> Pixels:
    """A part of a photograph [256, 256, 3], somewhat stretched, mirrored or turned."""
    high, wide = image.shape[:2]
    side = min(max(int(min(high, wide) * rng.uniform(0.45, 1.0)), SMALLEST), high, wide)
    width = int(np.clip(side * np.exp(rng.uniform(-0.2, 0.2)), 1, wide))
    top, left = rng.integers(high - side + 1), rng.integers(wide - width + 1)
    part = np.ascontiguousarray(image[top : top + side, left : left + width])
    if rng.random() < 0.5:
        part = np.ascontiguousarray(part[:, ::-1])
    if rng.random() < 0.25:
        turn = cv2.getRotationMatrix2D((width / 2, side / 2), rng.uniform(-20, 20), 1.25)
        part = np.asarray(cv2.warpAffine(part, turn, (width, side), borderMode=cv2.BORDER_REFLECT), np.uint8)
    return np.asarray(cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def _composed(rng: np.random.Generator, things: Sequence[Photograph]) -> tuple[Pixels, Field]:
    """One to three things on a ground, and where they are."""
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(0, 255, 3), np.float32)
    canvas += (ramp(rng) * rng.uniform(0, 120))[..., None]
    if rng.random() < 0.35:  # hills, clouds, furniture
        steps = np.digitize(noise(rng, rng.uniform(1, 4), int(rng.integers(1, 4))), np.sort(rng.uniform(-1.5, 1.5, 2)))
        canvas += (steps * rng.uniform(-60, 60))[..., None]
    figure = np.zeros((SIZE, SIZE), np.float32)
    count = int(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1)))
    for _ in range(count):
        image, seen = _placed(rng, things[int(rng.integers(len(things)))], count)
        canvas += seen[..., None] * (image - canvas)
        figure = np.maximum(figure, seen)
    return _exposed(np.clip(canvas, 0, 255).astype(np.uint8), rng), figure


def _placed(rng: np.random.Generator, thing: Photograph, count: int) -> tuple[Pixels, Field]:
    """A thing at a random size, place and tilt: its image [256, 256, 3], and where it is seen."""
    assert thing.figure is not None
    high, wide = thing.figure.shape
    scale = SIZE / max(high, wide) * rng.uniform(0.7, 1.5) * (1.0, 0.75, 0.6)[count - 1]
    matrix = np.array(cv2.getRotationMatrix2D((wide / 2, high / 2), rng.uniform(-15, 15), scale), np.float64)
    matrix[:, 2] += rng.uniform(0.35, 0.65, 2) * SIZE - np.array((wide, high)) / 2
    if rng.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += SIZE
    image = cv2.warpAffine(thing.image, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.warpAffine(thing.figure, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA)
    return np.asarray(image, np.uint8), np.asarray(seen, np.float32)


def _exposed(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Sometimes out of focus, or of another contrast."""
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6)), np.uint8)
    if rng.random() < 0.5:
        image = np.clip((image.astype(np.float32) - 128) * rng.uniform(0.7, 1.5) + 128, 0, 255).astype(np.uint8)
    return image
