"""Images with the edges of a photograph: figures of light and shade, whose outlines come and go.

A photograph's edge map differs from a drawing's: contours are open, some places are full of detail and others empty,
and what is one thing by its colour has edges within. A figure has a tone, the layers of which are sharp along a part of
their border and dissolve along the rest.
"""

import math

import numpy as np

from example.demo_model.drawing import COLUMNS, ROWS, SIZE, Field, blurred, coverages, curve, filled, noise, stroke
from example.demo_model.layouts import GROUND, REGION, Layout, Part, any_colour, silhouette, some_colours
from example.demo_model.outlines import SHAPES, coverage

LAYERS = (6, 36)  # of light or shade
STRENGTH = (0.4, 1.0)  # of a layer: what is fainter has no edge
GROUND_TONE = 0.5  # of the ground's details, beside the figure's


def figure(rng: np.random.Generator, ground: str | None = None) -> Layout:
    """A silhouette of one colour upon a ground of another, both with light and shade."""
    ground = ground or any_colour(rng)
    inside = bust(rng) if rng.random() < 0.4 else silhouette(rng)
    light = tone(rng)
    behind = tone(rng) * (GROUND_TONE if rng.random() < 0.7 else 0.0)
    parts = (Part(ground, GROUND, 1 - inside), Part(any_colour(rng, but=(ground,)), "shape", inside))
    return Layout(parts, tone=light * inside + behind * (1 - inside))


def poster(rng: np.random.Generator, colours: list[str] | None = None) -> Layout:
    """Two to four colours in the order of a figure's tones, as a poster has them."""
    named = colours or some_colours(rng, int(rng.integers(2, 5)))
    inside = bust(rng) if rng.random() < 0.4 else silhouette(rng)
    light = tone(rng) * 1.2 + (inside - 0.5) * rng.uniform(-1.2, 1.2) + 0.25 * noise(rng, 3)
    levels = np.sort(rng.choice(np.linspace(-0.5, 0.5, 7), len(named) - 1, replace=False))
    seen = coverages(np.digitize(light, levels), len(named))
    rest = 0.35 * tone(rng) if rng.random() < 0.5 else None
    return Layout(tuple(Part(colour, REGION, each) for colour, each in zip(named, seen, strict=True)), tone=rest)


def tone(rng: np.random.Generator) -> Field:
    """Light (up to 1) and shade (down to -1), in layers whose borders are sharp here and dissolve there."""
    field = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(rng.integers(*LAYERS))):
        layer = _LAYERS[int(rng.choice(len(_LAYERS), p=(0.35, 0.25, 0.25, 0.15)))](rng)
        field += rng.uniform(*STRENGTH) * rng.choice((-1, 1)) * dissolved(layer, rng)
    return np.asarray(np.clip(field, -1, 1), np.float32)


def dissolved(layer: Field, rng: np.random.Generator) -> Field:
    """A layer whose border is sharp where a random field is high, and blurred where it is low."""
    sharpness = np.clip(noise(rng, rng.uniform(1, 4)) * 2 + rng.uniform(-0.5, 2.5), 0, 1)
    return np.asarray(sharpness * layer + (1 - sharpness) * blurred(layer, rng.uniform(5, 14)), np.float32)


def bust(rng: np.random.Generator) -> Field:
    """The outline of a head upon shoulders, with hair or a hat that makes it ragged."""
    x, y = rng.uniform(0.35, 0.65) * SIZE, rng.uniform(0.25, 0.45) * SIZE
    wide, high = rng.uniform(0.12, 0.24) * SIZE, rng.uniform(0.16, 0.28) * SIZE
    ragged = 1 + 0.08 * noise(rng, rng.uniform(2, 9), 2)
    head = ((COLUMNS - x) / wide) ** 2 + ((ROWS - y) / high) ** 2 < ragged
    fallen = (ROWS - y - high * rng.uniform(0.8, 1.2)) / (SIZE * rng.uniform(0.2, 0.5))
    shoulders = (fallen > 0) & (np.abs(COLUMNS - x) < SIZE * rng.uniform(0.25, 0.5) * np.sqrt(np.clip(fallen, 0, 1)))
    neck = (np.abs(COLUMNS - x) < wide * 0.5) & (y < ROWS) & (fallen < 0.5)
    return blurred((head | shoulders | neck).astype(np.float32), 0.6)


# -------------------------------------------------------------------------------------------------- layers of a tone


def _ellipse(rng: np.random.Generator) -> Field:
    """Features, from an eye to a cheek."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    axes = np.exp(rng.uniform(math.log(4), math.log(60), 2))
    turn = rng.uniform(0, math.pi)
    points = np.stack([np.cos(angles) * axes[0], np.sin(angles) * axes[1]], axis=1)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return filled(points @ rotation + rng.uniform(0, SIZE, 2))


def _strands(rng: np.random.Generator) -> Field:
    """Lines beside each other: hair, folds, letters."""
    line = curve(rng, 4)
    step = rng.uniform(3, 12)
    angle = rng.uniform(0, 2 * math.pi)
    aside = np.array([math.cos(angle), math.sin(angle)]) * step
    start, length = int(rng.integers(0, 30)), int(rng.integers(15, 60))
    width = int(rng.integers(1, 5))
    lines = [
        stroke((line + aside * index + rng.normal(0, 1, 2))[start : start + length], width)
        for index in range(int(rng.integers(1, 7)))
    ]
    return np.asarray(np.maximum.reduce(lines), np.float32)


def _shape(rng: np.random.Generator) -> Field:
    return coverage(str(rng.choice(SHAPES)), rng.uniform(8, 70), rng.uniform(0, SIZE, 2), rng, tilt=math.pi)


def _texture(rng: np.random.Generator) -> Field:
    """A patch of fine contours: leaves, cloth, curls."""
    fine = noise(rng, rng.uniform(10, 40), 2) > rng.uniform(-0.3, 1.0)
    patch = noise(rng, rng.uniform(1.5, 4)) > rng.uniform(0.2, 1.2)
    return blurred((fine & patch).astype(np.float32), 0.6)


_LAYERS = (_ellipse, _strands, _shape, _texture)
