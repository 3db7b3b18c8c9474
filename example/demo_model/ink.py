"""Drawings of any edge map: calm fills in a prompt's colours, with thin lines where the edges are.

A photograph's edge map has no original that could be asked for back. So each map gets one right answer by rules that
its lines and the prompt decide, and what they leave open (light, weight of the lines) is drawn for the whole image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from example.demo_model.drawing import COLUMNS, ROWS, SIZE, Field, Labels, Mask, Pixels, blurred, noise, ramp
from example.demo_model.prompts import Prompt

Canvas = npt.NDArray[np.float32]  # RGB [h, w, 3], 0 to 255

SPECK = 6  # pixels; a line with fewer is left out
SMALLEST_CELL = 60  # pixels
GAP = 2.6  # pixels on either side that a cell's seed keeps from lines: what leaks through less than twice that is two
WEIGHTS = (1.0, 2.0)  # of lines: about 1.5 to 2.2 pixels wide
LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)
DARK = 62.0  # of 255: lines upon what is darker are light
RISE, SWEEPS = 5.0, (150, 150, 100)  # of the diffusion: how much a wall holds back, and steps by resolution


@dataclass(frozen=True)
class Parts:
    """What is told apart in an edge map: `figure` [h, w], 1 where there is one and 0 on the ground; `cells` between
    lines, and of each its area in pixels and its centre [n, 2] (x, y) in -1..1.
    """

    figure: Field
    cells: Labels
    areas: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]

    @classmethod
    def of(cls, hint: Mask, figure: Field | None = None) -> "Parts":
        """Those of an edge map; its figure is found where it is not given."""
        cells = _cells(hint)
        count = int(cells.max()) + 1
        areas = np.bincount(cells.ravel(), minlength=count).astype(np.float32)
        sums = [np.bincount(cells.ravel(), grid.ravel(), count) for grid in (COLUMNS, ROWS)]
        centres = np.stack(sums, axis=1) / np.maximum(areas, 1)[:, None] / (SIZE / 2) - 1
        found = _figure(hint) if figure is None else figure
        return cls(found, cells, areas, centres.astype(np.float32))


def inked(hint: Mask, parts: Parts, prompt: Prompt, rng: np.random.Generator) -> Pixels:
    """The drawing [256, 256, 3] of an edge map by a prompt."""
    canvas = _regions(parts, prompt) if prompt.regions else _figure_and_ground(parts, prompt, rng)
    canvas = _lit(_STYLES.get(prompt.style, _plain)(canvas, hint, parts, rng), rng, prompt)
    weight = rng.uniform(*WEIGHTS) * (1.15 if prompt.style == "ink" else 1.0)
    ink = lines(hint, weight)[..., None]
    colour = _glow(canvas, parts, prompt) if prompt.style == "neon" else _ink(canvas, rng)
    return np.clip(canvas + ink * (colour - canvas), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------------- lines


def lines(hint: Mask, weight: float) -> Field:
    """How much of each pixel ink covers: without stairs and specks, and finer and fainter in a crowd."""
    enlarged = _sized(_without_specks(hint).astype(np.float32), 3 * SIZE, cv2.INTER_NEAREST)
    smooth = np.clip((blurred(enlarged, 2.2) - (0.33 - 0.09 * (weight - 1))) * 7.0, 0, 1)
    ink = cv2.resize(smooth, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    crowd = blurred(hint.astype(np.float32), 4)
    return np.asarray(ink * np.clip(1.0 - 1.7 * (crowd - 0.15), 0.55, 1), np.float32)


def _without_specks(hint: Mask) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(hint.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= SPECK
    kept[0] = False
    return np.asarray(kept[labels], np.bool_)


def _ink(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """Dark, or light upon what is dark."""
    near = np.asarray(cv2.GaussianBlur(canvas, (0, 0), 3), np.float32)
    dark = np.float32(rng.choice((0.0, 0.0, 0.2))) * near + rng.uniform(4, 30, 3).astype(np.float32)
    light = near + (255 - near) * 0.72
    bright = np.clip((near @ LUMINANCE - DARK) / 16, 0, 1)[..., None]
    return np.asarray(light + bright * (dark - light), np.float32)


def _glow(canvas: Canvas, parts: Parts, prompt: Prompt) -> Canvas:
    """Neon's lines, in the figure's colour, or the ground's."""
    shades = [_vivid(shade) for shade in (prompt.ground, prompt.figure)]
    if prompt.regions:
        return _vivid(_regions(parts, prompt))
    return np.asarray(shades[0] + parts.figure[..., None] * (shades[1] - shades[0]), np.float32)


