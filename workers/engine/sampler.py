"""A sampler is a matrix.

DDIM, PNDM, Euler, Heun, DPM++ 2M, DEIS, UniPC and others are linear in the initial noise, in the model outputs, and in
what they draw at their steps, if they do (LCM, Euler ancestral, DDPM). So the model input of call k is the sum of
`M[k, i] * input_i` over (noise, draws, eps_0 .. eps_N-1); M depends on the schedule alone. It is read off the diffusers
scheduler itself, which stays the one source of sampler truth: run in float64 on a "picture" that has a pixel for each
input, where each input is the unit vector of its own pixel, the scheduler writes into pixel i what input i weighs in
its result. What it draws is an input like any other: torch.overrides lets a call of torch.randn be answered.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from workers.engine.contract import UnusableModelError

_MOST_DRAWS = 2  # at a call
_PROOF_SEED, _PROOF_PIXELS = 0, 64
_PROOF_TOLERANCE = 1e-6  # relative; in diffusers 0.42 some come to 1e-15, those that cast to float32 within to 1e-7


class UnsupportedSamplerError(UnusableModelError, ValueError):
    """A scheduler that cannot be had, or is no fixed linear map: it clips, or draws noise that is not the request's."""


@runtime_checkable
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


def is_scheduler(found: object) -> TypeGuard[Scheduler]:
    """Whether it can be used as diffusers' pipelines for Stable Diffusion use theirs."""
    if not isinstance(found, Scheduler):
        return False
    try:
        inspect.signature(found.step).bind(None, None, None, return_dict=False)
    except TypeError:  # it wants more, such as a second sample
        return False
    return True


@dataclass(frozen=True, eq=False)
class SamplerMatrix:
    """A scheduler with its steps. N is the number of model calls, not always that of steps (Heun: 2n - 1).

    `weights` [N + 1, noises + N], float64: row k < N makes the model input of call k from the noise, what is drawn at
    the steps, and eps_0 .. eps_N-1; row N the final latents. No call sees a later output. `timesteps` [N], float32:
    what the model is told. `estimates` [N, noises + N]: row k makes the latents that the answer to call k points at,
    without noise; None where the scheduler does not tell (see `estimates`).
    """

    weights: Tensor
    timesteps: Tensor
    estimates: Tensor | None

    @property
    def calls(self) -> int:
        """N: how often the model is called for one picture."""
        return len(self.timesteps)

    @property
    def noises(self) -> int:
        """1 + D: the initial noise, and what the scheduler draws at its steps."""
        return self.weights.shape[1] - self.calls


def sampler_matrix(scheduler: Scheduler) -> SamplerMatrix:
    """The matrix of a fresh scheduler (they remember what they have seen).

    Raises UnsupportedSamplerError.
    """
    timesteps = scheduler.timesteps.to("cpu", torch.float32)
    calls, draws = len(timesteps), _MOST_DRAWS * len(timesteps)
    units = torch.eye(1 + draws + calls, dtype=torch.float64)
    # In one run, as it may be asked for while others' steps want the interpreter: beside the pixels that are read off
    # some that are to prove it.
    others = _others(len(units))
    answers, made = _respond(scheduler, torch.cat([units, others], dim=1), draws)
    weights, expected = answers.split([len(units), others.shape[1]], dim=1)
    _prove(scheduler, weights @ others, expected)
    weights = torch.cat([weights[:, : 1 + made], weights[:, 1 + draws :]], dim=1)
    predicted = torch.eye(1 + made + calls, dtype=torch.float64)[1 + made :]
    return SamplerMatrix(weights, timesteps, estimates(scheduler, weights[:-1], predicted, timesteps))


def counts(scheduler: Scheduler) -> tuple[int, int]:
    """How often a fresh scheduler has the model called, and how many noises it takes: N and 1 + D of its matrix."""
    calls, counted = len(scheduler.timesteps), _Draws()
    _run(scheduler, torch.zeros(1 + calls, 1, dtype=torch.float64), counted)
    return calls, 1 + counted.made


