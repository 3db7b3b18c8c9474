import inspect
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from workers.engine.config import Sampler
from workers.engine.model import make_scheduler
from workers.engine.sampler import SamplerMatrix, UnsupportedSamplerError, sampler_matrix

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SEED = 5  # of what is drawn at the steps
EXACT, ROUNDED = 1e-12, 1e-6  # the second for those that cast to float32 within, where float64 goes in

LINEAR: dict[str, tuple[str, dict[str, Any], float]] = {
    "UniPC": ("UniPCMultistepScheduler", {}, EXACT),
    "DDIM": ("DDIMScheduler", {}, EXACT),
    "PNDM": ("PNDMScheduler", {}, EXACT),
    "Euler": ("EulerDiscreteScheduler", {}, ROUNDED),
    "Heun": ("HeunDiscreteScheduler", {}, EXACT),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, ROUNDED),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ROUNDED),
    "DPM++ 2M trailing": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, ROUNDED),
    "DEIS": ("DEISMultistepScheduler", {}, ROUNDED),
    "LCM": ("LCMScheduler", {}, EXACT),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, ROUNDED),
    "DDPM": ("DDPMScheduler", {}, ROUNDED),
    "TCD": ("TCDScheduler", {}, EXACT),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ROUNDED),
    "DPM++ SDE singlestep": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ROUNDED),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}, ROUNDED),
    "v-prediction": ("DDIMScheduler", {"prediction_type": "v_prediction"}, EXACT),
}


def fresh(name: str, steps: int = 20, **options: Any) -> Callable[[], Any]:
    return lambda: make_scheduler(Sampler(name=name, steps=steps, options=options), SD15)


def toy_model(x: Tensor, timestep: Tensor) -> Tensor:
    """Nonlinear in both, as a network is, but not so steep that long strides blow rounding up."""
    return 0.5 * torch.sin(x + timestep.double() / 100) + 0.1 * x**2 / (1 + x**2)


def by_diffusers(scheduler: Any, noise: Tensor) -> Tensor:
    """The loop of diffusers' pipelines."""
    generator = torch.Generator().manual_seed(SEED)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = toy_model(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
    return latents


def by_matrix(matrix: SamplerMatrix, noise: Tensor, dtype: torch.dtype, drawn_in: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    draws = [torch.randn(noise.shape, generator=generator, dtype=drawn_in) for _ in range(matrix.noises - 1)]
    history = torch.zeros(matrix.noises + matrix.calls, *noise.shape, dtype=dtype)
    history[: matrix.noises] = torch.stack([noise, *draws])
    weights = matrix.weights.to(dtype)
    for call, timestep in enumerate(matrix.timesteps):
        history[matrix.noises + call] = toy_model(torch.tensordot(weights[call], history, 1), timestep)
    final: Tensor = torch.tensordot(weights[-1], history, 1)
    return final


DRAWN_IN = {"DPM++ 2M SDE": torch.float32}  # whatever the latents are


@pytest.mark.parametrize("sampler", LINEAR)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_matrix_samples_as_the_scheduler_does(sampler: str, steps: int) -> None:
    name, options, tolerance = LINEAR[sampler]
    matrix = sampler_matrix(fresh(name, steps, **options)())
    noise = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = by_diffusers(fresh(name, steps, **options)(), noise)
    for dtype, allowed in ((torch.float64, tolerance), (torch.float32, 1e-5)):
        drawn_in = DRAWN_IN.get(sampler, torch.float64)
        error = (by_matrix(matrix, noise, dtype, drawn_in) - expected).norm() / expected.norm()
        assert error <= allowed


def test_each_call_sees_only_what_came_before_it() -> None:
    matrix = sampler_matrix(fresh("UniPCMultistepScheduler")())
    assert matrix.calls == 20
    assert matrix.weights.shape == (21, 21)
    assert matrix.weights.dtype == torch.float64
    assert not matrix.weights.triu(1).any()
    assert matrix.weights[0, 0] == 1  # UniPC starts from the plain noise
    assert matrix.timesteps.dtype == torch.float32


def test_some_samplers_call_the_model_more_often_than_they_step() -> None:
    assert sampler_matrix(fresh("HeunDiscreteScheduler", 20)()).calls == 39
    assert sampler_matrix(fresh("PNDMScheduler", 20)()).calls == 21


def test_noise_of_a_step_has_no_effect_before_it() -> None:
    matrix = sampler_matrix(fresh("LCMScheduler", 4)())
    assert matrix.noises == 1 + 3  # none at the last step
    draws = matrix.weights[:, 1:4]
    assert not draws.triu().any()
    assert all(draws[call + 1, call] for call in range(3))
    assert not matrix.weights[:, 4:].triu().any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDPMScheduler", {"clip_sample": True}),
        ("LCMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {"thresholding": True}),
    ],
)
def test_one_that_clips_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSamplerError, match=f"{name} with these options is not a fixed linear map"):
        sampler_matrix(fresh(name, **options)())


