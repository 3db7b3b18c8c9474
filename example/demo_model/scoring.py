"""How well an image keeps a scene's edges, has the colours of its caption where they belong, and can be read.

Photographs have dense edges, and there edge scores alone mislead: a model that fills the image with small patches of
two colours has an edge wherever one is wanted, so its recall is high, but nobody recognises what it shows. So a
photograph's images have two scores. `edge_recall` alone rewards patches, and `mottle` alone rewards a blank image;
only thin lines around calm areas do well in both.
"""

import cv2
import numpy as np

from example.demo_model.drawing import Mask, Pixels
from example.demo_model.palette import nearest_colour
from example.demo_model.scenes import Scene

TOLERANCE = 2  # pixels between an edge and its counterpart
SMALLEST = 30  # pixels; a region with fewer has no colour to speak of
LINE, PATCH = 2.0, 8.0  # sigma in pixels: of a blur that removes thin lines, and of one that removes patches as well
CROWD, CROWDED = 6.0, 0.10  # the blur of a hint (sigma in pixels), and the density above which edges are dense


def edge_f1(wanted: Mask, found: Mask, tolerance: int = TOLERANCE) -> float:
    """The harmonic mean of: found edges that are near wanted ones, and wanted edges that are near found ones."""
    if not wanted.any() or not found.any():
        return float(not wanted.any() and not found.any())
    precision, recall = edge_recall(found, wanted, tolerance), edge_recall(wanted, found, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def edge_recall(wanted: Mask, found: Mask, tolerance: int = TOLERANCE) -> float:
    """The share of wanted edges with a found one within `tolerance` pixels; 1 if none are wanted."""
    return float(_widened(found, tolerance)[wanted].mean()) if wanted.any() else 1.0


def mottle(image: Pixels, hint: Mask) -> float:
    """How patchy an image [h, w, 3] is where its hint's edges [h, w] are dense; 0 where they are dense nowhere.

    It is the RMS contrast of lightness (CIE L*, 0 to 100) at scales between a line's and a large area's. Thin lines
    hardly count, as the first blur removes them. Ink drawings have about 7, photographs 7 to 13.
    """
    dense = cv2.GaussianBlur(hint.astype(np.float32), (0, 0), CROWD) > CROWDED
    lightness = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    contrast = cv2.GaussianBlur(lightness, (0, 0), LINE) - cv2.GaussianBlur(lightness, (0, 0), PATCH)
    return float(np.sqrt(np.square(contrast[dense]).mean())) if dense.any() else 0.0


def colours(scene: Scene, image: Pixels) -> list[tuple[str, str]]:
    """(named, found) for each region of a scene that is large enough, the background last if it is."""
    return [
        (region.colour, nearest_colour(np.median(image[region.mask], axis=0)))
        for region in scene.regions
        if region.mask.sum() >= SMALLEST
    ]


def _widened(mask: Mask, pixels: int) -> Mask:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0
