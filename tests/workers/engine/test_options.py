"""An image with options of its own in a mixed batch is the one that diffusers makes alone."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any, TypeAlias

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, Reference, relative_error
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import engine as recorded
from workers.engine import codec
from workers.engine.codec import Pixels
from workers.engine.config import Canny, EngineConfig, Output
from workers.engine.contract import BadOptionError, EngineOptions, StepProgress, Task, canny_of, resolved
from workers.engine.engine import DiffusionEngine

TOLERANCE = 1e-4  # as in test_equivalence.py
FIVE = replace(CONFIG, slots=5)
Asked: TypeAlias = dict[str, Any]
MIXED: tuple[Asked, ...] = (
    {"steps": 3, "guidance_scale": 1.0, "control_scale": 0.3},
    {"steps": 7, "guidance_scale": 6.5, "negative": "a blue square"},
    {"guidance_scale": 0.5, "control_scale": 1.7, "negative": "ignored, as nothing guides", "canny_low": 20},
    {"steps": 5, "control_scale": 0.0, "negative": "", "canny_low": 300, "canny_high": 700},
    {"control_image": "edges", "steps": 6},
)


def as_configured(config: EngineConfig, options: Asked) -> EngineConfig:
    """The configuration that says for all images what one asks for."""
    plain = {key: options[key] for key in ("guidance_scale", "control_scale") if key in options}
    sampler = replace(config.sampler, steps=options.get("steps", config.sampler.steps))
    negative = options.get("negative", config.prompt.negative)
    return replace(config, sampler=sampler, prompt=replace(config.prompt, negative=negative), **plain)


def tasks(mixed: tuple[Asked, ...] = MIXED) -> list[Task]:
    return [replace(demo.task(seed, **options), image=shades()) for seed, options in enumerate(mixed)]


def shades() -> bytes:
    """Circles of several contrasts, the weakest of which only low thresholds find; grey levels, as an edge map."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    for n, contrast in enumerate((12, 40, 90)):
        cv2.circle(pixels, (18 + 14 * n, 32), 9, (128 + contrast,) * 3, -1)
    return codec.encode(pixels, Output(format="png"))


def by_diffusers(config: EngineConfig, engine: DiffusionEngine, task: Task, options: Asked) -> Tensor:
    """Final latents by the pipeline alone, with the edges that its thresholds make."""
    prepared = engine.prepare(replace(task, options=EngineOptions()))
    prepared = replace(prepared, edges=control_image(bytes(task.image), options))
    return Reference(as_configured(config, options), demo.parts()).latents(prepared, seed=task.seed)


def control_image(image: bytes, options: Asked) -> Pixels:
    if options.get("control_image") == "edges":
        return np.asarray(Image.open(BytesIO(image)).convert("L"))
    low, high = (options.get(key, default) for key, default in (("canny_low", 100), ("canny_high", 200)))
    return cv2.Canny(codec.decode(image), low, high).astype(np.uint8)


def together(engine: DiffusionEngine, wanted: list[Task]) -> list[Tensor]:
    """Latents of images that share every step from the first on, for as long as each takes."""
    for slot, task in enumerate(wanted):
        engine.admit(slot, engine.prepare(task))
    while engine.step():
        pass
    latents = [engine.latents(slot) for slot in range(len(wanted))]
    for slot in range(len(wanted)):
        engine.discard(slot)
    return latents


@pytest.fixture(scope="module")
def shared() -> DiffusionEngine:
    """An engine for tests that leave it empty."""
    return demo.engine(FIVE)


def test_each_image_of_a_batch_comes_out_as_it_asks(shared: DiffusionEngine) -> None:
    expected = [by_diffusers(FIVE, shared, task, asked) for task, asked in zip(tasks(), MIXED, strict=True)]
    for actual, each in zip(together(shared, tasks()), expected, strict=True):
        assert relative_error(actual, each) <= TOLERANCE


