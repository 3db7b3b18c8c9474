"""An image on the tensors of a GPU that is not there: devices, dtypes, host values, layouts; at full size."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.engine import demo, full_size
from tests.workers.engine.fake_cuda import (
    DEVICE,
    Call,
    efficient_attention,
    fake_cuda,
    host_on_fake_cuda,
    layout_kept,
)
from workers.engine import codec
from workers.engine import model as models
from workers.engine.batch import Batch, BatchShape, JoiningImage
from workers.engine.conditioning import pack_ends, pack_projections, pack_upsamplers
from workers.engine.config import EngineConfig, Sampler, Speed, rows_of
from workers.engine.contract import StepProgress
from workers.engine.engine import DiffusionEngine
from workers.engine.graphs import Fallbacks, GraphContext, Graphs
from workers.engine.model import Model, assemble, plans_of
from workers.engine.plan import DeviceSchedule, Scales
from workers.engine.preview import Colours
from workers.engine.runtime import ModelFunctions
from workers.engine.streams import SideStream

CONFIG = EngineConfig(sampler=Sampler(steps=4))
SIDE = 64  # of the latents
HEAVY = {"convolution", "addmm", "mm", "_scaled_dot_product_efficient_attention"}
IMAGE_WORK = {"convolution", "silu", "add", "addcmul", "mul", "cat", "upsample_nearest2d"}
COPIES = {"clone", "copy_", "_to_copy", "contiguous", "index", "index_select", "repeat"}
VIEWS = {"select", "permute", "view"}
ACTIVATION = 60_000  # elements: the smallest that networks make for an image are larger, its time projections smaller
TRANSFORMERS = 7  # of the ControlNet, with two attentions each
GROUP_NORMS = 61 + 27  # of the UNet and the ControlNet
VAE_GROUP_NORMS = 30  # of its decoder


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Stable Diffusion 1.5 in float16 on a GPU that is not there."""
    parts = full_size.architecture()
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        part.half()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        for net in (parts.unet, parts.controlnet):
            pack_projections(net)  # it draws numbers that are overwritten, and a fake device has no generator
        # It computes on the CPU with numbers, not with shapes.
        plans = plans_of(CONFIG.sampler, parts.scheduler)
        patched.setattr(models, "plans_of", lambda *_: plans)
        with fake_cuda():
            yield assemble(CONFIG, parts, DEVICE)


def batch_of(model: Model, guidance: float, buckets: tuple[int, ...]) -> Batch:
    predict = model.functions(efficient_attention, None).predict(SideStream(None))
    graphs = Graphs(GraphContext(None, Fallbacks(), lambda: False, Lock()))
    return Batch(model, BatchShape(4, rows_of(guidance), buckets), (SIDE, SIDE), predict, graphs)


def step(model: Model, guidance: float, bucket: int) -> list[Call]:
    """The operators of one step."""
    with fake_cuda():
        batch = batch_of(model, guidance, (bucket,))
    with fake_cuda() as calls:
        batch._step(bucket, batch._steps[bucket]._plain)
    return calls


@pytest.fixture(scope="module")
def guided(model: Model) -> list[Call]:
    """A step of one image."""
    return step(model, 7.5, 1)


def assert_on_the_gpu_in_half_precision(calls: list[Call]) -> None:
    assert {str(x.device) for call in calls for x in (*call.took, *call.made)} == {DEVICE}
    heavy = [call for call in calls if call.name in HEAVY]
    assert {call.name for call in heavy} == HEAVY
    assert {x.dtype for call in heavy for x in call.took} == {torch.float16}


def activation(x: Tensor) -> bool:
    return x.dtype == torch.float16 and x.numel() > ACTIVATION


def images(calls: list[Call]) -> list[tuple[Call, Tensor]]:
    """Activations that are images, with what made them."""
    return [(c, x) for c in calls if c.name in IMAGE_WORK for x in c.made if activation(x) and _is_image(x)]


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[2] == x.shape[3]


def test_a_step_stays_on_the_gpu_in_half_precision_and_asks_the_host_nothing(guided: list[Call]) -> None:
    assert_on_the_gpu_in_half_precision(guided)


