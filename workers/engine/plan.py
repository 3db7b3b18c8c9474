"""What a task asks for, as the engine takes it: its steps as a plan, its scales and thresholds, its seed's noise."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from workers.engine.config import EngineConfig, Sampler, rows_of
from workers.engine.contract import BadOptionError, Options, Resolved
from workers.engine.sampler import SamplerMatrix, Scheduler, counts, sampler_matrix

_log = logging.getLogger(__name__)

_KEPT = 64  # plans; with 50 steps 31 KB each, and up to 40 ms to make, in which steps on a CPU are slower by half
# What schedulers of diffusers raise when they are set to, or run with, a number of steps that is not for them.
_UNABLE = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
_HALF_WHITE = 127  # the mean of an edge map; that of an inverted one is higher, that of Canny's is about 20
_TORCH_SEEDS, _KEYS = range(2**32), 2**128


@dataclass(frozen=True, slots=True)
class Extent:
    """The columns of a history: first the noise predictions of at most so many calls, then at most so many noises."""

    calls: int
    noises: int

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.calls + self.noises

    def holds(self, matrix: SamplerMatrix) -> bool:
        """Whether a picture that is made by a matrix has room."""
        return matrix.calls <= self.calls and matrix.noises <= self.noises

    def plan(self, steps: int, matrix: SamplerMatrix) -> "Plan":
        """A matrix, laid out as a history."""
        estimates = None if matrix.estimates is None else self._laid_out(matrix.estimates, matrix)
        return Plan(steps, matrix, self._laid_out(matrix.weights, matrix), estimates)

    def _laid_out(self, rows: Tensor, matrix: SamplerMatrix) -> Tensor:
        """Rows of a matrix, float32; zero for what it does not have."""
        laid_out = torch.zeros(len(rows), self.columns)
        noises, predictions = rows.split([matrix.noises, matrix.calls], dim=1)
        laid_out[:, : matrix.calls] = predictions
        laid_out[:, self.calls : self.calls + matrix.noises] = noises
        return laid_out


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How a picture is made in a number of steps. `weights` [N + 1, columns]: the matrix, laid out in float32, and so
    are its `estimates` [N, columns], if there are any."""

    steps: int
    matrix: SamplerMatrix
    weights: Tensor
    estimates: Tensor | None

    @property
    def calls(self) -> int:
        """N: how often the model is called."""
        return self.matrix.calls


@dataclass(frozen=True, eq=False, slots=True)
class Placed:
    """A plan on the device: its weights [N + 1, columns] and estimates [N, columns], and the time projections at its
    calls [N, total]."""

    weights: Tensor
    estimates: Tensor | None
    times: Tensor

    @property
    def calls(self) -> int:
        """N: how often the model is called."""
        return len(self.times)


class Plans:
    """The plans of a sampler; `scheduler` makes one that is set to a number of steps. From any thread.

    Raises UnsupportedSamplerError when it cannot take the configured number.
    """

    def __init__(self, sampler: Sampler, scheduler: Callable[[int], Scheduler]) -> None:
        self._sampler = sampler
        self._most = max(sampler.steps, sampler.max_steps)
        self._scheduler = scheduler
        usual = self._matrix(sampler.steps)
        self.extent = self._widest(Extent(usual.calls, usual.noises))
        self.usual = self.extent.plan(sampler.steps, usual)
        self._asked = lru_cache(_KEPT)(self._make)

    def of(self, steps: int) -> Plan:
        """The plan for a number of steps. Raises BadOptionError."""
        if steps == self.usual.steps:
            return self.usual
        if not 1 <= steps <= self._most:
            raise BadOptionError(f"steps is {steps}, but must be 1 to {self._most}.")
        return self._asked(steps)

    def _make(self, steps: int) -> Plan:
        try:
            matrix = self._matrix(steps)
        except _UNABLE as error:
            raise self._refusal(steps) from error
        if not self.extent.holds(matrix):
            raise self._refusal(steps)
        return self.extent.plan(steps, matrix)

    def _refusal(self, steps: int) -> BadOptionError:
        return BadOptionError(f"steps is {steps}, which {self._sampler.name} cannot take: choose another number.")

    def _matrix(self, steps: int) -> SamplerMatrix:
        return sampler_matrix(self._scheduler(steps))

    def _widest(self, usual: Extent) -> Extent:
        """That of the most steps that may be asked for and that the sampler can take."""
        for steps in range(self._most, self._sampler.steps, -1):
            try:
                calls, noises = counts(self._scheduler(steps))
            except _UNABLE as error:
                _log.info("%s cannot take %d steps: %s", self._sampler.name, steps, str(error).strip())
            else:
                return Extent(max(usual.calls, calls), max(usual.noises, noises))
        return usual


class Scales(NamedTuple):
    """A picture's own numbers: its guidance (1 is none), and what multiplies the ControlNet's residuals and the logits
    of its attention (`coldness`: one over the temperature)."""

    guidance: float
    control: float
    coldness: float


def scales_of(chosen: Resolved, config: EngineConfig, coldest: float) -> Scales:
    """The scales of a picture; temperatures below `coldest` are taken for that. Raises BadOptionError."""
    guidance = chosen.guidance_scale
    if guidance > 1 and rows_of(config.guidance_scale) == 1:
        raise BadOptionError(f"guidance_scale is {guidance:g}, but this model runs without guidance: 1 is the most.")
    # As in diffusers, guidance begins above 1.
    return Scales(max(guidance, 1.0), chosen.control_scale, 1 / max(chosen.temperature, coldest))


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


def draw(seed: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Normal noise [count, *shape] in float32: the latents, and what the sampler draws at its steps. It is drawn on the
    CPU, so that it is the same on every device.

    On a CPU torch seeds an MT19937 with the low 32 bits: 0, 2**32 and -2**63 would be one seed. Seeds of 32 bits draw
    from it, one tensor after the other, as diffusers does. Any other seed is the key of a Philox generator, a block
    cipher that takes 128 bits, so that each of them draws other noise.
    """
    if seed in _TORCH_SEEDS:
        generator = Generator().manual_seed(seed)
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])
    philox = np.random.Generator(np.random.Philox(key=seed % _KEYS))
    return torch.from_numpy(philox.standard_normal((count, *shape), np.float32))
