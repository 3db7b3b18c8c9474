"""What a number of steps comes to: the sampler's matrix for it, laid out as pictures' histories are."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from workers.engine.config import Sampler
from workers.engine.contract import BadOptionError
from workers.engine.sampler import SamplerMatrix, Scheduler, counts, sampler_matrix

_log = logging.getLogger(__name__)

_KEPT = 64  # plans; with 50 steps 31 KB each, and up to 40 ms to make, in which steps on a CPU are slower by half
# What schedulers of diffusers raise when they are set to, or run with, a number of steps that is not for them.
_UNABLE = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


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

    def of(self, steps: int | None) -> Plan:
        """The plan for a number of steps, or the configured one. Raises BadOptionError."""
        if steps is None or steps == self.usual.steps:
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
