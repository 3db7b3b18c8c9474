"""Linear layers in float8: by torch's own product where there is one, emulated, and on a GPU that is not there."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.workers.engine import demo, full_size
from tests.workers.engine.demo import relative_error
from tests.workers.engine.fake_cuda import DEVICE, Call, fake_cuda
from tests.workers.engine.test_lora import file_of, kohya, random_lora
from tests.workers.engine.test_on_fake_cuda import CONFIG, batch_of
from workers.config import engine_problems
from workers.engine import build, quantisation
from workers.engine import model as models
from workers.engine.codec import Pixels
from workers.engine.compiling import WrongResultError
from workers.engine.conditioning import TEXT_TOKENS, pack_projections
from workers.engine.config import EngineConfig, Lora
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes, StepInputs
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Model, assemble, plans_of, read
from workers.engine.networks import attention
from workers.engine.quantisation import (
    FLOAT8,
    Float8Convolution,
    Float8Linear,
    QuantisationError,
    emulated,
    quantise,
    quantise_networks,
    replace_layers,
    scaled_mm,
    scaled_mm_on,
)
from workers.engine.streams import SideStream

EMULATED = replace(demo.CONFIG, quantisation="fp8-emulated", runtime="torch", dtype="float32")
PLAIN = replace(EMULATED, quantisation="none")
KINDS = {"to_qkv": 1, "to_q": 1, "to_out.0": 2, "ff.net.0.proj": 1, "ff.net.2": 1, "proj_in": 1, "proj_out": 1}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def engine(config: EngineConfig) -> DiffusionEngine:
    built = build(config, "cpu")
    assert isinstance(built, DiffusionEngine)
    return built


@pytest.fixture(scope="module")
def quantised() -> DiffusionEngine:
    return engine(EMULATED)


@pytest.fixture(scope="module")
def plain() -> DiffusionEngine:
    return engine(PLAIN)


def pixels(engine: DiffusionEngine, seed: int = 3) -> Pixels:
    engine.admit(0, engine.prepare(demo.task(seed)))
    demo.run(engine, 0)
    return engine.collect(engine.finish(0))


def quantised_layers(network: nn.Module) -> dict[str, Float8Linear]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Float8Linear)}


# ----------------------------------------------------------------------------------------------------------- arithmetic


def test_values_keep_four_significant_bits_or_a_fixed_share_of_the_largest_of_their_row() -> None:
    x = random(50, 64) * torch.logspace(-6, 4, 50)[:, None]
    rounded, scale = quantise(x)
    error = (rounded.float() * scale - x).abs()
    assert rounded.dtype == FLOAT8
    assert bool((error <= torch.maximum(x.abs() / 2**4, scale / 2**10) * 1.0001).all())
    assert rounded.float().abs().amax(1).tolist() == [448] * 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_value_becomes_infinite_or_undefined(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for value in (0.0, torch.finfo(dtype).tiny, 1.0, largest):
        rounded, scale = quantise(torch.tensor([[value, -value, value / 3] * 16], dtype=dtype))
        assert bool((rounded.float() * scale).isfinite().all())
        assert float(rounded.float()[0, 0] * scale) == pytest.approx(value, rel=1e-6, abs=1e-30)


def test_a_row_does_not_depend_on_the_others() -> None:
    x = torch.cat([random(3, 64), 1e4 * random(1, 64, seed=1), torch.full((1, 64), torch.inf)])
    together, scales = quantise(x)
    for row in range(3):
        alone, scale = quantise(x[row : row + 1])
        assert torch.equal(alone.view(torch.uint8), together[row : row + 1].view(torch.uint8))
        assert torch.equal(scale, scales[row : row + 1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("out", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_torchs_product_in_float8_is_what_is_emulated(out: torch.dtype, tolerance: float, bias: bool) -> None:
    """The call is the one for GPUs. torch's product on a CPU has no fast sums; bfloat16 it rounds twice."""
    rows, weight = quantise(random(40, 64)), quantise(random(32, 64, seed=1))
    added = random(32, seed=2).to(out) if bias else None
    actual = scaled_mm(rows, weight, added, out)
    assert actual.dtype == out
    assert relative_error(actual.float(), emulated(rows, weight, added)) <= tolerance


