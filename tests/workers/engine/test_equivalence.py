"""The engine against the diffusers pipeline: same weights, same noise, same image."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, Reference, relative_error
from workers.engine.config import EngineConfig
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Parts, assemble

TOLERANCE = 1e-4  # of the final latents in float32; measured: below 2e-6

SAMPLERS = {
    "UniPC": demo.with_sampler("UniPCMultistepScheduler"),
    "DDIM": demo.with_sampler("DDIMScheduler", clip_sample=False),
    "Euler": demo.with_sampler("EulerDiscreteScheduler"),
    "DPM++ 2M": demo.with_sampler("DPMSolverMultistepScheduler"),
    "DPM++ 2M Karras": demo.with_sampler("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    "PNDM": demo.with_sampler("PNDMScheduler", skip_prk_steps=True),
    "Heun": demo.with_sampler("HeunDiscreteScheduler", steps=3),
    "DEIS": demo.with_sampler("DEISMultistepScheduler"),
}


DRAWING = {
    "LCM": replace(demo.with_sampler("LCMScheduler"), guidance_scale=1.0),
    "Euler ancestral": demo.with_sampler("EulerAncestralDiscreteScheduler"),
    "DDPM": demo.with_sampler("DDPMScheduler", clip_sample=False),
    "DPM++ 2M SDE": demo.with_sampler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
}


def assert_same_as_diffusers(config: EngineConfig, width: int, height: int, parts: Parts | None = None) -> None:
    parts = parts or demo.parts()
    engine = DiffusionEngine(config, assemble(config, parts, "cpu"))
    task = demo.task(7, width, height)
    prepared = engine.prepare(task)
    expected = Reference(config, parts).latents(prepared)
    actual = demo.make(engine, task)
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_alone_comes_out_as_diffusers_makes_it(sampler: str) -> None:
    assert_same_as_diffusers(SAMPLERS[sampler], 64, 64)


@pytest.mark.parametrize(("channels", "scale"), [(4, 8), (16, 8), (3, 2)])
def test_so_does_one_of_a_model_with_other_latents(channels: int, scale: int) -> None:
    assert_same_as_diffusers(CONFIG, 64, 96, demo.parts_with_other_latents(channels, scale))


@pytest.mark.parametrize("sampler", DRAWING)
def test_so_does_one_whose_sampler_draws_noise_at_its_steps(sampler: str) -> None:
    config = DRAWING[sampler]
    engine = demo.engine(config)
    tasks = {slot: demo.task(30 + slot) for slot in range(3)}
    reference = Reference(config, demo.parts())
    expected = {slot: reference.latents(engine.prepare(task), seed=task.seed) for slot, task in tasks.items()}
    assert relative_error(demo.make(engine, tasks[0]), expected[0]) <= TOLERANCE
    for slot, task in tasks.items():
        engine.admit(slot, engine.prepare(task))
        engine.step()
    for slot in tasks:
        assert relative_error(demo.run(engine, slot), expected[slot]) <= TOLERANCE


@pytest.mark.parametrize("sampler", ["UniPC", "DDIM", "Euler", "DPM++ 2M"])
def test_so_does_one_that_is_not_square(sampler: str) -> None:
    assert_same_as_diffusers(SAMPLERS[sampler], 128, 64)


def test_so_does_one_whose_latents_have_odd_sides() -> None:
    assert_same_as_diffusers(replace(CONFIG, size=replace(CONFIG.size, short_side=72)), 104, 72)


@pytest.mark.parametrize("sampler", DRAWING)
def test_the_seed_decides_what_is_drawn_at_the_steps(sampler: str) -> None:
    engine = demo.engine(DRAWING[sampler])
    first, second = (engine.prepare(demo.task(seed)) for seed in (1, 2))
    mixed = replace(first, noise=torch.cat([first.noise[:1], second.noise[1:]]))
    images = []
    for prepared in (first, mixed, first):
        engine.admit(0, prepared)
        images.append(demo.run(engine, 0).clone())
        engine.discard(0)
    assert torch.equal(images[2], images[0])
    assert relative_error(images[1], images[0]) > 0.1


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5, 7.5])
def test_with_guidance_and_without(guidance_scale: float) -> None:
    assert_same_as_diffusers(replace(CONFIG, guidance_scale=guidance_scale), 64, 64)


@pytest.mark.parametrize("control_scale", [0.0, 0.5, 1.0])
def test_at_any_control_scale(control_scale: float) -> None:
    assert_same_as_diffusers(replace(CONFIG, control_scale=control_scale), 64, 64)


@pytest.mark.parametrize("sampler", ["UniPC", "DDIM", "Euler", "DPM++ 2M"])
def test_images_that_join_and_leave_at_different_steps_come_out_as_if_alone(sampler: str) -> None:
    engine = demo.engine(SAMPLERS[sampler])
    tasks = {0: demo.task(10, text="a red circle"), 1: demo.task(11, 128), 2: demo.task(12, text="a blue square")}
    reference = Reference(SAMPLERS[sampler], demo.parts())
    expected = {slot: reference.latents(engine.prepare(task), task.text) for slot, task in tasks.items()}

    engine.admit(0, engine.prepare(tasks[0]))
    engine.step()
    engine.admit(1, engine.prepare(tasks[1]))  # another size
    engine.step()
    engine.admit(2, engine.prepare(tasks[2]))
    actual = {slot: demo.run(engine, slot) for slot in tasks}

    for slot in tasks:
        assert relative_error(actual[slot], expected[slot]) <= TOLERANCE


def test_those_that_stay_move_up_when_one_leaves() -> None:
    engine = demo.engine()
    tasks = {slot: demo.task(20 + slot) for slot in range(3)}
    expected = {slot: reference_latents(engine, slot) for slot in tasks}
    for slot, task in tasks.items():
        engine.admit(slot, engine.prepare(task))
        engine.step()
    engine.discard(0)  # the first entry: the last image takes its place in the middle of its steps
    engine.admit(0, engine.prepare(tasks[0]))
    for slot in (1, 2, 0):
        assert relative_error(demo.run(engine, slot), expected[slot]) <= TOLERANCE


def reference_latents(engine: DiffusionEngine, slot: int) -> Tensor:
    return Reference(CONFIG, demo.parts()).latents(engine.prepare(demo.task(20 + slot)))


def test_the_vae_rounds_as_diffusers_does() -> None:
    engine = demo.engine()
    engine.admit(0, engine.prepare(demo.task()))
    prepared = engine.prepare(demo.task())
    demo.run(engine, 0)
    pixels = engine.collect(engine.finish(0))
    assert pixels.shape == (64, 64, 3)
    assert demo.psnr(pixels, Reference(CONFIG, demo.parts()).pixels(prepared)) >= 60
