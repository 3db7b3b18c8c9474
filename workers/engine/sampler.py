"""A sampler is a matrix.

DDIM, PNDM, Euler, Heun, DPM++ 2M, DEIS, UniPC and others are linear in the initial noise and in the model outputs. So
the model input of call k is `M[k, 0] * noise + sum(M[k, j + 1] * eps_j for j < k)`; M depends on the schedule alone.
It is read off the diffusers scheduler itself, which stays the one source of sampler truth: run in float64 on a
"picture" whose N + 1 pixels are the N + 1 inputs (noise, eps_0 .. eps_N-1), where each input is the unit vector of its
own pixel, the scheduler writes into pixel j what input j weighs in its result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_PROOF_SEED = 0
_PROOF_TOLERANCE = 1e-6  # relative; in diffusers 0.42 some come to 1e-15, those that cast to float32 within to 1e-7


class UnsupportedSamplerError(ValueError):
    """A scheduler that is no fixed linear map: it draws noise at each step, clips or thresholds."""


class Scheduler(Protocol):
    """What is used of a diffusers scheduler whose timesteps are set."""

    timesteps: Tensor

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """The factor of the initial noise."""

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The model input of a call."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        """The latents after a call."""


@dataclass(frozen=True, eq=False)
class SamplerMatrix:
    """A scheduler with its steps. N is the number of model calls, not always that of steps (Heun: 2n - 1).

    `weights` [N + 1, N + 1], float64: row k < N makes the model input of call k from (noise, eps_0 .. eps_N-1), row N
    the final latents. Lower-triangular: call k sees no later output. `timesteps` [N], float32: what the model is told.
    """

    weights: Tensor
    timesteps: Tensor

    @property
    def calls(self) -> int:
        """N: how often the model is called for one picture."""
        return len(self.timesteps)

    @property
    def noises(self) -> int:
        """1 + D: the initial noise, and what the scheduler draws at its steps."""
        return self.weights.shape[1] - self.calls


def sampler_matrix(fresh: Callable[[], Scheduler]) -> SamplerMatrix:
    """The matrix of a scheduler; `fresh` makes one with its timesteps set (they remember what they have seen).

    Raises UnsupportedSamplerError.
    """
    scheduler = fresh()
    timesteps = scheduler.timesteps.to("cpu", torch.float32)
    inputs = torch.eye(len(timesteps) + 1, dtype=torch.float64)
    weights = torch.stack(_run(scheduler, inputs))
    _prove(fresh(), weights)
    return SamplerMatrix(weights, timesteps)


def _run(scheduler: Scheduler, inputs: Tensor) -> list[Tensor]:
    """What the scheduler makes of given inputs [N + 1, pixels]: N model inputs and the final latents, [pixels] each."""
    rows = []
    noise, *outputs = (row[None, None, None] for row in inputs)
    latents = noise * scheduler.init_noise_sigma
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        rows.append(scheduler.scale_model_input(latents, timestep).flatten())
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return [*rows, latents.flatten()]


def _prove(scheduler: Scheduler, weights: Tensor) -> None:
    """Compare the matrix with the scheduler on other inputs, large enough to be clipped by one that clips."""
    inputs = 3 * torch.randn(
        len(weights), 64, dtype=torch.float64, generator=torch.Generator().manual_seed(_PROOF_SEED)
    )
    expected = torch.stack(_run(scheduler, inputs))
    error = (weights @ inputs - expected).norm() / expected.norm()
    sees_later_calls = bool(weights.triu(1).any())
    if sees_later_calls or not error < _PROOF_TOLERANCE:
        raise UnsupportedSamplerError(
            f"{type(scheduler).__name__} with these options is not a fixed linear map "
            f"(relative error {float(error):.1e}): it draws noise at each step, clips or thresholds. "
            "Choose DDIM (clip_sample: false), PNDM, Euler, Heun, DPM++ 2M, DEIS or UniPC."
        )
