"""A sampler is a matrix.

DDIM, PNDM, Euler, Heun, DPM++ 2M, DEIS, UniPC and others are linear in the initial noise, in the model outputs, and in
what they draw at their steps, if they do (LCM, Euler ancestral, DDPM). So the model input of call k is the sum of
`M[k, i] * input_i` over (noise, draws, eps_0 .. eps_N-1); M depends on the schedule alone. It is read off the diffusers
scheduler itself, which stays the one source of sampler truth: run in float64 on a "picture" in which noise and model
outputs are the unit vectors of pixels of their own, the scheduler writes into these what each weighs in its result.
Draws cannot be chosen, but known: each is drawn again from the generator's state before the step. What they weigh is
solved for on further pixels, where all else is zero.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

_PROOF_SEED = 0
_PROOF_TOLERANCE = 1e-6  # relative; in diffusers 0.42 some come to 1e-15, those that cast to float32 within to 1e-7
_DRAWS_PER_STEP = 4  # more are not looked for
_DRAW_TYPES = (torch.float64, torch.float32)
# At least 16 pixels, below which torch draws by another way whose state tells less.
_PIXELS_PER_DRAW, _PIXELS = 2, 16


class UnsupportedSamplerError(ValueError):
    """A scheduler that is no fixed linear map: it clips, thresholds, or draws noise that is not the request's."""


class Scheduler(Protocol):
    """What is used of a diffusers scheduler whose timesteps are set."""

    timesteps: Tensor

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """The factor of the initial noise."""

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The model input of a call."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool, **options: Any
    ) -> tuple[Tensor, ...]:
        """The latents after a call."""


@dataclass(frozen=True, eq=False)
class SamplerMatrix:
    """A scheduler with its steps. N is the number of model calls, not always that of steps (Heun: 2n - 1).

    `weights` [N + 1, noises + N], float64: row k < N makes the model input of call k from the noise, what is drawn at
    the steps, and eps_0 .. eps_N-1; row N the final latents. No call sees a later output. `timesteps` [N], float32:
    what the model is told.
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
    calls = len(timesteps)
    draws = _run(fresh(), torch.zeros(calls + 1, _PIXELS, dtype=torch.float64)).draws
    inputs = torch.eye(calls + 1, calls + 1 + _PIXELS + _PIXELS_PER_DRAW * len(draws), dtype=torch.float64)
    weights = _weights(_run(scheduler, inputs), calls)
    _prove(fresh(), weights)
    return SamplerMatrix(weights, timesteps)


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a scheduler made: N model inputs and the final latents, and what it drew, each [pixels].

    `drawn`: how many draws had been made before each row.
    """

    rows: Tensor
    draws: Tensor
    drawn: list[int]


def _run(scheduler: Scheduler, inputs: Tensor, seed: int = _PROOF_SEED) -> _Trace:
    """Run a scheduler on given inputs [N + 1, pixels]: the noise, and what the model answers."""
    rows, draws, drawn = [], list[Tensor](), []
    generator = Generator().manual_seed(seed)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    noise, *outputs = (row[None, None, None] for row in inputs)
    latents = noise * scheduler.init_noise_sigma
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        rows.append(scheduler.scale_model_input(latents, timestep).flatten())
        drawn.append(len(draws))
        before = generator.get_state()
        latents = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
        draws += _drawn_again(before, generator.get_state(), inputs.shape[1])
    final = torch.stack([*rows, latents.flatten()]).double()
    return _Trace(final, torch.stack(draws) if draws else inputs.new_zeros(0, inputs.shape[1]), [*drawn, len(draws)])


def _drawn_again(before: Tensor, after: Tensor, pixels: int) -> list[Tensor]:
    """What was drawn between two states of a generator. Raises UnsupportedSamplerError."""
    for dtype in _DRAW_TYPES:
        generator = Generator()
        generator.set_state(before)
        draws: list[Tensor] = []
        while not torch.equal(generator.get_state(), after) and len(draws) < _DRAWS_PER_STEP:
            draws.append(torch.randn(pixels, generator=generator, dtype=dtype).double())
        if torch.equal(generator.get_state(), after):
            return draws
    raise UnsupportedSamplerError("The scheduler draws other than normal noise of the picture's shape at its steps")


def _weights(trace: _Trace, calls: int) -> Tensor:
    """[N + 1, noises + N] of a run whose inputs were unit vectors on the first N + 1 pixels, and zero on the rest."""
    weights = torch.zeros(calls + 1, 1 + len(trace.draws) + calls, dtype=torch.float64)
    for call, (row, drawn) in enumerate(zip(trace.rows, trace.drawn, strict=True)):
        draws = trace.draws[:drawn]
        solved = torch.linalg.lstsq(draws[:, calls + 1 :].T, row[calls + 1 :, None]).solution[:, 0]
        rest = row - solved @ draws
        weights[call, 0] = rest[0]
        weights[call, 1 : 1 + drawn] = solved
        weights[call, 1 + len(trace.draws) :] = rest[1 : calls + 1]
        # Later outputs weigh nothing but rounding; that they do not matter is part of the proof.
        weights[call, 1 + len(trace.draws) + call :] = 0
    return weights


def _prove(scheduler: Scheduler, weights: Tensor) -> None:
    """Compare the matrix with the scheduler on other inputs, large enough to be clipped by one that clips."""
    inputs = 3 * torch.randn(len(weights), 64, dtype=torch.float64, generator=Generator().manual_seed(_PROOF_SEED))
    trace = _run(scheduler, inputs, _PROOF_SEED + 1)
    if 1 + len(trace.draws) + len(weights) - 1 == weights.shape[1]:
        everything = torch.cat([inputs[:1], trace.draws, inputs[1:]])
        error = float((weights @ everything - trace.rows).norm() / trace.rows.norm())
    else:
        error = float("inf")
    if not error < _PROOF_TOLERANCE:
        raise UnsupportedSamplerError(
            f"{type(scheduler).__name__} with these options is not a fixed linear map (relative error {error:.1e}): "
            "it clips, thresholds, or draws noise by itself. Choose DDIM (clip_sample: false), PNDM, Euler, "
            "Euler ancestral, Heun, DPM++ 2M, DEIS, UniPC or LCM."
        )
