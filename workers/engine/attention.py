"""Attention by the kernel that is fastest here: measured for each shape when it is first met.

Which one that is depends on the device, the number of tokens, the head size and the batch; no rule of thumb holds.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

log = logging.getLogger(__name__)

Name: TypeAlias = Literal["sdpa", "flash", "cudnn", "efficient", "xformers"]
Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # of [rows, heads, tokens, head size] each
Shape: TypeAlias = tuple[int, int, int, int, int]  # rows, heads, queries, keys, head size
Timer: TypeAlias = Callable[[Callable[[], object]], float]  # seconds that a work takes

PLAIN: Name = "sdpa"  # torch's own choice
_BACKENDS: Mapping[Name, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_TOLERANCE = 2e-2  # relative, against float32; half precision comes to 1e-3, bfloat16 to 5e-3
_BURSTS, _CALLS_PER_BURST, _WARM_UPS = 5, 10, 3


class Attention:
    """Scaled dot-product attention; implements `networks.Attend`.

    With a single kernel there is nothing to measure. While a graph is recorded or networks are compiled nothing is
    measured either: shapes that are unknown by then take torch's own choice.
    """

    def __init__(self, kernels: Mapping[Name, Kernel], timer: Timer) -> None:
        self._kernels = {PLAIN: scaled_dot_product_attention, **kernels}
        self._candidates = tuple(kernels)
        self._timer = timer
        self._chosen: dict[Shape, Name] = {}

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """Attention of [rows, tokens, channels] over a number of heads: [rows, tokens, channels]."""
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        shape = (q.shape[0], heads, q.shape[2], k.shape[2], q.shape[3])
        if self._candidates and shape not in self._chosen and _may_measure(q):
            self._chosen[shape] = self._fastest(shape, q, k, v)
        kernel = self._kernels[self._chosen.get(shape, PLAIN)]
        return kernel(q, k, v).transpose(1, 2).flatten(2)

    def choices(self) -> tuple[tuple[str, str], ...]:
        """(shape, kernel) of all that was measured, in the words of `contract.Condition`."""
        return tuple((_words(shape), name) for shape, name in self._chosen.items())

    def _fastest(self, shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Name:
        # Of random numbers: what comes by in a rehearsal may be all zeros, for which any kernel is right.
        q, k, v = (torch.randn_like(x) for x in (q, k, v))
        times = {name: self._time(name, q, k, v) for name in self._candidates}
        usable = {name: seconds for name, seconds in times.items() if seconds is not None}
        fastest = min(usable, key=lambda name: usable[name], default=PLAIN)
        told = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in sorted(usable.items(), key=_by_time))
        log.info("attention %s: %s (%s)", _words(shape), fastest, told or "no other kernel can do it")
        return fastest

    def _time(self, name: Name, q: Tensor, k: Tensor, v: Tensor) -> float | None:
        """Seconds, or None for a kernel that cannot do it, or does it wrong."""
        kernel = self._kernels[name]
        try:
            error = _error(kernel(q, k, v), q, k, v)
            if not error <= _TOLERANCE:
                log.warning("attention by %s is wrong by %.1e and is not used", name, error)
                return None
            return self._timer(partial(kernel, q, k, v))
        except (RuntimeError, NotImplementedError, ValueError) as refusal:
            log.debug("attention by %s: %s", name, refusal)
            return None


def attention_for(device: torch.device, wanted: Name | Literal["auto"]) -> Attention:
    """Attention by the kernels there are on a device; by one of them, if that is wanted."""
    if device.type != "cuda":
        return Attention({}, cuda_seconds)
    kernels: dict[Name, Kernel] = {name: partial(_by_backend, backend) for name, backend in _BACKENDS.items()}
    if (wanted in ("auto", "xformers")) and (by_xformers := load_xformers()) is not None:
        kernels["xformers"] = by_xformers
    if wanted != "auto":
        kernels = {name: kernel for name, kernel in kernels.items() if name == wanted}
    return Attention(kernels, cuda_seconds)


def load_xformers() -> Kernel | None:
    """xformers' kernel, or None where it is not installed, or does not load beside this torch: the log says which."""
    try:
        from xformers.ops import memory_efficient_attention
    except Exception as error:  # noqa: BLE001 - its compiled part fails in many ways beside another torch
        log.info("attention: xformers is not used: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        return None
    return opaque(memory_efficient_attention)


def opaque(function: Callable[..., Any]) -> Kernel:
    """A kernel of [rows, tokens, heads, head size], such as xformers', that compilers do not look into."""

    @torch.library.custom_op("contour::attention", mutates_args=())
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made: Tensor = function(*(x.transpose(1, 2) for x in (q, k, v))).contiguous()
        return made

    @attend.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)

    return lambda q, k, v: attend(q, k, v).transpose(1, 2)


def cuda_seconds(work: Callable[[], object]) -> float:
    """Seconds that a work takes on the current CUDA stream: the median of several bursts."""
    for _ in range(_WARM_UPS):
        work()
    return median(_burst(work) for _ in range(_BURSTS)) / _CALLS_PER_BURST


def _burst(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_CALLS_PER_BURST):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000  # from milliseconds


def _by_backend(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def _error(made: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative, of the first row's first head: the whole would take gigabytes in float32."""
    q, k, v, actual = (x[0, 0].float() for x in (q, k, v, made))
    expected = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
    return float((actual - expected).norm() / expected.norm())


def _may_measure(x: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _words(shape: Shape) -> str:
    rows, heads, queries, keys, size = shape
    return f"{rows}x{heads} {queries}x{keys}x{size}"


def _by_time(item: tuple[Name, float]) -> float:
    return item[1]
