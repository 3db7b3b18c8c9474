"""The image that a call of the model points at: what diffusers' schedulers make of the same call."""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.workers.engine.test_sampler import LINEAR, SEED, fresh, toy_model
from workers.engine.sampler import SamplerMatrix, estimates, sampler_matrix

STEPS = 20
TELLING = ["DDIM", "Euler", "Heun", "Euler ancestral", "DDPM", "KDPM2 ancestral"]  # in what a step returns
CONVERTING = ["UniPC", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 2M trailing"]
CASES = [
    *((sampler, "epsilon") for sampler in (*TELLING, *CONVERTING)),
    *((sampler, "v_prediction") for sampler in (*TELLING, *CONVERTING)),
    *((sampler, "sample") for sampler in ("DDIM", "DDPM", *CONVERTING)),
]
ALIKE = 1e-6  # relative; some compute in float32
# Between two timesteps some interpolate sigma and not abar; of Karras' sigmas the model is told rounded timesteps.
LESS = dict.fromkeys(("Euler", "Heun", "Euler ancestral", "KDPM2 ancestral"), 2e-5) | {"DPM++ 2M Karras": 5e-3}
PURE_NOISE = 0.1  # of an image is left at their first timesteps, but samplers begin without


@pytest.mark.parametrize(("sampler", "prediction"), CASES)
def test_it_is_what_the_scheduler_takes_it_for(sampler: str, prediction: str) -> None:
    name, options, _ = LINEAR[sampler]
    make = fresh(name, STEPS, **options | {"prediction_type": prediction})
    matrix = sampler_matrix(make())
    noise = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = own(make(), noise)
    assert matrix.estimates is not None
    actual = torch.tensordot(matrix.estimates, history(matrix, noise), 1)
    errors = (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert errors.max() <= LESS.get(sampler, ALIKE)


@pytest.mark.parametrize("sampler", LINEAR)
def test_whatever_the_sampler_its_model_sees_what_it_was_trained_on(sampler: str) -> None:
    """With a model that knows the image: all there is are parts of the image and of each noise, in this order."""
    name, options, _ = LINEAR[sampler]
    make = fresh(name, STEPS, **options | {"prediction_type": "epsilon"})
    matrix, schedule = sampler_matrix(make()), make().alphas_cumprod.double().numpy()
    parts = torch.eye(matrix.weights.shape[1], 1 + matrix.noises, dtype=torch.float64).roll(1, dims=1)
    for call, timestep in enumerate(matrix.timesteps):
        level = float(np.interp(timestep, np.arange(len(schedule)), schedule))
        seen = matrix.weights[call] @ parts
        assert float(seen[0]) == pytest.approx(level**0.5, abs=PURE_NOISE)
        assert float(seen[1:].norm()) == pytest.approx((1 - level) ** 0.5, abs=PURE_NOISE / 2)
        seen[0] -= level**0.5
        parts[matrix.noises + call] = seen / (1 - level) ** 0.5


def test_no_call_points_at_what_comes_later() -> None:
    matrix = sampler_matrix(fresh("UniPCMultistepScheduler", STEPS)())
    assert matrix.estimates is not None
    assert matrix.estimates.shape == (STEPS, 1 + STEPS)
    assert not matrix.estimates.triu(2).any()


def test_velocity_tells_where_there_is_nothing_but_noise() -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    make = fresh("DDIMScheduler", STEPS, **options)
    assert make().alphas_cumprod[-1] == 0
    matrix = sampler_matrix(make())
    assert matrix.estimates is not None
    assert torch.equal(matrix.estimates[0], -torch.eye(1 + STEPS, dtype=torch.float64)[1])


def test_without_a_noise_schedule_there_is_none() -> None:
    unknown = SimpleNamespace(config=SimpleNamespace(prediction_type="epsilon"))
    assert estimates(unknown, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)) is None


def test_of_another_kind_of_answer_there_is_none() -> None:
    schedule = fresh("DDIMScheduler")().alphas_cumprod
    unknown = SimpleNamespace(alphas_cumprod=schedule, config=SimpleNamespace(prediction_type="flow"))
    assert estimates(unknown, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)) is None


def own(scheduler: Any, noise: Tensor) -> Tensor:
    """The scheduler's own, of each call in turn."""
    found: list[Tensor] = []
    convert = getattr(scheduler, "convert_model_output", None)
    if convert is not None:

        def converted(*args: Any, **kwargs: Any) -> Tensor:
            found.append(convert(*args, **kwargs))
            return found[-1]

        scheduler.convert_model_output = converted
    takes = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(SEED)} if takes else {}
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = toy_model(scheduler.scale_model_input(latents, timestep), timestep)
        stepped = scheduler.step(output, timestep, latents, **options)
        latents = stepped.prev_sample
        if convert is None:
            found.append(stepped.pred_original_sample)
    return torch.stack(found)


def history(matrix: SamplerMatrix, noise: Tensor) -> Tensor:
    """All that goes into an image, in the order of the matrix's columns."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = [torch.randn(noise.shape, generator=generator, dtype=noise.dtype) for _ in range(matrix.noises - 1)]
    made = torch.zeros(matrix.weights.shape[1], *noise.shape, dtype=noise.dtype)
    made[: matrix.noises] = torch.stack([noise, *drawn])
    for call, timestep in enumerate(matrix.timesteps):
        made[matrix.noises + call] = toy_model(torch.tensordot(matrix.weights[call], made, 1), timestep)
    return made
