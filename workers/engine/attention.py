"""Scaled dot-product attention by the kernel that proved fastest on this device, shape by shape.

Which kernel is fastest depends on the device, the number of tokens, the head size, the batch, and the versions of
torch, cuDNN and xformers. So each shape is measured when it first occurs, unless a graph is being captured or traced:
warm up with every shape. `choices.py` keeps the result for other processes. The choice may differ between batch sizes,
so an image depends on the size of its batch, in the last bits of its arithmetic.

torch's kernels are called by their own operators, not through `scaled_dot_product_attention` under `sdpa_kernel`, which
sets flags of the whole process: a captured or compiled step keeps its operator, whatever the flags are when it runs.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine import kernel_probe
from workers.engine.choices import Choices
from workers.engine.compiling import check
from workers.engine.config import AttentionKernel
from workers.engine.graphs import Fallbacks
from workers.engine.trials import Trials
from workers.engine.trials import attention as trial_of

_log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Timer: TypeAlias = Callable[[Callable[[], object]], float]
Note: TypeAlias = Callable[[str, object], None]  # `Fallbacks.note`
Shape: TypeAlias = tuple[int, int, int, int, int]  # rows, heads, queries, keys, head size

_REASON_CHARS = 200
_HEAD_SIZES = (40, 64, 80, 160)  # of Stable Diffusion's levels, and of its text encoder
_ROUNDINGS = 5  # allowed as relative error; right kernels stay below one, wrong ones are off by hundreds
_SCORES_BYTES = 2**30  # the most that a kernel may write that keeps all scores; with more it is far slower anyway
_CHUNK_SCORES = 2**25  # that the reference holds at a time: 128 MB

_TIE = 1.03  # times as long counts as equal, and the first wins, so that workers and restarts agree
_WARM_UP_CALLS = 2
_BURSTS, _CALLS = 5, 8
_HEAD_START_CYCLES = 2_000_000  # a millisecond, in which the host launches a burst, so that launches are not timed


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to compute attention: `run` takes queries, keys and values [rows, heads, tokens, head size].

    `keeps_scores`: it writes rows x heads x queries x keys scores to memory.
    """

    name: str
    run: Run
    keeps_scores: bool = False


