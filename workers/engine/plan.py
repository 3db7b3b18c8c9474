"""The options of a request as the engine needs them: steps as a matrix, scales, thresholds and noise."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from workers.engine.config import EngineConfig, Sampler, rows_of
from workers.engine.contract import BadOptionError, EngineOptions, Resolved
from workers.engine.sampler import DiffusersScheduler, SamplerMatrix, counts, sampler_matrix

_log = logging.getLogger(__name__)

_KEPT = 64  # plans; with 50 steps 31 KB each, and up to 40 ms to make, in which steps on a CPU are slower by half
# What schedulers of diffusers raise for a number of steps that they cannot take.
_STEP_ERRORS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
_HALF_WHITE = 127  # mean of an edge map: about 20 for Canny's, above this for an inverted one
_TORCH_SEEDS, _KEYS = range(2**32), 2**128

Size: TypeAlias = tuple[int, int]  # height and width of the latents


@dataclass(frozen=True, slots=True)
class HistoryLayout:
    """The columns of a history: noise predictions of up to `calls` calls, then up to `noises` noises."""

    calls: int
    noises: int

    @property
    def columns(self) -> int:
        return self.calls + self.noises

    def holds(self, matrix: SamplerMatrix) -> bool:
        """Whether the history of an image with this matrix fits."""
        return matrix.calls <= self.calls and matrix.noises <= self.noises

    def plan(self, steps: int, matrix: SamplerMatrix) -> "Plan":
        """Lay out a matrix's columns."""
        estimates = None if matrix.estimates is None else self._laid_out(matrix.estimates, matrix)
        weights = self._laid_out(matrix.weights, matrix)
        return Plan(steps, matrix.noises, matrix.timesteps, weights, estimates)

    def _laid_out(self, rows: Tensor, matrix: SamplerMatrix) -> Tensor:
        """Rows of a matrix in this layout, float32; zero where the matrix has no column."""
        laid_out = torch.zeros(len(rows), self.columns)
        noises, predictions = rows.split([matrix.noises, matrix.calls], dim=1)
        laid_out[:, : matrix.calls] = predictions
        laid_out[:, self.calls : self.calls + matrix.noises] = noises
        return laid_out


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How an image is made in a number of steps: N model calls, at `timesteps` [N].

    `weights` [N + 1, columns] and `estimates` [N, columns], if any, are those of the sampler's matrix in a history's
    layout, float32. `noises`: the initial one, and those that the sampler draws.
    """

    steps: int
    noises: int
    timesteps: Tensor
    weights: Tensor
    estimates: Tensor | None

    @property
    def calls(self) -> int:
        """N, the number of model calls."""
        return len(self.timesteps)


KeptPlans: TypeAlias = tuple[HistoryLayout, Mapping[int, Plan]]  # by number of steps


@dataclass(frozen=True, eq=False, slots=True)
class DeviceSchedule:
    """A plan on the device: weights [N + 1, columns], estimates [N, columns], and its calls' time projections
    `times` [N, total]."""

    weights: Tensor
    estimates: Tensor | None
    times: Tensor

    @property
    def calls(self) -> int:
        """N, the number of model calls."""
        return len(self.times)


class Plans:
    """The plans of a sampler by number of steps. Thread-safe.

    `scheduler` makes a diffusers scheduler for a number of steps that is not among the `kept` plans. Raises
    UnsupportedSamplerError when the sampler cannot take the configured number.
    """

    def __init__(
        self,
        sampler: Sampler,
        scheduler: Callable[[int], DiffusersScheduler],
        kept: KeptPlans | None = None,
    ) -> None:
        self._sampler = sampler
        self.most = max(sampler.steps, sampler.max_steps)
        """The most steps that a request may ask for."""
        self._scheduler = scheduler
        self.layout, self._kept = kept or self._computed()
        self.usual = self._kept[sampler.steps]
        self._asked = lru_cache(_KEPT)(self._make)

    def of(self, steps: int) -> Plan:
        """The plan for a number of steps. Raises BadOptionError."""
        if not 1 <= steps <= self.most:
            raise BadOptionError(f"steps is {steps}, but must be 1 to {self.most}.")
        return self._kept.get(steps) or self._asked(steps)

    def _computed(self) -> KeptPlans:
        steps = self._sampler.steps
        usual = self._matrix(steps)
        layout = self._widest(HistoryLayout(usual.calls, usual.noises))
        return layout, {steps: layout.plan(steps, usual)}

    def _make(self, steps: int) -> Plan:
        try:
            matrix = self._matrix(steps)
        except _STEP_ERRORS as error:
            raise self._refusal(steps) from error
        if not self.layout.holds(matrix):
            raise self._refusal(steps)
        return self.layout.plan(steps, matrix)

    def _refusal(self, steps: int) -> BadOptionError:
        return BadOptionError(f"steps is {steps}, which {self._sampler.name} cannot take: choose another number.")

    def _matrix(self, steps: int) -> SamplerMatrix:
        return sampler_matrix(self._scheduler(steps))

    def _widest(self, usual: HistoryLayout) -> HistoryLayout:
        """The layout for the largest allowed number of steps that the sampler can take."""
        for steps in range(self.most, self._sampler.steps, -1):
            try:
                calls, noises = counts(self._scheduler(steps))
            except _STEP_ERRORS as error:
                _log.info("%s cannot take %d steps: %s", self._sampler.name, steps, str(error).strip())
            else:
                return HistoryLayout(max(usual.calls, calls), max(usual.noises, noises))
        return usual


class Scales(NamedTuple):
    """An image's scales: guidance (1 is none), the factor of the ControlNet's residuals, and the factor of the logits
    of its attention."""

    guidance: float
    control: float
    inverse_temperature: float


def scales_of(chosen: Resolved, config: EngineConfig, min_temperature: float) -> Scales:
    """The scales of an image; lower temperatures count as `min_temperature`. Raises BadOptionError."""
    guidance = chosen.guidance_scale
    if guidance > 1 and rows_of(config.guidance_scale) == 1:
        raise BadOptionError(
            f"guidance_scale is {guidance:g}; it must be at most 1, as this model runs without guidance."
        )
    # As in diffusers, there is guidance only above 1.
    return Scales(max(guidance, 1.0), chosen.control_scale, 1 / max(chosen.temperature, min_temperature))


def warnings_of(options: EngineOptions, scales: Scales, edges: NDArray[np.uint8]) -> Iterator[str]:
    """Warnings for the client about its options and the image's edges (uint8, [height, width])."""
    if options.negative and scales.guidance == 1:
        yield "The negative prompt has no effect, as guidance_scale is 1 or less."
    if options.control_image == "photo" and not edges.any():
        yield "No edges were found in the image, so only the prompt was used. Lower the thresholds to find more."
    if options.control_image == "edges" and not edges.any():
        yield "The edge map is black everywhere, so only the prompt was used. Edges are white on black."
    if options.control_image == "edges" and edges.mean() > _HALF_WHITE:
        yield "Most of the edge map is white. It should have white edges on black; transparent parts count as white."


def draw(seed: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Normal noise [count, *shape] in float32: the latents, and what the sampler draws at its steps. It is drawn on the
    CPU, so that it is the same on every device.

    On a CPU torch seeds an MT19937 with the low 32 bits: 0, 2**32 and -2**63 would be one seed. Seeds of 32 bits draw
    from it, one tensor after the other, as diffusers does. Any other seed is the 128-bit key of a Philox generator, so
    that each seed draws different noise.
    """
    if seed in _TORCH_SEEDS:
        generator = Generator().manual_seed(seed)
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])
    philox = np.random.Generator(np.random.Philox(key=seed % _KEYS))
    return torch.from_numpy(philox.standard_normal((count, *shape), np.float32))