@pytest.mark.parametrize("multiply", [emulated, partial(scaled_mm, out=torch.float32)], ids=["emulated", "scaled_mm"])
def test_a_linear_layer_and_a_convolution_are_off_by_the_rounding_alone(multiply: quantisation.Multiply) -> None:
    torch.manual_seed(0)
    linear, convolution = nn.Linear(64, 96), nn.Conv2d(64, 96, 1)
    convolution.weight.copy_(linear.weight[:, :, None, None])
    convolution.bias.copy_(linear.bias)  # type: ignore[union-attr]
    x = random(2, 64, 8, 12).to(memory_format=torch.channels_last)
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    actual = Float8Linear(linear, multiply)(tokens)
    assert 0.01 < relative_error(actual, linear(tokens)) < 0.05
    image = Float8Convolution(convolution, multiply)(x)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image.permute(0, 2, 3, 1).flatten(1, 2), actual)
    for other in (x.contiguous(), x[:1].contiguous()):  # as group norms leave them where nothing is compiled
        assert torch.equal(Float8Convolution(convolution, multiply)(other), image[: len(other)])


# --------------------------------------------------------------------------------------------------------------- images


def test_an_engine_makes_the_images_of_the_model_but_for_the_rounding(
    quantised: DiffusionEngine, plain: DiffusionEngine
) -> None:
    assert 25 < demo.psnr(pixels(quantised), pixels(plain)) < 60


def test_the_same_request_is_the_same_image(quantised: DiffusionEngine) -> None:
    assert np.array_equal(pixels(quantised), pixels(quantised))


def test_an_image_does_not_depend_on_its_company(quantised: DiffusionEngine) -> None:
    """But for rounding. A difference in float32's last bit can round a value to the next one of float8."""
    expected = [pixels(quantised, seed) for seed in range(3)]
    for slot in range(3):
        quantised.admit(slot, quantised.prepare(demo.task(slot)))
        quantised.step()
    demo.run(quantised, 0)
    assert all(demo.psnr(quantised.collect(quantised.finish(slot)), expected[slot]) >= 30 for slot in range(3))


def test_a_lora_is_fused_before_the_weights_are_rounded(quantised: DiffusionEngine, tmp_path: Path) -> None:
    path = file_of(random_lora(demo.parts().unet, kohya), tmp_path)
    changed = replace(EMULATED, loras=[Lora(path=str(path.parent), scale=0.7)])
    exact, rounded = (pixels(engine(config)) for config in (replace(changed, quantisation="none"), changed))
    assert demo.psnr(rounded, exact) > demo.psnr(rounded, pixels(quantised)) + 3


def test_the_linear_layers_of_the_transformers_are_quantised() -> None:
    parts = read(EMULATED, torch.float32)
    blocks = sum(name.endswith("transformer_blocks.0") for name, _ in parts.unet.named_modules())
    assemble(EMULATED, parts, "cpu")
    names = quantised_layers(parts.unet)
    found = Counter(kind for name in names for kind in KINDS if name.endswith(f".{kind}"))
    assert found == Counter({kind: blocks * number for kind, number in KINDS.items()})
    assert len(names) == found.total()
    assert len(quantised_layers(parts.controlnet)) > 0


def test_the_weights_are_kept_in_a_quarter_of_float32s_memory() -> None:
    parts = read(EMULATED, torch.float32)
    pack_projections(parts.unet)
    before = sum(
        layer.weight.nbytes for name, layer in parts.unet.named_modules() if quantisation.is_quantised(name, layer)
    )
    replace_layers(parts.unet, emulated)
    layers = quantised_layers(parts.unet).values()
    assert {layer.weight.dtype for layer in layers} == {FLOAT8}
    assert 4 * sum(layer.weight.nbytes for layer in layers) == before
    held = [*parts.unet.parameters(), *parts.unet.buffers()]
    sizes = {tuple(layer.weight.shape) for name, layer in quantised_layers(parts.unet).items() if "to_qkv" in name}
    assert not any(tuple(each.shape) in sizes and each.dtype != FLOAT8 for each in held)
    assert all(block.attn1.to_q is None for block in parts.unet.mid_block.attentions[0].transformer_blocks)


def test_of_two_copies_of_the_weights_there_is_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = read(EMULATED, torch.float32).unet
    pack_projections(unet)
    names = [name for name, layer in unet.named_modules() if quantisation.is_quantised(name, layer)]
    layers = [weakref.ref(unet.get_submodule(name)) for name in names]
    seen: list[int] = []

    def counted(x: Tensor) -> quantisation.Rows:
        seen.append(sum(layer() is not None for layer in layers))
        return quantise(x)

    monkeypatch.setattr(quantisation, "quantise", counted)
    replace_layers(unet, emulated)
    assert seen == [*range(len(layers), 0, -1)]