class _Draws(TorchFunctionMode):
    """While it is entered, counts what torch.randn draws from `generator`, and puts rows [draws, pixels] in its place.

    Without rows it only counts. Other draws are left as they are: the proof finds them.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        super().__init__()
        self.generator = Generator()
        self.made = 0
        self._rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is not torch.randn or kwargs.get("generator") is not self.generator:
            return result
        self.made += 1
        return result if self._rows is None else self._row(result)

    def _row(self, drawn: Tensor) -> Tensor:
        assert self._rows is not None
        if self.made > len(self._rows) or drawn.numel() != self._rows.shape[1]:
            raise UnsupportedSamplerError("The scheduler draws other than noise of the picture's shape at its steps")
        return self._rows[self.made - 1].view_as(drawn).to(drawn.dtype)


def _respond(scheduler: Scheduler, inputs: Tensor, draws: int) -> tuple[Tensor, int]:
    """[N + 1, pixels] for inputs [1 + draws + N, pixels]: the noise, what is drawn, and what the model answers; and how
    often was drawn."""
    noise, drawn, outputs = inputs.split([1, draws, len(inputs) - 1 - draws])
    answering = _Draws(drawn)
    return _run(scheduler, torch.cat([noise, outputs]), answering), answering.made


def _run(scheduler: Scheduler, inputs: Tensor, draws: _Draws) -> Tensor:
    """N model inputs and the final latents [N + 1, pixels] for the noise and the model's answers [N + 1, pixels]."""
    rows = []
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": draws.generator} if takes_generator else {}
    noise, *outputs = (row[None, None, None] for row in inputs)
    latents = noise * scheduler.init_noise_sigma
    with draws:
        for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
            rows.append(scheduler.scale_model_input(latents, timestep).flatten().clone())
            latents = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
    return torch.stack([*rows, latents.flatten()]).double()


def _others(inputs: int) -> Tensor:
    """Other inputs [inputs, pixels], large enough to be clipped by a scheduler that clips."""
    generator = Generator().manual_seed(_PROOF_SEED)
    return 3 * torch.randn(inputs, _PROOF_PIXELS, dtype=torch.float64, generator=generator)


def _prove(scheduler: Scheduler, by_matrix: Tensor, expected: Tensor) -> None:
    """Compare what the matrix makes of them with what the scheduler did."""
    error = float((by_matrix - expected).norm() / expected.norm())
    if not error < _PROOF_TOLERANCE:
        raise UnsupportedSamplerError(
            f"{type(scheduler).__name__} with these options is not a fixed linear map (relative error {error:.1e}): "
            "it clips, thresholds, or draws noise that is not the request's. Choose DDIM (clip_sample: false), PNDM, "
            "Euler, Euler ancestral, Heun, DPM++ 2M, DEIS, UniPC or LCM."
        )


def estimates(scheduler: Any, inputs: Tensor, answers: Tensor, timesteps: Tensor) -> Tensor | None:
    """x0 after each of N calls [N, columns], float64, from rows [N, columns] that make their model inputs and answers.

    x0 are the denoised latents that a call points at. The model's input is sqrt(abar) x0 + sqrt(1 - abar) eps whatever
    the sampler: it was trained so, and `scale_model_input` sees to it. abar is the schedule's at the timestep that the
    model is told. So x0 follows from input and answer, and as the input is a row of the matrix times the inputs, x0 is
    as well. `timesteps` [N] are what the model is told. None for a scheduler that does not tell its noise schedule, or
    whose model answers with something else than noise, velocity or image.
    """
    schedule = getattr(scheduler, "alphas_cumprod", None)
    if schedule is None:
        return None
    level = np.interp(timesteps.double().numpy(), np.arange(len(schedule)), schedule.double().numpy())
    signal, noise = (torch.from_numpy(part**0.5)[:, None] for part in (level, 1 - level))
    match scheduler.config.prediction_type:
        case "epsilon":
            return (inputs - noise * answers) / signal
        case "v_prediction":
            return signal * inputs - noise * answers
        case "sample":
            return answers
        case _:
            return None
