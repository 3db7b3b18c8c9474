"""How well an image keeps a scene's edges, and has the colours of its caption where they belong."""

import cv2
import numpy as np

from example.demo_model.drawing import Mask, Pixels
from example.demo_model.palette import nearest_colour
from example.demo_model.scenes import Scene

TOLERANCE = 2  # pixels between an edge and its counterpart
SMALLEST = 30  # pixels; a region with fewer has no colour to speak of


def edges(image: Pixels, low: float = 100, high: float = 200) -> Mask:
    """Canny's edges [h, w] of an image (RGB [h, w, 3]), by default with the thresholds that the service has."""
    return cv2.Canny(image, low, high) > 0


def edge_f1(wanted: Mask, found: Mask, tolerance: int = TOLERANCE) -> float:
    """The harmonic mean of: found edges that are near wanted ones, and wanted edges that are near found ones."""
    if not wanted.any() or not found.any():
        return float(not wanted.any() and not found.any())
    precision = float(_widened(wanted, tolerance)[found].mean())
    recall = float(_widened(found, tolerance)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


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
