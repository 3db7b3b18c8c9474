"""Scaled dot-product attention by the kernel that proved fastest on this device, shape by shape.

Which kernel is the fastest depends on the device, the number of tokens, the head size and the batch, and on versions
of torch, cuDNN and xformers: so it is measured.

A shape is measured when it is first met, unless the work is being captured or traced: warm up with every shape. The
choice may differ between batch sizes, so a picture depends on its company, in the last bits of its arithmetic.
"""

import logging
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor

from workers.engine.kernels import PLAIN, Kernel, listed, summary
from workers.engine.takeover import WrongResultError
from workers.engine.trials import Trials
from workers.engine.trials import attention as trial_of

_log = logging.getLogger(__name__)

Timer: TypeAlias = Callable[[Callable[[], object]], float]
Shape: TypeAlias = tuple[int, int, int, int, int]  # rows, heads, queries, keys, head size

_ROUNDINGS = 5  # of relative error that are allowed; right kernels stay below one, wrong ones are off by hundreds
_SCORES_BYTES = 2**30  # that a kernel may write which keeps all scores; beyond, it is slower by far in any case
_CHUNK_SCORES = 2**25  # of which the reference keeps as many at a time: 128 MB

_TIE = 1.03  # times as long is as fast: the first of the equal is taken, so that workers and restarts agree
_WARM_UP_CALLS = 2
_BURSTS, _CALLS = 5, 8
_HEAD_START_CYCLES = 2_000_000  # a millisecond: the host launches a burst meanwhile, so that its own pace is not timed