def _operator(name: str, *options: object) -> Run:
    operator = getattr(torch.ops.aten, name)

    def run(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output: Tensor = operator(queries, keys, values, *options)[0]
        return output

    return run


@torch.library.custom_op("contour::xformers_attention", mutates_args=())
def xformers_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """xformers' attention of [rows, tokens, heads, head size]; an operator, opaque to compilers.

    Raises whatever xformers raises; ImportError where it is missing.
    """
    from xformers.ops import memory_efficient_attention_forward

    output: Tensor = memory_efficient_attention_forward(queries, keys, values)
    return output.contiguous()  # as declared below; nearly always a no-op


@xformers_attention.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return queries.new_empty(queries.shape)


def _xformers(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    output: Tensor = xformers_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return output.transpose(1, 2)


_NO_BIAS = (None, False)  # and no logarithms for a backward pass
PLAIN = Kernel("sdpa", scaled_dot_product_attention)
_XFORMERS = Kernel("xformers", _xformers)
_CANDIDATES = (
    Kernel("flash", _operator("_scaled_dot_product_flash_attention")),
    Kernel("cudnn", _operator("_scaled_dot_product_cudnn_attention", *_NO_BIAS)),
    Kernel("efficient", _operator("_scaled_dot_product_efficient_attention", *_NO_BIAS)),
    _XFORMERS,
    Kernel("math", _operator("_scaled_dot_product_attention_math"), keeps_scores=True),
)
# What lets torch choose a kernel. "math" is not among them: it is what torch takes where it may take nothing else.
_CHOSEN_BY_TORCH: dict[str, Callable[[bool], None]] = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
}


def kernels(
    device: torch.device,
    wanted: AttentionKernel = "auto",
    note: Note = lambda reason, detail: None,
    without: Collection[str] = (),
) -> tuple[Kernel, ...]:
    """The kernels to choose from on a device. Missing ones are logged, and `note` is called for those that fail.

    `wanted` selects a single one, `without` excludes some, from torch's own choice too. If none remains, as on a CPU,
    torch chooses (`PLAIN`).
    """
    for name in _CHOSEN_BY_TORCH.keys() & set(without):  # the text encoder and the VAE always leave it to torch
        _CHOSEN_BY_TORCH[name](False)
    candidates = [each for each in _CANDIDATES if wanted in ("auto", each.name) and each.name not in without]
    missing = {each.name: why for each in candidates if (why := _missing(each.name, device))}
    failed = {_XFORMERS.name} & missing.keys() if device.type == "cuda" and _is_installed(_XFORMERS.name) else set()
    for name in failed:
        note(f"attention: {name} fails", missing[name])
    found = tuple(each for each in candidates if each.name not in missing)
    if wanted != "auto" and missing:
        _log.warning("engine.speed.attention: %s cannot be used: %s; torch chooses instead", wanted, missing[wanted])
    elif found and missing.keys() - failed:
        _log.info("Attention kernels not available here: %s", listed({k: missing[k] for k in missing.keys() - failed}))
    return found or (PLAIN,)


def _missing(name: str, device: torch.device) -> str:
    """Why a kernel cannot be used on a device; empty if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this is {device}"
    match name:
        case "flash" if not torch.backends.cuda.is_flash_attention_available():
            return "torch was built without it"
        case "cudnn" if not torch.backends.cudnn.is_available():
            return "torch was built without it"
        case "xformers":
            return kernel_probe.flaw_of(name, device) if _is_installed(name) else "it is not installed"
        case _:
            return ""


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # imported without a spec, as by a test
        return True


def flaws(device: torch.device) -> dict[str, str]:
    """Try each kernel on a device, and return why it cannot be used; empty if it can. A CPU has torch's own."""
    if device.type != "cuda":
        return {PLAIN.name: ""}
    return {each.name: _missing(each.name, device) or flaw(each.name, device) for each in _CANDIDATES}


def flaw(name: str, device: torch.device) -> str:
    """Try a kernel in this process, and return why it cannot be used; empty if its result is right."""
    kernel = next(each for each in _CANDIDATES if each.name == name)
    try:
        for size in _HEAD_SIZES:
            generator = torch.Generator(device).manual_seed(size)
            sample = torch.empty(2, 8, 64, size, dtype=torch.float16, device=device).normal_(generator=generator)
            check(kernel.run(sample, sample, sample), PLAIN.run(sample, sample, sample), torch.float16)
    except Exception as error:  # noqa: BLE001 - each version fails in its own way
        return summary(error)
    return ""


def listed(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, for the log."""
    return ", ".join(f"{name} ({why})" for name, why in reasons.items())


def summary(error: Exception) -> str:
    """The first line of an error, cut to a bounded length."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:_REASON_CHARS]


class Attention:
    """Scaled dot-product attention by the kernel that was fastest for its shape.

    For one engine, with one dtype and one thread. `timer` returns the seconds that a call of its argument keeps the
    device busy. `note` is called where no kernel can be used. Where a choice was `kept`, that kernel alone is tried.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        timer: Timer | None = None,
        trials: Trials | None = None,
        note: Note | None = None,
        kept: Choices | None = None,
    ) -> None:
        self._kernels = tuple(kernels)
        self._note = note or Fallbacks().note
        self._timer = timer or device_seconds
        self._trials = trials or Trials()
        self._kept = kept or Choices()
        self._chosen: dict[Shape, Kernel] = {}

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """Attention of [rows, tokens, channels], over a number of heads: [rows, tokens, channels].

        Keys and values have their own number of tokens. Only channels must be contiguous, so all three may be slices of
        one packed tensor.
        """
        q, k, v = _split(queries, heads), _split(keys, heads), _split(values, heads)
        return self._kernel(q, k, v).run(q, k, v).transpose(1, 2).flatten(2)

    @property
    def chooses(self) -> bool:
        """Whether it measures kernels to choose among them."""
        return self._kernels != (PLAIN,)

    def choices(self) -> tuple[tuple[str, str], ...]:
        """(shape, kernel) of every shape so far, in order of appearance; as in `contract.EngineStatus`."""
        return tuple((_name(shape), kernel.name) for shape, kernel in self._chosen.items())

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor) -> Kernel:
        shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
        known = self._chosen.get(shape)
        if known is not None:
            return known
        if torch.compiler.is_compiling() or _capturing():
            return PLAIN  # not kept: a later call that may wait measures the shape
        chosen = self._choose(shape, (q, k, v))
        self._chosen = {**self._chosen, shape: chosen}  # a compiler may be reading the old one in its thread
        return chosen

    def _choose(self, shape: Shape, given: tuple[Tensor, Tensor, Tensor]) -> Kernel:
        if not self.chooses:
            return PLAIN
        kept = [kernel for kernel in self._kernels if kernel.name == self._kept.get(_name(shape))]
        seconds, out = self._try_all(shape, given, kept) if kept else ({}, {})
        if not seconds:
            seconds, out = self._try_all(shape, given, self._kernels)
        if given[0].is_cuda:
            torch.cuda.empty_cache()  # the slower kernels' workspaces are not needed again
        if not seconds:
            self._note("attention: no kernel", f"torch chooses for {_name(shape)}, as none can be used: {listed(out)}")
            return PLAIN
        best = min(seconds.values())
        chosen = next(kernel for kernel in self._kernels if seconds.get(kernel.name, math.inf) <= _TIE * best)
        self._kept.keep(_name(shape), chosen.name)
        _log.info("attention %s: %s", _name(shape), _ranking(chosen.name, seconds, out))
        return chosen

    @torch.no_grad()
    def _try_all(
        self, shape: Shape, given: tuple[Tensor, ...], kernels: Sequence[Kernel]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of each usable kernel, and why the others are not usable. Frees its memory."""
        seconds: dict[str, float] = {}
        out: dict[str, str] = {}
        try:
            inputs = [_random_like(tensor, seed) for seed, tensor in enumerate(given)]
            expected = textbook_attention(*inputs)
        except Exception as error:  # noqa: BLE001 - nearly always for lack of memory
            return seconds, {"measuring": summary(error)}
        for kernel in kernels:
            try:
                with self._trials.of(trial_of(kernel.name)):
                    seconds[kernel.name] = self._try(kernel, shape, inputs, expected)
            except Exception as error:  # noqa: BLE001 - kernels refuse shapes in many ways
                out[kernel.name] = summary(error)
                _log.debug("attention %s: without %s: %s", _name(shape), kernel.name, out[kernel.name])
        return seconds, out

    def _try(self, kernel: Kernel, shape: Shape, inputs: Sequence[Tensor], expected: Tensor) -> float:
        """Seconds of a call. Raises WrongResultError, MemoryError, and whatever the kernel raises."""
        rows, heads, queries, keys, _ = shape
        if kernel.keeps_scores and 4 * rows * heads * queries * keys > _SCORES_BYTES:
            raise MemoryError(f"its scores would take more than {_SCORES_BYTES >> 20} MiB")
        check(kernel.run(*inputs), expected, inputs[0].dtype, _ROUNDINGS)
        return self._timer(lambda: kernel.run(*inputs))


def _capturing() -> bool:
    # The second call raises where torch has no CUDA.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _split(x: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels] as [rows, heads, tokens, head size], without a copy."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers in a tensor's shape, dtype and strides, without the global generators."""
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


# ---------------------------------------------------------------------------------------------------------- stopwatch


def device_seconds(work: Callable[[], object]) -> float:
    """Seconds of a call on the current CUDA device: the median of some bursts of calls, with nothing else running."""
    for _ in range(_WARM_UP_CALLS):
        work()
    return median(_burst_seconds(work) for _ in range(_BURSTS))


def _burst_seconds(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START_CYCLES)  # noqa: SLF001 - used by torch's own benchmarks; there is no public one
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