def test_so_does_a_step_of_four_images_without_guidance(model: Model) -> None:
    assert_on_the_gpu_in_half_precision(step(model, 1.0, 4))


def test_so_does_all_else_that_an_image_needs(model: Model) -> None:
    with fake_cuda():
        batch = batch_of(model, 7.5, (1,))
        edges = torch.zeros(8 * SIDE, 8 * SIDE, dtype=torch.float16, device=DEVICE)
        noise = torch.zeros(1, 4, SIDE, SIDE, device=DEVICE)
        plan = model.plans.usual
        assert plan.estimates is not None
        weights, estimates, timesteps = (x.to(DEVICE) for x in (plan.weights, plan.estimates, plan.timesteps))
    with fake_cuda() as calls:
        hint = model.hint(edges)
        model.text._encode()
        text, schedule = torch.stack([model.text._flat] * 2), DeviceSchedule(weights, estimates, model.times(timesteps))
        batch.load(0, JoiningImage(noise, text, schedule, Scales(7.5, 1.0, 1.0)))
        batch.admit(0, hint)
        pixels = model.decode(noise[0])
    with fake_cuda():
        latents = batch.final_latents(0)
    assert_on_the_gpu_in_half_precision(calls)
    assert (latents.shape, latents.dtype) == ((4, SIDE, SIDE), torch.float32)
    assert (pixels.shape, pixels.dtype) == ((8 * SIDE, 8 * SIDE, 3), torch.uint8)


def test_a_preview_is_a_handful_of_small_kernels(model: Model) -> None:
    with fake_cuda():
        batch, plan = batch_of(model, 7.5, (1,)), model.plans.usual
        assert plan.estimates is not None
        batch._running[0], batch._estimates[0] = StepProgress(0, 1, plan.calls), plan.estimates.to(DEVICE)
        colours = Colours(torch.zeros(4, 3, device=DEVICE), torch.zeros(3, device=DEVICE))
    with fake_cuda() as calls:
        latents = batch.estimate(0)
        assert latents is not None
        pixels = colours(latents)
    assert (pixels.shape, pixels.dtype, str(pixels.device)) == ((SIDE, SIDE, 3), torch.uint8, DEVICE)
    assert {str(x.device) for call in calls for x in (*call.took, *call.made)} == {DEVICE}
    assert [call.name for call in calls if call.name not in VIEWS] == ["mm", "addmm", "round_", "clamp_", "_to_copy"]
    history = 4 * SIDE**2 * model.plans.layout.columns
    assert max(x.numel() for call in calls for x in (*call.took, *call.made) if call.name not in VIEWS) == history


def test_a_steps_copies_are_the_ones_that_are_known(guided: list[Call]) -> None:
    copies = [call for call in guided if call.name in COPIES and any(map(activation, call.made))]
    rows = [tuple(call.made[0].shape) for call in copies if not _is_group_norms(call)]
    assert Counter(rows) == {
        (1, 2, 77, 36480): 1,  # the image's keys and values, gathered
        (1, SIDE, SIDE, 320): 1,  # its hint, gathered
        (1, 2, SIDE * SIDE, 320): 2,  # the queries of each network's first cross-attention, for both rows
    }


def test_only_the_controlnets_queries_are_multiplied_for_a_temperature(guided: list[Call]) -> None:
    """One factor for each row."""
    colder = [call for call in guided if call.name == "mul" and any(x.shape[1:] == (1, 1) for x in call.took)]
    assert len(colder) == 2 * TRANSFORMERS


def _is_group_norms(call: Call) -> bool:
    """torch's group norm on CUDA takes and makes the contiguous layout alone, so it copies what it takes."""
    return call.name == "clone" and layout_kept(call.took[0]) and call.made[0].is_contiguous()


def test_only_group_norms_leave_the_channels_last_layout(guided: list[Call]) -> None:
    """Where nothing is compiled: each of them copies, and so does the convolution after it, to come back."""
    assert sum(call.name == "native_group_norm" for call in guided) == GROUP_NORMS
    assert sum(_is_group_norms(call) for call in guided) == GROUP_NORMS
    left = [(call, x) for call, x in images(guided) if not layout_kept(x)]
    assert {call.name for call, _ in left} == {"silu"}
    back = [call for call in guided if call.name == "convolution" and not layout_kept(call.took[0])]
    assert len(back) <= GROUP_NORMS
    assert all(layout_kept(call.made[0]) for call in guided if call.name == "convolution")


