"""Which kernel is chosen, by a clock of the test's own; and that what is chosen computes attention."""

import builtins
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.workers.engine.demo import relative_error
from workers.engine import attention
from workers.engine.attention import Attention, Kernel, Name, attention_for, load_xformers, opaque
from workers.engine.networks import attention as textbook

SHAPE = "2x4 9x5x8"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = random(2, 9, 32), random(2, 5, 32, seed=1), random(2, 5, 32, seed=2)
EXPECTED = textbook(Q, K, V, 4)


class Noted:
    """A kernel that computes attention, and notes that it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls += 1
        return scaled_dot_product_attention(q, k, v)


def raising(*_: Tensor) -> Tensor:
    raise RuntimeError("No available kernel")


def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return 1.1 * scaled_dot_product_attention(q, k, v)


def clock(*seconds: float) -> Callable[[Callable[[], object]], float]:
    """A timer whose readings come in this order."""
    readings = iter(seconds)
    return lambda work: next(readings)


def never(work: Callable[[], object]) -> float:
    raise AssertionError("it was measured")


def test_the_fastest_is_chosen_once_for_each_shape() -> None:
    flash, cudnn = Noted(), Noted()
    attend = Attention({"flash": flash, "cudnn": cudnn}, clock(2.0, 1.0, 1.0, 2.0))
    for _ in range(3):
        assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert attend.choices() == ((SHAPE, "cudnn"),)
    assert (flash.calls, cudnn.calls) == (1, 4)
    attend(Q[:1], K[:1], V[:1], 4)
    assert attend.choices() == ((SHAPE, "cudnn"), ("1x4 9x5x8", "flash"))


def test_slices_of_a_packed_projection_are_taken_as_they_are() -> None:
    packed = random(2, 9, 96)
    q, k, v = packed.chunk(3, dim=-1)
    attend = Attention({"flash": scaled_dot_product_attention}, clock(1.0))
    assert relative_error(attend(q, k, v, 4), textbook(q.clone(), k.clone(), v.clone(), 4)) <= 1e-6


@pytest.mark.parametrize("unfit", [raising, wrong])
def test_what_cannot_do_it_or_does_it_wrong_is_out(unfit: Kernel) -> None:
    attend = Attention({"flash": unfit, "cudnn": Noted()}, clock(1.0))
    assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert attend.choices() == ((SHAPE, "cudnn"),)


def test_when_none_can_torch_chooses_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    attend = Attention({"flash": raising, "cudnn": wrong}, never)
    with caplog.at_level(logging.INFO):
        assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert attend.choices() == ((SHAPE, "sdpa"),)
    assert f"attention {SHAPE}: sdpa (no other kernel can do it)" in caplog.text
    assert "attention by cudnn is wrong by 1.0e-01 and is not used" in caplog.text


def test_what_was_measured_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    attend = Attention({"flash": Noted(), "efficient": Noted()}, clock(63e-6, 41e-6))
    with caplog.at_level(logging.INFO):
        attend(Q, K, V, 4)
    assert f"attention {SHAPE}: efficient (efficient 41 us, flash 63 us)" in caplog.text


def test_nothing_is_measured_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_may_measure", lambda x: False)
    flash = Noted()
    attend = Attention({"flash": flash}, never)
    assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert (attend.choices(), flash.calls) == ((), 0)


def test_on_a_cpu_there_is_nothing_to_measure() -> None:
    attend = attention_for(torch.device("cpu"), "auto")
    assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert attend.choices() == ()


@pytest.mark.parametrize("known", [True, False])
def test_compilers_see_the_choice_that_was_made(known: bool) -> None:
    attend = Attention({"flash": lambda q, k, v: 2 * scaled_dot_product_attention(q, k, v)}, never)
    if known:
        attend._chosen[2, 4, 9, 5, 8] = "flash"
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="eager")
    assert relative_error(compiled(Q, K, V, 4), (2 if known else 1) * EXPECTED) <= 1e-6
    assert len(attend.choices()) == known


def test_torchs_kernels_can_be_traced() -> None:
    attend = Attention({"efficient": by_backend}, clock(1.0))
    attend(Q, K, V, 4)
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="eager")
    assert relative_error(compiled(Q, K, V, 4), EXPECTED) <= 1e-6


def by_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend

    return attention._by_backend(SDPBackend.MATH, q, k, v)  # the one of them that a CPU has


def test_a_kernel_of_another_layout_is_opaque_to_compilers() -> None:
    def as_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape == (2, 9, 4, 8)
        assert not torch.compiler.is_compiling()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    name: Name = "xformers"
    attend = Attention({name: opaque(as_xformers)}, clock(1.0))
    assert relative_error(attend(Q, K, V, 4), EXPECTED) <= 1e-6
    assert attend.choices() == ((SHAPE, name),)
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="eager")
    assert relative_error(compiled(Q, K, V, 4), EXPECTED) <= 1e-6


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'xformers'"), OSError("undefined symbol: _ZN\nx")]
)
def test_xformers_that_does_not_load_is_a_line_in_the_log(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name.startswith("xformers"):
            raise error
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    with caplog.at_level(logging.INFO):
        assert load_xformers() is None
    (record,) = [record for record in caplog.records if "xformers" in record.message]
    assert record.message.startswith(f"attention: xformers is not used: {type(error).__name__}: ")
    assert "\n" not in record.message
