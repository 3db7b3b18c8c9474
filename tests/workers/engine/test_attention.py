"""The choice among attention kernels. Faked: the device's clock, and that kernels fail; the sums are real."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.workers.engine.demo import relative_error
from tests.workers.engine.rivals import (
    BY_NAME,
    CHANNELS,
    HEADS,
    SIZE,
    TOLERANCE,
    Bench,
    expected,
    inputs,
    no_memory,
    not_a_number,
    random,
    refuse,
    transposed,
)
from workers.engine import attention as attention_module
from workers.engine.attention import Attention, Kernel, device_seconds, kernels, textbook_attention


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_the_fastest_kernel_is_taken(bench: Bench) -> None:
    attention = bench.attention(bench.kernel("slow", 3.0), bench.kernel("fast", 1.0), bench.kernel("middling", 2.0))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == (("2x2 6x5x8", "fast"),)
    assert bench.calls[-1] == "fast"


def test_of_kernels_that_are_as_fast_within_the_noise_the_first_is_taken(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    attention = bench.attention(bench.kernel("slow", 2e-4), bench.kernel("first", 1.02e-4), bench.kernel("last", 1e-4))
    attention(*inputs(), HEADS)
    assert attention.choices() == (("2x2 6x5x8", "first"),)
    assert caplog.messages == ["attention 2x2 6x5x8: first 102 us (last 100, slow 200)"]


def test_a_known_shape_is_not_measured_again(bench: Bench) -> None:
    attention = bench.attention(bench.kernel("slow", 2.0), bench.kernel("fast", 1.0))
    attention(*inputs(), HEADS)
    bench.calls.clear()
    attention(*inputs(), HEADS)
    assert bench.calls == ["fast"]


def test_each_shape_has_a_choice_of_its_own(bench: Bench) -> None:
    def pace(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bench.now += 0.1 * k.shape[2]  # good with few keys
        return scaled_dot_product_attention(q, k, v)

    attention = bench.attention(bench.kernel("steady", 1.0), bench.kernel("short", 0.0, pace))
    for rows, queries, keys in ((1, 16, 16), (1, 16, 5), (2, 16, 5)):
        attention(*inputs(rows, queries, keys), HEADS)
    attention(*inputs(1, 16, 16), 2 * HEADS)
    assert attention.choices() == (
        ("1x2 16x16x8", "steady"),
        ("1x2 16x5x8", "short"),
        ("2x2 16x5x8", "short"),
        ("1x4 16x16x4", "steady"),
    )


@pytest.mark.parametrize("broken", [refuse, no_memory, transposed, not_a_number])
def test_a_kernel_that_fails_or_computes_nonsense_is_out_however_fast(
    bench: Bench, broken: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    attention = bench.attention(bench.kernel("broken", 0.0, broken), bench.kernel("sound", 9.0))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == (("2x2 6x5x8", "sound"),)
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO"]
    assert "attention 2x2 6x5x8: without broken: " in caplog.messages[0]
    assert caplog.messages[1].endswith("(not broken)")


def test_a_kernel_that_fails_only_while_it_is_timed_is_out(bench: Bench) -> None:
    def tired(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return refuse(q, k, v) if bench.calls.count("tired") > 1 else scaled_dot_product_attention(q, k, v)

    attention = bench.attention(bench.kernel("tired", 0.0, tired), bench.kernel("sound", 9.0))
    attention(*inputs(), HEADS)
    assert attention.choices() == (("2x2 6x5x8", "sound"),)


def test_where_no_kernel_can_be_used_torch_chooses_and_the_log_says_why(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    attention = bench.attention(bench.kernel("one", run=refuse), bench.kernel("other", run=not_a_number))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == (("2x2 6x5x8", "sdpa"),)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "attention: no kernel: torch chooses for 2x2 6x5x8, as none can be used: "
        "one (RuntimeError: head size 8 is not for me), other (WrongResultError: it is off by nan"
    )


def test_without_memory_to_measure_torch_chooses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention_module, "textbook_attention", no_memory)
    attention = bench.attention(bench.kernel("one"), bench.kernel("other"))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == (("2x2 6x5x8", "sdpa"),)
    assert "measuring (OutOfMemoryError: CUDA out of memory)" in caplog.text


def test_scores_that_would_fill_the_memory_are_not_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_SCORES_BYTES", 4 * 2 * HEADS * 6 * 5)
    keeps = Kernel("keeps", bench.kernel("keeps", 1.0).run, keeps_scores=True)
    attention = bench.attention(keeps, bench.kernel("streams", 2.0))
    attention(*inputs(), HEADS)
    attention(*inputs(queries=7), HEADS)
    assert attention.choices() == (("2x2 6x5x8", "keeps"), ("2x2 7x5x8", "streams"))
    assert bench.calls.count("keeps") == 3  # checked, timed and used, but all of it for the first shape


def test_the_log_has_a_line_for_each_shape_with_all_times(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    paces = {"efficient": 63e-6, "flash": 41.4e-6, "cudnn": 39e-6}
    refused = bench.kernel("math", run=refuse)
    attention = bench.attention(*(bench.kernel(name, pace) for name, pace in paces.items()), refused)
    attention(*inputs(), HEADS)
    attention(*inputs(), HEADS)
    assert caplog.messages == ["attention 2x2 6x5x8: cudnn 39 us (flash 41, efficient 63; not math)"]


def test_measuring_leaves_the_global_generator_alone(bench: Bench) -> None:
    before = torch.get_rng_state()
    bench.attention(bench.kernel("one"), bench.kernel("other"))(*inputs(), HEADS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cpu_has_no_choice_and_measures_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def never(work: Callable[[], object]) -> float:
        raise AssertionError("there is nothing to measure")

    attention = Attention(kernels(torch.device("cpu")), never)
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert attention.choices() == (("2x2 6x5x8", "sdpa"),)
    assert caplog.messages == []


def test_a_kernel_that_was_asked_for_is_checked_and_the_log_names_it_and_the_shape(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    attention = bench.attention(bench.kernel("flash", run=refuse))
    assert relative_error(attention(*inputs(), HEADS), expected(*inputs())) <= TOLERANCE
    assert "attention: no kernel: torch chooses for 2x2 6x5x8, as none can be used: flash (RuntimeError" in caplog.text


def test_slices_of_a_packed_tensor_are_taken_as_they_lie_and_measured_so(bench: Bench) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend(x.stride() for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v)

    packed = random(2, 6, 3 * CHANNELS)
    q, k, v = packed.chunk(3, dim=-1)
    attention = bench.attention(bench.kernel("one", 1.0, spy), bench.kernel("other", 2.0))
    assert relative_error(attention(q, k, v, HEADS), expected(q, k, v)) <= TOLERANCE
    assert set(seen) == {(6 * 3 * CHANNELS, SIZE, 3 * CHANNELS, 1)}


def test_the_reference_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.view(2, -1, HEADS, SIZE).transpose(1, 2) for x in inputs())
    whole = textbook_attention(q, k, v)
    monkeypatch.setattr(attention_module, "_CHUNK_SCORES", 4 * HEADS * 5)  # 4 of 6 queries, then 2
    assert relative_error(textbook_attention(q, k, v), whole) <= TOLERANCE
    assert relative_error(whole, scaled_dot_product_attention(q, k, v)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keys", [77, 1024])
def test_honest_rounding_stays_far_below_the_bound(dtype: torch.dtype, keys: int) -> None:
    q, k, v = (random(1, tokens, 8 * 40, seed=tokens).to(dtype) for tokens in (256, keys, keys))
    q, k, v = (x.view(1, -1, 8, 40).transpose(1, 2) for x in (q, k, v))
    error = relative_error(scaled_dot_product_attention(q, k, v).float(), textbook_attention(q, k, v))
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)
    assert 5 * error <= attention_module._ROUNDINGS * rounding


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass
class Gpu:
    """A GPU's clock in milliseconds: a call takes one, but four in every other burst."""

    now: float = 100.0
    bursts: int = 0

    def work(self) -> None:
        self.now += 4.0 if self.bursts % 2 else 1.0

    def sleep(self, cycles: int) -> None:
        self.bursts += 1
        self.now += 50.0

    def event(self, enable_timing: bool) -> "Event":
        return Event(self)