def test_with_our_kernels_nothing_does(model: Model) -> None:
    with fake_cuda():
        for network in (model.unet, model.controlnet):
            pack_ends(network)
        pack_upsamplers(model.unet)
    calls = step(replace(model, fused=True), 7.5, 1)
    assert_on_the_gpu_in_half_precision(calls)
    assert sum(call.name in ("group_norm", "add_group_norm") for call in calls) == GROUP_NORMS
    assert not any("native_group_norm" in call.name or _is_group_norms(call) for call in calls)
    assert all(layout_kept(x) for _, x in images(calls))
    assert all(layout_kept(x) for call in calls if call.name == "convolution" for x in (call.took[0], call.made[0]))


def test_nor_in_the_vae(model: Model) -> None:
    with fake_cuda():
        pack_upsamplers(model.vae.decoder)
    with fake_cuda() as calls:
        replace(model, fused=True).decode(torch.zeros(4, SIDE, SIDE, device=DEVICE))
    assert sum(call.name in ("group_norm", "add_group_norm") for call in calls) == VAE_GROUP_NORMS
    assert not any("native_group_norm" in call.name or _is_group_norms(call) for call in calls)
    assert all(layout_kept(x) for _, x in images(calls))
    convolutions = [call for call in calls if call.name == "convolution" and activation(call.made[0])]
    assert all(layout_kept(x) for call in convolutions[1:] for x in (call.took[0], call.made[0]))


def test_the_text_encoder_runs_the_same_operators_whether_it_is_recorded_or_not(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operators() -> list[Any]:
        with fake_cuda() as calls:
            model.text._encode()
        return [call.operator for call in calls]

    usual = operators()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert operators() == usual


def test_the_device_begins_before_the_image_is_decoded_and_the_host_waits_for_the_result_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the steps before the last, so that it is no more than one ahead."""
    speed = Speed(graphs=False, compile=False, attention="sdpa")
    config = replace(CONFIG, speed=speed, slots=1)
    with host_on_fake_cuda(monkeypatch) as host:

        def noted(what: str, work: Callable[..., Any], *, numbered: bool = False) -> Callable[..., Any]:
            count = itertools.count(1)

            def run(*args: Any) -> Any:
                host.note(f"{what} {next(count)}" if numbered else what)
                return work(*args)

            return run

        functions = model.functions(efficient_attention, None)
        step = noted("step", lambda inputs: inputs.latents.float(), numbered=True)
        played = ModelFunctions(lambda side: step, noted("VAE", functions.decode))
        monkeypatch.setattr(Model, "functions", lambda *_: played)
        monkeypatch.setattr(Model, "hint", noted("hint", Model.hint))
        monkeypatch.setattr(model.text, "_encoder", noted("text", model.text._encoder))
        monkeypatch.setattr(codec, "decode_to", noted("reads the file", codec.decode_to))
        engine = DiffusionEngine(config, model)
        host.did.clear()
        prepared = engine.prepare(demo.task(width=8 * SIDE, height=8 * SIDE, negative="gray"), partial(engine.begin, 0))
        engine.admit(0, prepared)
        for _ in range(engine.calls):
            engine.step()
        pixels = engine.collect(engine.finish(0))
    assert host.did == [
        *("text", "text", "reads the file", "hint", "step 1", "step 2"),
        *("waits for step 1", "step 3", "waits for step 2", "step 4"),
        *("VAE", "waits for VAE"),
    ]
    assert host.copies == 9  # two texts, the noise, three of the schedule, the edges, the slot's number; the result
    assert pixels.shape == (8 * SIDE, 8 * SIDE, 3)
    assert engine.status().fallbacks == (("group norm kernels: not usable", 1),)


def test_a_wait_of_the_host_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with host_on_fake_cuda(monkeypatch) as host:
        torch.zeros(1).to(DEVICE)
        torch.zeros(1, device=DEVICE).copy_(torch.zeros(1), non_blocking=True)  # which is not pinned
        torch.zeros(1, device=DEVICE).cpu()
    assert host.did == ["waits for a copy"] * 3
