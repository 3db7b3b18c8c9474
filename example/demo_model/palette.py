"""The twelve colours that captions name, and the shades that an image has of them."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

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
CONTRAST = 75.0  # of some channel between two shades that touch: Canny sees a soft step of less only here and there
TRIES = 40  # to find shades with that contrast

Shade: TypeAlias = npt.NDArray[np.float32]  # RGB [3], 0 to 255

_VALUES = np.array(list(PALETTE.values()), np.float32)


def nearest_colour(colour: npt.ArrayLike) -> str:
    """The name of the palette's colour that is nearest to an RGB value."""
    distances = ((_VALUES - np.asarray(colour, np.float32)) ** 2).sum(axis=1)
    return COLOURS[int(distances.argmin())]


def shades(colours: Sequence[str], rng: np.random.Generator, spread: float) -> list[Shade]:
    """A shade of each colour, every channel up to `spread` from the palette's, that shows against the others."""
    for _ in range(TRIES):
        drawn = {colour: _shade(colour, rng, spread) for colour in colours}
        if all(np.abs(one - other).max() >= CONTRAST for one, other in combinations(drawn.values(), 2)):
            return [drawn[colour] for colour in colours]
    return [_shade(colour, rng, 0.0) for colour in colours]


def _shade(colour: str, rng: np.random.Generator, spread: float) -> Shade:
    """Half of the spread is brightness, which all channels share; what would go by another name is drawn nearer."""
    offset = rng.uniform(-0.5, 0.5) * spread + rng.uniform(-0.5, 0.5, 3) * spread
    while True:
        shade = np.clip(np.array(PALETTE[colour]) + offset, 0, 255).astype(np.float32)
        if nearest_colour(shade) == colour:
            return shade
        offset *= 0.5