def test_a_draw_without_weight_keeps_its_place() -> None:
    matrix = sampler_matrix(fresh("EulerAncestralDiscreteScheduler", 4)())
    assert matrix.noises == 1 + 4
    assert [bool(column.any()) for column in matrix.weights[:, 1:5].T] == [True, True, True, False]


def test_one_that_steps_in_place_is_read_before_it_does() -> None:
    def in_place() -> Any:
        scheduler = fresh("DDIMScheduler", 3)()
        step = scheduler.step

        def overwrite(output: Tensor, timestep: Any, latents: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
            return (latents.copy_(step(output, timestep, latents, return_dict=return_dict)[0]),)

        scheduler.step = overwrite
        return scheduler

    assert torch.equal(sampler_matrix(in_place()).weights, sampler_matrix(fresh("DDIMScheduler", 3)()).weights)


class Drawing:
    """Euler, with noise of another kind at each step."""

    def __init__(self, draw: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        self._euler = fresh("EulerDiscreteScheduler", 3)()
        self._draw = draw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._euler, name)

    def step(
        self, output: Tensor, timestep: Any, latents: Tensor, generator: torch.Generator, *, return_dict: bool
    ) -> tuple[Tensor, ...]:
        stepped = self._euler.step(output, timestep, latents, return_dict=return_dict)[0]
        return (stepped + self._draw(stepped, generator),)


def test_several_draws_a_step_are_told_apart() -> None:
    def twice(like: Tensor, generator: torch.Generator) -> Tensor:
        first, second = (torch.randn(like.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        return 2 * first - 3 * second

    matrix = sampler_matrix(cast(Any, Drawing(twice)))
    assert matrix.noises == 1 + 6
    assert matrix.weights[-1, 5:7].tolist() == [2, -3]


@pytest.mark.parametrize(
    "draw",
    [
        lambda like, _: torch.randn_like(like),
        lambda like, _: torch.randn(like.shape),
        lambda like, generator: torch.rand(like.shape, generator=generator),
    ],
)
def test_one_that_draws_what_the_request_does_not_is_refused(draw: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    with pytest.raises(UnsupportedSamplerError, match=r"not a fixed linear map .* noise that is not the request's"):
        sampler_matrix(cast(Any, Drawing(draw)))


def test_one_that_draws_less_than_an_image_is_refused() -> None:
    with pytest.raises(UnsupportedSamplerError, match="draws noise whose shape is not that of the image"):
        sampler_matrix(cast(Any, Drawing(lambda _, generator: torch.randn(1, 1, generator=generator))))


def test_one_whose_noise_no_seed_decides_is_refused() -> None:
    # Where the package torchsde is missing it does not work; where it is there, its draws are found.
    with pytest.raises(
        UnsupportedSamplerError, match=r"DPMSolverSDEScheduler (does not work .* torchsde|with these opt)"
    ):
        sampler_matrix(fresh("DPMSolverSDEScheduler")())


@pytest.mark.parametrize(
    ("name", "steps", "told"),
    [
        (
            "LCMScheduler",
            51,
            r"LCMScheduler does not work with 51 steps and these options: .*`num_inference_steps`: 51",
        ),
        ("AmusedScheduler", 4, "AmusedScheduler does not work with 4 steps and these options: .*'mask_token_id'"),
        ("RePaintScheduler", 4, "RePaintScheduler is not a scheduler that works with Stable Diffusion"),
        ("FlowMatchEulerDiscreteScheduler", 4, "FlowMatchEulerDiscreteScheduler is not a scheduler"),
    ],
)
def test_one_that_cannot_be_used_is_refused(name: str, steps: int, told: str) -> None:
    with pytest.raises(UnsupportedSamplerError, match=told):
        fresh(name, steps)()


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DConditionModel", "__name__"])
def test_one_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedSamplerError, match=f"diffusers has no scheduler named {name}"):
        fresh(name)()