class Attention:
    """Scaled dot-product attention by the fastest kernel that was measured for its shape.

    For one engine, which computes in one dtype and calls it from one thread. `timer` tells the seconds that a call of
    its argument keeps the device busy.
    """

    def __init__(self, kernels: Sequence[Kernel], timer: Timer | None = None, trials: Trials | None = None) -> None:
        self._kernels = tuple(kernels)
        self._timer = timer or device_seconds
        self._trials = trials or Trials()
        self._chosen: dict[Shape, Kernel] = {}

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """Attention of [rows, tokens, channels], over a number of heads: [rows, tokens, channels].

        Keys and values have their own number of tokens. Any strides will do as long as channels lie side by side, so
        that all three may be slices of one packed tensor.
        """
        q, k, v = _split(queries, heads), _split(keys, heads), _split(values, heads)
        return self._kernel(q, k, v).run(q, k, v).transpose(1, 2).flatten(2)

    def choices(self) -> tuple[tuple[str, str], ...]:
        """(shape, kernel) of every shape so far, in the order in which they came; as in `contract.Condition`."""
        return tuple((_name(shape), kernel.name) for shape, kernel in self._chosen.items())

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor) -> Kernel:
        shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
        known = self._chosen.get(shape)
        if known is not None:
            return known
        if torch.compiler.is_compiling() or _capturing():
            return PLAIN  # not kept: the shape is measured when it comes in a call that may wait
        self._chosen[shape] = self._choose(shape, (q, k, v))
        return self._chosen[shape]

    def _choose(self, shape: Shape, given: tuple[Tensor, Tensor, Tensor]) -> Kernel:
        if self._kernels == (PLAIN,):
            return PLAIN
        seconds, out = self._try_all(shape, given)
        if given[0].is_cuda:
            torch.cuda.empty_cache()  # what the slower ones needed will not be needed again
        if not seconds:
            _log.warning("attention %s: torch chooses, as no kernel can be used: %s", _name(shape), listed(out))
            return PLAIN
        best = min(seconds.values())
        chosen = next(kernel for kernel in self._kernels if seconds.get(kernel.name, math.inf) <= _TIE * best)
        _log.info("attention %s: %s", _name(shape), _ranking(chosen.name, seconds, out))
        return chosen

    @torch.no_grad()
    def _try_all(self, shape: Shape, given: tuple[Tensor, ...]) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of each kernel that can be used, and why the others cannot. Memory is free again afterwards."""
        seconds: dict[str, float] = {}
        out: dict[str, str] = {}
        try:
            inputs = [_random_like(tensor, seed) for seed, tensor in enumerate(given)]
            expected = textbook_attention(*inputs)
        except Exception as error:  # noqa: BLE001 - nearly always there is not enough memory for it
            return seconds, {"measuring": summary(error)}
        for kernel in self._kernels:
            try:
                with self._trials.of(trial_of(kernel.name)):
                    seconds[kernel.name] = self._try(kernel, shape, inputs, expected)
            except Exception as error:  # noqa: BLE001 - a kernel refuses a shape in its own way, and is left out
                out[kernel.name] = summary(error)
                _log.debug("attention %s: without %s: %s", _name(shape), kernel.name, out[kernel.name])
        return seconds, out

    def _try(self, kernel: Kernel, shape: Shape, inputs: Sequence[Tensor], expected: Tensor) -> float:
        """Seconds of a call. Raises WrongResultError, MemoryError, and whatever the kernel raises."""
        rows, heads, queries, keys, _ = shape
        if kernel.keeps_scores and 4 * rows * heads * queries * keys > _SCORES_BYTES:
            raise MemoryError(f"its scores would take more than {_SCORES_BYTES >> 20} MiB")
        _check(kernel.run(*inputs), expected)
        return self._timer(lambda: kernel.run(*inputs))


def _capturing() -> bool:
    # Without CUDA in torch the second question is an error.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _split(x: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels] as [rows, heads, tokens, head size], without a copy."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers of the shape, dtype and strides of a tensor, which leave the global generators alone."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).normal_(
        generator=generator
    )


def textbook_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k' / sqrt(head size)) v in float32, of [rows, heads, tokens, head size]; in chunks, to save memory."""
    heads, tokens, size = keys.shape[1:]
    chunk = max(_CHUNK_SCORES // (heads * tokens), 1)
    output = torch.empty(queries.shape, dtype=torch.float32, device=queries.device)
    for row, q_row in enumerate(queries):
        k, v = keys[row].float(), values[row].float()
        for q, target in zip(q_row.split(chunk, 1), output[row].split(chunk, 1), strict=True):
            target.copy_((q.float() @ k.mT / math.sqrt(size)).softmax(-1) @ v)
    return output


def _check(output: Tensor, expected: Tensor) -> None:
    error = float((output.float() - expected).norm() / expected.norm())
    # In float32 too a kernel may use TF32, whose mantissa is that of float16.
    allowed = _ROUNDINGS * max(torch.finfo(output.dtype).eps, torch.finfo(torch.float16).eps)
    if not error <= allowed:  # in this way round it catches NaN as well
        raise WrongResultError(f"its relative error is {error:.1e}, allowed is {allowed:.1e}")


# ---------------------------------------------------------------------------------------------------------- stopwatch


def device_seconds(work: Callable[[], object]) -> float:
    """Seconds of a call on the current CUDA device: the median of some bursts of calls, with nothing else running."""
    for _ in range(_WARM_UP_CALLS):
        work()
    return median(_burst_seconds(work) for _ in range(_BURSTS))


def _burst_seconds(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START_CYCLES)  # noqa: SLF001 - torch's own benchmarks use it; there is no public one
    begin.record()
    for _ in range(_CALLS):
        work()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1000 / _CALLS


# -------------------------------------------------------------------------------------------------------------- words


def _name(shape: Shape) -> str:
    rows, heads, queries, keys, size = shape
    return f"{rows}x{heads} {queries}x{keys}x{size}"


def _ranking(chosen: str, seconds: dict[str, float], out: dict[str, str]) -> str:
    """As in "flash 41 us (cudnn 48, efficient 63; not math)"."""
    others = sorted(seconds.keys() - {chosen}, key=seconds.__getitem__)
    beaten = ", ".join(f"{name} {1e6 * seconds[name]:.0f}" for name in others)
    without = f"not {', '.join(out)}" if out else ""
    rest = "; ".join(filter(None, (beaten, without)))
    return f"{chosen} {1e6 * seconds[chosen]:.0f} us" + (f" ({rest})" if rest else "")