def test_every_option_matters(shared: DiffusionEngine) -> None:
    """Or the test above would not notice that one is ignored."""
    (plain,) = together(shared, tasks(({},)))
    changes: tuple[Asked, ...] = (
        {"steps": 5},
        {"guidance_scale": 6.5},
        {"control_scale": 0.3},
        {"negative": "a blue square"},
        {"canny_low": 20},
        {"canny_high": 700},
        {"temperature": 0.3},
        {"control_image": "edges"},
    )
    for change in changes:
        (latents,) = together(shared, tasks((change,)))
        assert relative_error(latents, plain) > 10 * TOLERANCE, change


def test_an_image_without_guidance_is_the_same_whatever_the_negative_prompt(shared: DiffusionEngine) -> None:
    asked = tuple({"guidance_scale": scale, "negative": text} for scale, text in ((1.0, "gray"), (0.0, "a blue star")))
    first, second = together(shared, [replace(task, seed=1) for task in tasks(asked)])
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(demo.with_sampler("LCMScheduler"), guidance_scale=1.0), id="LCM"),
        pytest.param(demo.with_sampler("EulerAncestralDiscreteScheduler"), id="Euler ancestral"),
        pytest.param(demo.with_sampler("HeunDiscreteScheduler", steps=3), id="Heun"),
        pytest.param(demo.with_sampler("PNDMScheduler", skip_prk_steps=True), id="PNDM"),
    ],
)
def test_numbers_of_steps_mix_where_steps_draw_noise_or_call_the_model_more_than_once(config: EngineConfig) -> None:
    engine = demo.engine(config)
    mixed: tuple[Asked, ...] = ({"steps": 2}, {"steps": 6}, {})
    expected = [by_diffusers(config, engine, task, asked) for task, asked in zip(tasks(mixed), mixed, strict=True)]
    for actual, each in zip(together(engine, tasks(mixed)), expected, strict=True):
        assert relative_error(actual, each) <= TOLERANCE


def test_progress_is_told_of_each_images_own_steps(shared: DiffusionEngine) -> None:
    for slot, steps in enumerate((1, 3)):
        shared.admit(slot, shared.prepare(demo.task(steps=steps)))
    told = [shared.step() for _ in range(4)]
    assert told == [
        [StepProgress(0, 1, 1), StepProgress(1, 1, 3)],
        [StepProgress(1, 2, 3)],
        [StepProgress(1, 3, 3)],
        [],
    ]
    for slot in range(2):
        shared.discard(slot)


def test_a_slot_forgets_what_its_last_image_asked_for(shared: DiffusionEngine) -> None:
    (expected,) = together(shared, tasks(({},)))
    together(shared, [replace(tasks()[1], seed=5)])
    (actual,) = together(shared, tasks(({},)))
    assert torch.equal(actual, expected)


def test_recorded_steps_serve_images_whatever_they_ask_for(shared: DiffusionEngine) -> None:
    """Nothing is recorded for an option, and what is replayed makes the same images."""
    fake = recorder()
    engine = recorded(FIVE, fake)
    engine.warm_up()
    before = len(fake.pools)
    for actual, expected in zip(together(engine, tasks()), together(shared, tasks()), strict=True):
        assert relative_error(actual, expected) <= 1e-5
    assert len(fake.pools) == before
    assert engine.status().fallbacks == ()


def test_images_in_the_middle_of_their_steps_do_not_notice_one_that_joins(shared: DiffusionEngine) -> None:
    (expected,) = together(shared, tasks(({},)))
    shared.admit(0, shared.prepare(tasks(({},))[0]))
    for slot, task in enumerate(tasks()[1:], 1):
        shared.step()
        shared.admit(slot, shared.prepare(task))
    assert relative_error(demo.run(shared, 0), expected) <= 1e-5
    for slot in range(len(MIXED)):
        shared.discard(slot)


# ------------------------------------------------------------------------------------------------------- temperature