@dataclass
class Event:
    gpu: Gpu
    at: float = 0.0

    def record(self) -> None:
        self.at = self.gpu.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_a_call_is_timed_by_the_median_of_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    for name, play in {"Event": gpu.event, "_sleep": gpu.sleep, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, play, raising=False)
    assert device_seconds(gpu.work) == pytest.approx(0.004)  # three of the five bursts are slow
    assert gpu.bursts == 5


@pytest.mark.gpu
@pytest.mark.usefixtures("compilers_caches")
@on_cuda
@pytest.mark.parametrize(("tokens", "keys", "size"), [(4096, 4096, 40), (1024, 77, 80), (64, 64, 160)])
def test_a_gpu_finds_a_kernel_for_each_shape_and_it_computes_attention(tokens: int, keys: int, size: int) -> None:
    attention = Attention(kernels(torch.device("cuda:0")))
    q, k, v = (random(2, n, 8 * size, seed=n).half().cuda() for n in (tokens, keys, keys))
    output = attention(q, k, v, 8)
    ((_, name),) = attention.choices()
    assert name in BY_NAME
    reference = textbook_attention(*(x.view(2, -1, 8, size).transpose(1, 2) for x in (q, k, v)))
    assert relative_error(output.float(), reference.transpose(1, 2).flatten(2)) <= 5e-3


@pytest.mark.gpu
@on_cuda
def test_a_call_takes_a_gpu_some_time() -> None:
    x = torch.randn(2048, 2048, device="cuda")
    assert 1e-6 < device_seconds(lambda: x @ x) < 0.1
