"""The attention kernels there are, and how they are captured and compiled. Faked: xformers, and that there is a GPU."""

import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workers.engine.demo import relative_error
from tests.workers.engine.rivals import BY_NAME, CHANNELS, HEADS, SIZE, TOLERANCE, Bench, Qkv, expected, inputs, random
from workers.engine import attention as attention_module
from workers.engine import kernel_probe
from workers.engine.attention import PLAIN, Attention, Kernel, flaw, kernels
from workers.engine.config import AttentionKernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ["math", "xformers"])
@pytest.mark.parametrize("size", [40, 80, 160])
def test_kernels_compute_attention_with_the_heads_of_the_model(name: str, size: int, xformers: ModuleType) -> None:
    queries, keys, values = random(2, 16, 8 * size), random(2, 77, 8 * size, seed=1), random(2, 77, 8 * size, seed=2)
    attention = Attention([BY_NAME[name]], lambda work: 1.0)
    assert relative_error(attention(queries, keys, values, 8), expected(queries, keys, values, 8)) <= TOLERANCE
    assert attention.choices() == ((f"2x8 16x77x{size}", name),)


# ------------------------------------------------------------------------------------------------ capture and compile


@pytest.mark.parametrize("state", ["torch.cuda.is_current_stream_capturing", "torch.compiler.is_compiling"])
def test_nothing_is_measured_during_capture_or_compilation(
    bench: Bench, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = bench.attention(bench.kernel("slow", 2.0), bench.kernel("fast", 1.0))
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_initialized", lambda: state.startswith("torch.cuda"))
        patch.setattr(state, lambda: True)
        assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == ()
    assert bench.calls == []
    attention(*inputs(), HEADS)
    assert attention.choices() == (("2x2 6x5x8", "fast"),)


class Traced:
    """A compiler that keeps the operators of each graph it is given."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, module: Any, examples: Any) -> Any:
        return aot_autograd(fw_compiler=self._keep)(module, examples)

    def _keep(self, module: Any, examples: Any) -> Any:
        self.graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module


def test_the_choice_is_compiled_in(xformers: ModuleType) -> None:
    tokens = {6: "xformers", 4: "math"}
    paces = iter([1.0, 2.0, 2.0, 1.0])
    attention = Attention([BY_NAME[name] for name in tokens.values()], lambda work: next(paces))
    for each in tokens:
        attention(*inputs(queries=each), HEADS)
    assert [name for _, name in attention.choices()] == list(tokens.values())

    traced = Traced()

    def both(short: Qkv, long: Qkv) -> tuple[Tensor, Tensor]:
        return attention(*short, HEADS), attention(*long, HEADS)

    compiled = torch.compile(both, fullgraph=True, dynamic=False, backend=traced)
    given = inputs(queries=4), inputs(queries=6)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the flags of the process are not asked
        results = compiled(*given)
    for result, parts in zip(results, given, strict=True):
        assert relative_error(result, expected(*parts)) <= TOLERANCE
    (graph,) = traced.graphs
    assert graph.count("contour.xformers_attention.default") == 1
    assert sum("softmax" in name for name in graph) == 1
    assert not any("scaled_dot_product" in name for name in graph)


def test_new_shapes_leave_compiled_ones_as_they_are(bench: Bench) -> None:
    attention = Attention([BY_NAME["math"], PLAIN], lambda work: 1.0)
    attention(*inputs(), HEADS)
    traced = Traced()
    compiled = torch.compile(attention, fullgraph=True, dynamic=False, backend=traced)
    compiled(*inputs(), HEADS)
    attention(*inputs(queries=9), HEADS)
    compiled(*inputs(), HEADS)
    assert len(traced.graphs) == 1


def test_packed_inputs_compile_too() -> None:
    attention = Attention(kernels(CPU))
    project = random(1, CHANNELS, 3 * CHANNELS)[0]

    def block(x: Tensor) -> Tensor:
        q, k, v = (x @ project).chunk(3, dim=-1)
        return attention(q, k, v, HEADS)

    plain = block(random(2, 6))
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")
    assert relative_error(compiled(random(2, 6)), plain) <= TOLERANCE


def test_xformers_operator_keeps_the_rules_of_operators(xformers: ModuleType) -> None:
    sample = tuple(x.view(2, -1, HEADS, SIZE) for x in inputs())
    torch.library.opcheck(attention_module.xformers_attention, sample, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "math", "xformers"])
def test_torch_knows_every_operator_and_what_it_returns_on_cuda(name: str) -> None:
    with FakeTensorMode():
        packed = torch.empty(2, 4096, 3 * 320, dtype=torch.float16, device="cuda")
        q, k, v = (x.view(2, 4096, 8, 40).transpose(1, 2) for x in packed.chunk(3, dim=-1))
        output = BY_NAME[name].run(q, k, v)
    assert (output.shape, output.dtype, output.device.type) == (q.shape, torch.float16, "cuda")


# ------------------------------------------------------------------------------------------------- what there is here


@pytest.fixture
def plays_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that was built with all its kernels; others are tried here, on the CPU."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(kernel_probe, "flaw_of", lambda name, device: flaw(name, CPU))


def names(found: tuple[Kernel, ...]) -> list[str]:
    return [kernel.name for kernel in found]


def test_a_gpu_has_all_kernels(xformers: ModuleType, plays_cuda: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert names(kernels(CUDA)) == ["flash", "cudnn", "efficient", "xformers", "math"]
    assert caplog.messages == []


def test_a_torch_without_some_kernels_has_the_others(
    xformers: ModuleType, plays_cuda: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert names(kernels(CUDA)) == ["flash", "efficient", "xformers", "math"]
    assert caplog.messages == ["Attention kernels not available here: cudnn (torch was built without it)"]


def test_without_xformers_there_is_one_line_in_the_log(
    plays_cuda: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    noted: list[str] = []
    assert names(kernels(CUDA, note=lambda reason, detail: noted.append(reason))) == [
        "flash",
        "cudnn",
        "efficient",
        "math",
    ]
    assert caplog.messages == ["Attention kernels not available here: xformers (it is not installed)"]
    assert noted == []


@pytest.mark.parametrize("error", [OSError("undefined symbol"), NotImplementedError("No operator found\n for ...")])
def test_an_xformers_that_does_not_run_beside_this_torch_is_counted(
    error: Exception, xformers: ModuleType, plays_cuda: None
) -> None:
    def fail(*tensors: Tensor) -> Tensor:
        raise error

    xformers.memory_efficient_attention_forward = fail  # type: ignore[attr-defined]
    noted: list[tuple[str, object]] = []
    found = kernels(CUDA, note=lambda reason, detail: noted.append((reason, detail)))
    assert names(found) == ["flash", "cudnn", "efficient", "math"]
    assert noted == [("attention: xformers fails", f"{type(error).__name__}: {str(error).splitlines()[0]}")]


def test_a_kernel_that_ended_the_last_process_is_left_out_and_torch_does_not_choose_it_either(
    plays_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden: list[str] = []
    for name in attention_module._CHOSEN_BY_TORCH:
        monkeypatch.setitem(
            attention_module._CHOSEN_BY_TORCH,
            name,
            lambda allowed, name=name: None if allowed else forbidden.append(name),  # type: ignore[misc]
        )
    assert names(kernels(CUDA, without=["cudnn", "math", "xformers"])) == ["flash", "efficient"]
    assert forbidden == ["cudnn"]


def test_torch_chooses_among_what_is_left() -> None:
    was = torch.backends.cuda.flash_sdp_enabled()
    try:
        kernels(CPU, without=["flash"])
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(was)


def test_one_kernel_can_be_asked_for(plays_cuda: None) -> None:
    wanted: list[AttentionKernel] = ["flash", "cudnn", "efficient", "math"]
    assert [names(kernels(CUDA, each)) for each in wanted] == [[each] for each in wanted]


def test_asking_for_what_a_device_lacks_is_a_warning_and_torch_chooses(caplog: pytest.LogCaptureFixture) -> None:
    assert kernels(CPU, "flash") == (PLAIN,)
    assert caplog.messages == [
        "engine.speed.attention: flash cannot be used: it needs a CUDA device, this is cpu; torch chooses instead"
    ]