@pytest.mark.parametrize("multiply", [emulated, partial(scaled_mm, out=torch.float32)], ids=["emulated", "scaled_mm"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_undefined_stays_so_and_in_its_row(value: float, multiply: quantisation.Multiply) -> None:
    x = random(3, 64)
    x[1, 5] = value
    y = Float8Linear(nn.Linear(64, 32), multiply)(x)
    assert y.isnan().all(1).tolist() == [False, True, False]
    assert y[::2].isfinite().all()


def test_networks_whose_weights_were_rounded_are_not_taken_for_others() -> None:
    parts = read(EMULATED, torch.float32)
    assemble(EMULATED, parts, "cpu")
    for config in (EMULATED, PLAIN):
        with pytest.raises(ValueError, match="quantised already: read them again"):
            assemble(config, parts, "cpu")


def test_layers_whose_sides_are_no_multiples_of_16_stay_as_they_are() -> None:
    network = nn.ModuleDict({"block": nn.ModuleDict({"proj_in": nn.Linear(40, 64), "proj_out": nn.Linear(64, 64)})})
    replace_layers(network, emulated)
    assert list(quantised_layers(network)) == ["block.proj_out"]


# ------------------------------------------------------------------------------------------------------------ compiling


def test_a_compiler_gets_the_passes_whole() -> None:
    model = assemble(PLAIN, read(PLAIN, torch.float32), "cpu")
    for network in (model.unet, model.controlnet):
        replace_layers(network, partial(scaled_mm, out=torch.float32))
    plain, layers = Passes.of(model.unet, model.controlnet), Layers.of(model.unet, model.controlnet)
    trace = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    traced = Passes(trace(plain.control), trace(plain.encode), trace(plain.decode))
    ones = torch.ones(2)
    inputs = StepInputs(
        random(2, demo.CHANNELS, 8, 8),
        random(2, model.time_width, seed=1),
        random(2, 2, TEXT_TOKENS, model.text.width, seed=2),
        random(2, 8, 8, model.hint_channels, seed=3),
        ones,
        2 * ones,
        ones,
    )
    actual, expected = (Guided(Denoiser(passes, SideStream(None)), layers)(inputs) for passes in (traced, plain))
    assert relative_error(actual, expected) <= 1e-3


def test_networks_that_round_elsewhere_may_take_over_and_wrong_ones_may_not() -> None:
    """The noise of float8 is another then, which is more than rounding in float16 explains."""
    upgradable = engine(EMULATED)
    model, batch = upgradable._model, upgradable._execution.spaces.of(demo.latent_size()).batch
    assert isinstance(model, Model)
    times = model.times(model.plans.usual.timesteps)
    predict = model.functions(attention, None).predict(SideStream(None))

    def elsewhere(inputs: StepInputs) -> Tensor:
        hooks = [layer.register_forward_hook(in_float16) for layer in model.unet.modules() if not [*layer.children()]]
        rounded = predict(inputs)
        for hook in hooks:
            hook.remove()
        return rounded

    inputs = batch._random_inputs(1, times)
    assert relative_error(elsewhere(inputs), predict(inputs)) > 0.01
    batch.upgrade(1, elsewhere, times)
    for bucket, factor in ((1, [2.0]), (3, [1.0, 0.3, 1.0])):  # one image of three is off by 40% of all
        scaled = torch.tensor(factor).view(-1, 1, 1, 1)
        with pytest.raises(WrongResultError):
            batch.upgrade(bucket, lambda given, scaled=scaled: scaled * predict(given), times)  # type: ignore[misc]


def in_float16(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.half().float()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
def test_compiled_networks_agree_and_take_over_unless_they_are_slower() -> None:
    config = replace(EMULATED, slots=1, speed=replace(EMULATED.speed, compile=True))
    compiled = engine(config)
    expected = pixels(compiled)
    compiled.warm_up()
    assert compiled.wait_until_compiled(1200)
    assert compiled.status().fallbacks == ()
    assert demo.psnr(pixels(compiled), expected) >= 40


# ------------------------------------------------------------------------------------------------------ a GPU, played


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product is tried on the CPU, as if that were a GPU."""
    monkeypatch.setattr(quantisation, "_check", lambda _: None)


@pytest.mark.usefixtures("hopper")
def test_a_step_multiplies_in_float8_on_the_gpu_and_asks_the_host_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Diffusion 1.5. torch checks that shapes and layouts are those that cuBLAS takes."""
    monkeypatch.setattr(quantisation, "check", lambda *_: None)  # fake tensors have no values to compare
    model = full_size_model(monkeypatch)
    with fake_cuda():
        batch = batch_of(model, 7.5, (1,))
    with fake_cuda() as calls:
        batch._step(1, batch._steps[1]._plain)
    products = [call for call in calls if call.name == "_scaled_mm"]
    layers = [layer for net in (model.unet, model.controlnet) for layer in quantised_layers(net).values()]
    assert len(products) == len(layers) > 100
    assert {call.made[0].dtype for call in products} == {torch.float16}
    assert {str(x.device) for call in calls for x in (*call.took, *call.made)} == {DEVICE}
    assert not [call for call in calls if call.name in {"mm", "addmm"}]
    assert all(weight.dtype == FLOAT8 and scale.dtype == torch.float32 for weight, scale in map(weights_of, products))


def weights_of(product: Call) -> tuple[Tensor, Tensor]:
    return product.took[1], product.took[3]


def full_size_model(monkeypatch: pytest.MonkeyPatch) -> Model:
    parts = full_size.architecture()
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        part.half()
    for net in (parts.unet, parts.controlnet):
        pack_projections(net)  # as in test_on_fake_cuda.py
    plans = plans_of(CONFIG.sampler, parts.scheduler)
    monkeypatch.setattr(models, "plans_of", lambda *_: plans)
    with fake_cuda():
        return assemble(replace(CONFIG, quantisation="fp8"), parts, DEVICE)


@pytest.mark.usefixtures("on_cpu")
def test_the_product_writes_what_the_networks_compute_in() -> None:
    assert scaled_mm_on(CPU, torch.float16).keywords == {"out": torch.float16}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("on_cpu")
def test_it_writes_bfloat16_where_torch_can_do_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, lambda out, product: product if out == torch.bfloat16 else refuse())
    parts = read(PLAIN, torch.float32)
    pack_projections(parts.unet)
    replace_layers(parts.unet, scaled_mm_on(CPU, torch.float32))
    layer = parts.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    x = random(2, 5, layer.weight.shape[1])
    assert layer(x).dtype == torch.float32
    exact = emulated(quantise(x.flatten(0, 1)), (layer.weight, layer.weight_scale), layer.bias).view(2, 5, -1)
    assert relative_error(layer(x), exact) < 1e-2


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "wrong",
    [lambda *_: refuse(), lambda _, product: 2 * product, lambda _, product: product.t()],
    ids=["raises", "is off", "takes rows for columns"],
)
def test_a_product_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    play(monkeypatch, wrong)
    with pytest.raises(
        QuantisationError, match=r"a product in it failed \(torch.float16: .*; torch.bfloat16: .*make it none"
    ):
        scaled_mm_on(CPU, torch.float16)


@pytest.mark.usefixtures("on_cpu")
def test_a_lack_of_memory_is_no_reason_to_refuse_the_device_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    play(monkeypatch, no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        scaled_mm_on(CPU, torch.float16)


def play(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.dtype, Tensor], Tensor]) -> None:
    """Have torch's product return something else."""
    product: Any = torch._scaled_mm

    def played(*arguments: Any, out_dtype: torch.dtype, **options: Any) -> Tensor:
        return change(out_dtype, product(*arguments, out_dtype=out_dtype, **options))

    monkeypatch.setattr(torch, "_scaled_mm", played)


def refuse() -> Tensor:
    raise ValueError("Only bf16 high precision output types are supported for row-wise scaling.")


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_cpu_is_refused() -> None:
    with pytest.raises(QuantisationError, match="needs a GPU: make it none, or fp8-emulated"):
        build(replace(EMULATED, quantisation="fp8"), "cpu")


def test_a_gpu_without_the_instructions_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A10G")
    with pytest.raises(QuantisationError, match="for which NVIDIA A10G has no instructions: make it none"):
        quantise_networks([demo.parts().unet], "fp8", torch.device("cuda"))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_that_would_ignore_it_is_refused(runtime: Any) -> None:
    problems = {problem.key: problem.text for problem in engine_problems(replace(EMULATED, runtime=runtime))}
    wanted = f"is fp8-emulated, but engine.runtime is {runtime}, and this is for torch: leave one of them out"
    assert problems["engine", "quantisation"] == wanted


def test_openvino_does_not_take_over() -> None:
    assert replace(EMULATED, runtime="auto").runtime_on(cuda=False) == "torch"