class Tempered:
    """An attention processor of diffusers that divides the logits, written out."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5
        attended = (logits / self._temperature).softmax(-1) @ v
        result: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return result


@pytest.fixture
def controlnet() -> Iterator[Any]:
    """Diffusers' own, with whatever processors it was given taken back."""
    net = demo.parts().controlnet
    processors = net.attn_processors
    yield net
    net.set_attn_processor(processors)


def test_each_image_has_its_own_temperature(shared: DiffusionEngine, controlnet: Any) -> None:
    mixed = tuple({"temperature": each, "control_scale": 1.5} for each in (1.0, 0.5, 0.1, 0.004))
    actual = together(shared, tasks(mixed))
    for task, latents in zip(tasks(mixed), actual, strict=True):
        controlnet.set_attn_processor(Tempered(task.options.temperature))
        expected = by_diffusers(FIVE, shared, task, {"control_scale": 1.5})
        assert relative_error(latents, expected) <= TOLERANCE


def test_it_is_the_controlnets_alone(shared: DiffusionEngine) -> None:
    """Where that adds nothing, nothing changes."""
    mixed: tuple[Asked, ...] = ({"control_scale": 0.0}, {"control_scale": 0.0, "temperature": 0.1})
    expected, actual = together(shared, [replace(task, seed=1) for task in tasks(mixed)])
    assert torch.equal(actual, expected)


def test_the_lowest_temperatures_leave_an_image() -> None:
    engine = demo.engine(replace(CONFIG, slots=1))
    min_temperature, colder = (together(engine, tasks(({"temperature": each},)))[0] for each in (2.0**-20, 1e-300))
    assert min_temperature.isfinite().all()
    assert torch.equal(min_temperature, colder)


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("steps", [0, -3, 51, 10**9])
def test_more_steps_than_there_may_be_are_refused(shared: DiffusionEngine, steps: int) -> None:
    with pytest.raises(BadOptionError, match=rf"^steps is {steps}, but must be 1 to 50\.$"):
        shared.prepare(demo.task(steps=steps))


def test_steps_that_a_sampler_cannot_take_are_refused_and_all_others_work() -> None:
    """This one samples at up to as many steps as it was trained for."""
    engine = demo.engine(demo.with_sampler("LCMScheduler", original_inference_steps=20))
    with pytest.raises(BadOptionError, match=r"^steps is 21, which LCMScheduler cannot take: choose another number\.$"):
        engine.prepare(demo.task(steps=21))
    assert engine.prepare(demo.task(steps=20)).plan.calls == 20


def test_where_nothing_guides_no_image_can_ask_for_guidance() -> None:
    engine = demo.engine(replace(CONFIG, guidance_scale=1.0))
    with pytest.raises(BadOptionError, match=r"^guidance_scale is 1\.5; it must be at most 1, as this model "):
        engine.prepare(demo.task(guidance_scale=1.5))
    assert engine.prepare(demo.task(guidance_scale=0.5, negative="ignored")).scales.guidance == 1


def test_the_lower_threshold_is_the_lower_one() -> None:
    config = EngineConfig(canny=Canny(low=100, high=200))
    assert resolved(EngineOptions(canny_low=250), config).canny == Canny(low=200, high=250)
    assert resolved(EngineOptions(canny_high=50), config).canny == Canny(low=50, high=100)


def test_a_task_that_sets_a_threshold_turns_automatic_ones_off() -> None:
    config = EngineConfig(canny=Canny(low=100, high=200, auto=True))

    assert canny_of(EngineOptions(), config) == Canny(low=100, high=200, auto=True)
    assert canny_of(EngineOptions(canny_low=50), config) == Canny(low=50, high=200)
    assert canny_of(EngineOptions(), EngineConfig()) == Canny()


def test_refused_options_end_no_image(shared: DiffusionEngine) -> None:
    (expected,) = together(shared, tasks(({},)))
    shared.admit(0, shared.prepare(tasks(({},))[0]))
    shared.step()
    with pytest.raises(BadOptionError):
        shared.prepare(demo.task(steps=51))
    assert relative_error(demo.run(shared, 0), expected) <= 1e-5
    shared.discard(0)