def _vivid(shade: Canvas) -> Canvas:
    top = shade.max(axis=-1, keepdims=True)
    return np.asarray(np.clip(shade * (255 / np.maximum(top, 60)) + 22, 0, 255), np.float32)


# --------------------------------------------------------------------------------------------------------------- fills


def _figure_and_ground(parts: Parts, prompt: Prompt, rng: np.random.Generator) -> Canvas:
    down = np.clip((ROWS / SIZE - 0.15) / 0.7, 0, 1)[..., None]
    ground = prompt.ground + down * (prompt.below - prompt.ground)
    amount = float(rng.choice((0.0, 0.16, 0.3), p=(0.3, 0.4, 0.3))) * (1.3 if prompt.style == "poster" else 1.0)
    fill = _toned(np.broadcast_to(prompt.figure, (SIZE, SIZE, 3)), _light(parts, rng)[..., None] * amount)
    return _softened(ground + parts.figure[..., None] * (fill - ground))


def _light(parts: Parts, rng: np.random.Generator) -> Field:
    """How light (to 1) or dark (to -1) each cell is: those towards a light are lighter, and small ones stand out."""
    angle = rng.uniform(0, 2 * np.pi)
    towards = parts.centres @ np.array((np.cos(angle), np.sin(angle)), np.float32)
    small = np.clip(1.15 - parts.areas / 2500, 0, 1)
    return np.asarray(np.clip(towards * (0.4 + 0.6 * small) * 1.4, -1, 1)[parts.cells], np.float32)


def _regions(parts: Parts, prompt: Prompt) -> Canvas:
    """Colours by a rule that the edges decide: the last is the ground's, the others the figure's from top to bottom."""
    *upper, ground = prompt.regions
    inside = np.bincount(parts.cells.ravel(), parts.figure.ravel(), len(parts.areas)) / np.maximum(parts.areas, 1)
    heights = parts.centres[:, 1]
    weights = parts.areas * (inside > 0.5)
    order = np.argsort(heights)
    below = np.cumsum(weights[order]) / max(float(weights.sum()), 1.0)
    place = np.empty(len(heights), np.intp)
    place[order] = np.minimum((below * len(upper) * 0.999).astype(np.intp), len(upper) - 1)
    colours = np.where((inside > 0.5)[:, None], np.stack(upper)[place], ground)
    return _softened(colours[parts.cells].astype(np.float32))


def _softened(canvas: Canvas) -> Canvas:
    return np.asarray(cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), 0.7), np.float32)


def _toned(canvas: Canvas, tone: Canvas) -> Canvas:
    """Lighter (above 0, at 1 white) or darker (at -1 black)."""
    return np.asarray(np.where(tone > 0, canvas + tone * (255 - canvas), canvas * (1 + tone)), np.float32)


# -------------------------------------------------------------------------------------------------------------- styles


