"""What a task asks for, and else the configuration, as the engine takes it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.engine.config import Canny, EngineConfig, rows_of
from workers.engine.contract import BadOptionError, Options

_HALF_WHITE = 127  # the mean of an edge map; that of an inverted one is higher, that of Canny's is about 20


class Scales(NamedTuple):
    """A picture's own numbers: its guidance (1 is none), and what multiplies the ControlNet's residuals and the logits
    of its attention (`coldness`: one over the temperature)."""

    guidance: float
    control: float
    coldness: float


def scales_of(options: Options, config: EngineConfig, coldest: float) -> Scales:
    """The scales of a picture; temperatures below `coldest` are taken for that. Raises BadOptionError."""
    guidance = config.guidance_scale if options.guidance_scale is None else options.guidance_scale
    control = config.control_scale if options.control_scale is None else options.control_scale
    if guidance > 1 and rows_of(config.guidance_scale) == 1:
        raise BadOptionError(f"guidance_scale is {guidance:g}, but this model runs without guidance: 1 is the most.")
    # As in diffusers, guidance begins above 1.
    return Scales(max(guidance, 1.0), control, 1 / max(options.temperature, coldest))


def canny_of(options: Options, canny: Canny) -> Canny:
    """The thresholds of a picture. Which is the lower one is for them to say, as for OpenCV."""
    low = canny.low if options.canny_low is None else options.canny_low
    high = canny.high if options.canny_high is None else options.canny_high
    return replace(canny, low=min(low, high), high=max(low, high))


def warnings_of(options: Options, scales: Scales, edges: NDArray[np.uint8]) -> Iterator[str]:
    """What a client should know of its options and of the image's edges (uint8, [height, width])."""
    if options.negative and scales.guidance == 1:
        yield "The negative prompt has no effect, as guidance_scale is 1 or less."
    if options.control_image == "photo" and not edges.any():
        yield "No edges were found in the image, so the prompt alone was followed. Lower the thresholds to find more."
    if options.control_image == "edges" and not edges.any():
        yield "The edge map is black everywhere, so the prompt alone was followed. Edges are white on black."
    if options.control_image == "edges" and edges.mean() > _HALF_WHITE:
        yield "Most of the edge map is white, where it should be white on black (transparent parts count as white)."
