"""A sampler is a matrix.

DDIM, PNDM, Euler, Heun, DPM++ 2M, DEIS, UniPC and others are linear in the initial noise, in the model's outputs, and
in the noise that some draw at their steps (LCM, Euler ancestral, DDPM). So the model's input at call k is the sum of
`M[k, i] * input_i` over the inputs (noise, draws, eps_0 .. eps_N-1), and the matrix M depends on the schedule alone.
Row N gives the final latents. M is lower triangular: no call sees a later output.

Example: Euler from sigma 10 to 5 to 0, in two steps. It computes x1 = x0 + (5 - 10) eps_0 and x2 = x1 + (0 - 5) eps_1,
with x0 = 10 noise. So the final latents are the row (10, -5, -5) times (noise, eps_0, eps_1).

We do not write such rows down for each sampler. We run diffusers' own scheduler, in float64, on "latents" that have
one pixel per input, where input i is 1 in pixel i and 0 elsewhere. Because the scheduler is linear, pixel i of its
result is the weight of input i. What it draws is an input like the others: torch.overrides replaces the result of
torch.randn. Further pixels with random inputs then prove that the scheduler was in fact linear.
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
    """A scheduler is missing, or no fixed linear map: it clips, or draws noise that is not the request's."""


@runtime_checkable
class DiffusersScheduler(Protocol):
    """The parts that we use of a diffusers scheduler with timesteps set."""

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


def is_scheduler(found: object) -> TypeGuard[DiffusersScheduler]:
    """Whether it works like the schedulers in diffusers' pipelines for Stable Diffusion."""
    if not isinstance(found, DiffusersScheduler):
        return False
    try:
        inspect.signature(found.step).bind(None, None, None, return_dict=False)
    except TypeError:  # it needs more, such as a second sample
        return False
    return True


@dataclass(frozen=True, eq=False)
class SamplerMatrix:
    """A scheduler with its steps. N is the number of model calls, not always the number of steps (Heun: 2n - 1).

    `weights` [N + 1, noises + N], float64: row k < N makes the model's input of call k from the noise, the draws, and
    eps_0 .. eps_N-1; row N the final latents. `timesteps` [N], float32, are passed to the model. `estimates`
    [N, noises + N]: row k makes the denoised latents that call k predicts; None where they are unknown (see
    `estimates`).
    """

    weights: Tensor
    timesteps: Tensor
    estimates: Tensor | None

    @property
    def calls(self) -> int:
        """N, the number of model calls for one image."""
        return len(self.timesteps)

    @property
    def noises(self) -> int:
        """1 + D: the initial noise, and the draws."""
        return self.weights.shape[1] - self.calls


def sampler_matrix(scheduler: DiffusersScheduler) -> SamplerMatrix:
    """The matrix of a fresh scheduler (a used one keeps state).

    Raises UnsupportedSamplerError.
    """
    timesteps = scheduler.timesteps.to("cpu", torch.float32)
    calls, draws = len(timesteps), _MOST_DRAWS * len(timesteps)
    units = torch.eye(1 + draws + calls, dtype=torch.float64)
    # One run for both, the pixels to read off and those of the proof, as steps may want the interpreter meanwhile.
    random = _random_pixels(len(units))
    answers, made = _respond(scheduler, torch.cat([units, random], dim=1), draws)
    weights, expected = answers.split([len(units), random.shape[1]], dim=1)
    _prove(scheduler, weights @ random, expected)
    weights = torch.cat([weights[:, : 1 + made], weights[:, 1 + draws :]], dim=1)
    predicted = torch.eye(1 + made + calls, dtype=torch.float64)[1 + made :]
    return SamplerMatrix(weights, timesteps, estimates(scheduler, weights[:-1], predicted, timesteps))


def counts(scheduler: DiffusersScheduler) -> tuple[int, int]:
    """N and 1 + D of a fresh scheduler's matrix: its model calls and its noises."""
    calls, counted = len(scheduler.timesteps), _Draws()
    _run(scheduler, torch.zeros(1 + calls, 1, dtype=torch.float64), counted)
    return calls, 1 + counted.made


class _Draws(TorchFunctionMode):
    """A context in which torch.randn with `generator` returns the next of the rows [draws, pixels].

    Without rows it only counts the draws. Other draws stay as they are: the proof finds them.
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
            raise UnsupportedSamplerError("The scheduler draws noise whose shape is not that of the image")
        return self._rows[self.made - 1].view_as(drawn).to(drawn.dtype)


def _respond(scheduler: DiffusersScheduler, inputs: Tensor, draws: int) -> tuple[Tensor, int]:
    """Return results [N + 1, pixels] for inputs [1 + draws + N, pixels] (noise, draws, model outputs), and the number
    of draws."""
    noise, drawn, outputs = inputs.split([1, draws, len(inputs) - 1 - draws])
    answering = _Draws(drawn)
    return _run(scheduler, torch.cat([noise, outputs]), answering), answering.made


def _run(scheduler: DiffusersScheduler, inputs: Tensor, draws: _Draws) -> Tensor:
    """N model inputs and the final latents [N + 1, pixels], for the noise and the model's outputs [N + 1, pixels]."""
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


def _random_pixels(inputs: int) -> Tensor:
    """Random inputs [inputs, pixels], large enough that a scheduler that clips clips them."""
    generator = Generator().manual_seed(_PROOF_SEED)
    return 3 * torch.randn(inputs, _PROOF_PIXELS, dtype=torch.float64, generator=generator)


def _prove(scheduler: DiffusersScheduler, by_matrix: Tensor, expected: Tensor) -> None:
    """Compare the matrix's results with the scheduler's own."""
    error = float((by_matrix - expected).norm() / expected.norm())
    if not error < _PROOF_TOLERANCE:
        raise UnsupportedSamplerError(
            f"{type(scheduler).__name__} with these options is not a fixed linear map (relative error {error:.1e}): "
            "it clips, thresholds, or draws noise that is not the request's. Choose DDIM (clip_sample: false), PNDM, "
            "Euler, Euler ancestral, Heun, DPM++ 2M, DEIS, UniPC or LCM."
        )


def estimates(scheduler: Any, inputs: Tensor, answers: Tensor, timesteps: Tensor) -> Tensor | None:
    """Rows [N, columns], float64, that make x0, the denoised latents that each of N calls predicts.

    The model's input is sqrt(abar) x0 + sqrt(1 - abar) eps whatever the sampler: it was trained so, and
    `scale_model_input` sees to it. abar belongs to the timestep that is passed to the model (`timesteps` [N]). So x0
    follows from the call's input and output, and since both are rows of a matrix, x0 is one, too: `inputs` and
    `answers` [N, columns]. None for a scheduler without a known noise schedule, or whose model predicts something else
    than noise, velocity or the image.
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