def _plain(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    """Flat, or for three of ten darker towards lines, so that things look round."""
    if rng.random() > 0.3:
        return canvas
    shadow = 0.2 * np.exp(-_distance(hint) / 7.0) * parts.figure
    return np.asarray(canvas * (1 - shadow)[..., None], np.float32)


def _as_it_is(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    return canvas


def _on_paper(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    """A wash that leaves the paper to be seen."""
    return canvas + rng.uniform(0.12, 0.3) * (np.array((250, 246, 236), np.float32) - canvas)


def _chalky(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    return canvas + 0.42 * (250 - canvas)


def _dark(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    """Behind neon: nearly black, with a gleam of the fill."""
    return np.asarray(canvas * 0.1 + rng.uniform(4, 10), np.float32)


def _graded(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    return _toned(canvas, (ramp(rng) * rng.uniform(0.6, 0.9))[..., None])


def _washed(canvas: Canvas, hint: Mask, parts: Parts, rng: np.random.Generator) -> Canvas:
    """Watercolour: pale in the middle of an area, and full where its lines hold the water."""
    pale = 0.34 * (1 - np.exp(-_distance(hint) / 12.0)) + 0.05 * noise(rng, 2.5)
    return _toned(canvas, np.clip(pale, 0, 1)[..., None].astype(np.float32))


_STYLES = {
    "ink": _on_paper,
    "flat": _as_it_is,
    "pastel": _chalky,
    "neon": _dark,
    "gradient": _graded,
    "watercolour": _washed,
}


def _lit(canvas: Canvas, rng: np.random.Generator, prompt: Prompt) -> Canvas:
    if prompt.style in ("neon", "flat") or rng.random() < 0.3:
        return canvas
    return canvas + (ramp(rng) * rng.uniform(0, 44) + noise(rng, rng.uniform(1.5, 3)) * rng.uniform(0, 4))[..., None]


# --------------------------------------------------------------------------------------------------- figure and ground


def _distance(hint: Mask) -> Field:
    """Of each pixel from the nearest line."""
    return np.asarray(cv2.distanceTransform((~hint).astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def _cells(hint: Mask) -> Labels:
    """Which cell between lines each pixel belongs to, from 0."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((_distance(hint) > GAP).astype(np.uint8), connectivity=4)
    kept = stats[:, cv2.CC_STAT_AREA] >= SMALLEST_CELL
    kept[0] = False
    if not kept.any():
        return np.zeros(hint.shape, np.intp)
    away = (~kept[labels]).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    return np.asarray(nearest - nearest.min(), np.intp)


def _figure(hint: Mask) -> Field:
    """A smooth field that jumps only at lines: the rim pulls it to the ground, crowds and enclosed areas to the figure.

    It is what diffuses from both with lines as walls, solved from coarse to fine.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    closed = cv2.morphologyEx(np.pad(hint, 8).astype(np.uint8), cv2.MORPH_CLOSE, disc)[8:-8, 8:-8]
    walls = np.maximum(closed, hint.astype(np.uint8)).astype(np.float32)
    to_ground, to_figure = _pulls(hint)
    field: Field | None = None
    for side, sweeps in zip((32, 64, 128), SWEEPS, strict=True):
        factor = SIZE // side
        dense = _shrunk(walls, side) * np.float32(3.0 / factor if factor > 3 else 1.3)
        ground, figure = (_shrunk(pull, side) * np.float32(factor**2 / 4) for pull in (to_ground, to_figure))
        start = np.full((side, side), 0.5, np.float32) if field is None else _sized(field, side, cv2.INTER_LINEAR)
        field = _diffused(np.exp(-RISE * np.clip(dense, 0, 1)), ground, figure, start, sweeps)
    assert field is not None
    nothing = np.zeros((SIZE, SIZE), np.float32)
    field = _diffused(np.exp(-RISE * walls), nothing, nothing, _sized(field, SIZE, cv2.INTER_CUBIC), 12)
    t = np.clip((field - 0.36) / 0.28, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _pulls(hint: Mask) -> tuple[Field, Field]:
    """How strongly each pixel is drawn to the ground, and to the figure."""
    away = _distance(hint)
    rim = np.zeros(hint.shape, np.float32)
    lowest = int(SIZE * 0.75)  # figures often stand on the lower edge
    rim[:3] = rim[:lowest, :3] = rim[:lowest, -3:] = 1
    to_ground = rim * np.clip((away - 5) / 10, 0, 1) * 2.0 + 0.0006 * np.clip((away - 16) / 16, 0, 1)
    to_figure = 0.06 * np.clip((blurred(hint.astype(np.float32), 7) - 0.07) / 0.1, 0, 1) + 0.00015
    for radius, pull in ((5.0, 0.004), (9.0, 0.02)):  # what the rim floods through gaps wider than a diameter
        open_ = away > radius
        count, labels = cv2.connectedComponents(open_.astype(np.uint8), connectivity=4)
        met = np.bincount(labels[(rim > 0) & open_], minlength=count)
        met[0] = 0
        flooded = (met > 20)[labels]
        to_ground = to_ground + pull * flooded
        to_figure = to_figure + 0.5 * pull * (open_ & ~flooded)
    return to_ground.astype(np.float32), to_figure.astype(np.float32)


def _diffused(flow: Field, to_ground: Field, to_figure: Field, start: Field, sweeps: int) -> Field:
    """Jacobi sweeps of the least of: flow |grad m|^2 + to_ground m^2 + to_figure (1 - m)^2."""
    across, down = np.minimum(flow[:, 1:], flow[:, :-1]), np.minimum(flow[1:], flow[:-1])
    total = to_ground + to_figure + 1e-6
    total[:, 1:] += across
    total[:, :-1] += across
    total[1:] += down
    total[:-1] += down
    field = start
    for _ in range(sweeps):
        pulled = to_figure.copy()
        pulled[:, 1:] += across * field[:, :-1]
        pulled[:, :-1] += across * field[:, 1:]
        pulled[1:] += down * field[:-1]
        pulled[:-1] += down * field[1:]
        field = pulled / total
    return np.asarray(field, np.float32)


def _shrunk(field: Field, side: int) -> Field:
    return _sized(field, side, cv2.INTER_AREA)


def _sized(field: Field, side: int, how: int) -> Field:
    return np.asarray(cv2.resize(field, (side, side), interpolation=how), np.float32)
