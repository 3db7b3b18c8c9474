"""How a layout looks: flat, with a gradient, striped or as neon, under a light that no edge tells of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from example.demo_model.drawing import COLUMNS, ROWS, SIZE, Field, Pixels, blurred, noise, ramp
from example.demo_model.layouts import Layout, Part
from example.demo_model.palette import Shade, shades

NIGHT = 12.0  # of 255: how dark the black behind neon is
STRIPES = (14.0, 30.0)  # pixels, from a stripe to the next but one

Canvas = npt.NDArray[np.float32]  # RGB [h, w, 3], 0 to 255
Surface = Callable[[Shade, np.random.Generator], Canvas]


@dataclass(frozen=True)
class Variety:
    """How far images of one layout may differ, of 255: what a seed is left to decide.

    `spread` is of a shade's channels around the palette's, either way; `slope` of the light from one side of the
    image to the other, and `mottle` the deviation of its spots, both at most.
    """

    spread: float
    slope: float
    mottle: float


PLAIN = Variety(spread=9.0, slope=0.0, mottle=0.0)
VARIED = Variety(spread=24.0, slope=14.0, mottle=3.0)  # in which colours are bound, and models are judged
WIDELY_VARIED = Variety(spread=36.0, slope=20.0, mottle=4.0)  # from which a seed's part is learned last


def painted(layout: Layout, style: str, rng: np.random.Generator, variety: Variety = VARIED) -> Pixels:
    """The image of a layout."""
    tints = shades([part.colour for part in layout.parts], rng, variety.spread)
    canvas = (_neon if style == "neon" else _filled)(layout, tints, style, rng)
    if variety.slope:
        canvas = canvas + light(rng, variety)[..., None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def light(rng: np.random.Generator, variety: Variety) -> Field:
    """Shading for all channels: a slope and soft spots, too faint for an edge."""
    slope = ramp(rng) * rng.uniform(0, 2 * variety.slope)
    return slope + noise(rng, rng.uniform(1.5, 4)) * rng.uniform(0, variety.mottle)


def _filled(layout: Layout, tints: Sequence[Shade], style: str, rng: np.random.Generator) -> Canvas:
    canvas = np.zeros((SIZE, SIZE, 3), np.float32)
    for part, tint in zip(layout.parts, tints, strict=True):
        surface = _flat if style == "striped" and part.noun == "background" else SURFACES[style]
        canvas += part.seen[..., None] * _toned(surface(tint, rng), layout.tone)
    return canvas


def _toned(canvas: Canvas, tone: Field | None) -> Canvas:
    """Lighter and darker by a tone: at 1 two thirds of the way to white, at -1 as far to black."""
    if tone is None:
        return canvas
    amount = np.abs(tone)[..., None] * 0.66
    return canvas + amount * (np.where(tone[..., None] > 0, 255.0, 0.0).astype(np.float32) - canvas)


def _flat(tint: Shade, rng: np.random.Generator) -> Canvas:
    return np.broadcast_to(tint, (SIZE, SIZE, 3)).astype(np.float32)


def _gradient(tint: Shade, rng: np.random.Generator) -> Canvas:
    along = np.clip(ramp(rng) * 1.1 + 0.5, 0, 1)[..., None]
    return np.asarray(tint * 0.6 * (1 - along) + (tint * 0.75 + 64) * along, np.float32)


def _striped(tint: Shade, rng: np.random.Generator) -> Canvas:
    angle, width = rng.uniform(0, math.pi), rng.uniform(*STRIPES)
    waves = np.sin((COLUMNS * math.cos(angle) + ROWS * math.sin(angle)) * 2 * math.pi / width)
    on = (np.clip(waves * 4, -1, 1) * 0.5 + 0.5)[..., None]
    other = tint * 0.5 if tint.max() > 60 else tint + 80
    return np.asarray(tint * on + other * (1 - on), np.float32)


SURFACES: Mapping[str, Surface] = {"flat": _flat, "gradient": _gradient, "striped": _striped}
STYLES = (*SURFACES, "neon")


# --------------------------------------------------------------------------------------------------------------- neon


def _neon(layout: Layout, tints: Sequence[Shade], style: str, rng: np.random.Generator) -> Canvas:
    """Tubes along the outlines of shapes; a figure or a mosaic is lit from within instead.

    An edge map shows a tube as two lines and something lit as one, so a sparse map of single lines can be told from it.
    """
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(0.3, 1) * NIGHT, np.float32)
    lit = _lit if layout.tone is not None or not layout.has_ground else _tube
    for part, tint in zip(layout.parts[1:], tints[1:], strict=True):
        bright, glow = lit(part, layout.tone, rng)
        canvas = canvas + glow[..., None] * tint
        canvas = canvas + bright[..., None] * (np.clip(tint * 1.05 + 18, 0, 255) - canvas)
    return canvas


def _tube(part: Part, tone: Field | None, rng: np.random.Generator) -> tuple[Field, Field]:
    outline = cv2.morphologyEx(part.seen, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    width = int(rng.integers(3, 6))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    bright = blurred(np.asarray(cv2.dilate(outline, disc), np.float32), 0.8)
    return bright, blurred(bright, 7.0) * 0.8


def _lit(part: Part, tone: Field | None, rng: np.random.Generator) -> tuple[Field, Field]:
    """All of a mosaic's part; of a figure where its tone is not of shade."""
    shown = part.seen if tone is None else part.seen * np.clip(0.75 + 1.1 * tone, 0, 1)
    return shown, blurred(shown, 7.0) * 0.15 * (1 - part.seen)
