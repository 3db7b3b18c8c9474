"""The attention kernels there are: torch's own and that of xformers, and which of them a device has.

The kernels of torch are called by their own operators, and not through `scaled_dot_product_attention` under
`sdpa_kernel`, which sets flags of the whole process: an operator in a captured or compiled step is the one that was
chosen, whatever the flags are when it runs.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.config import AttentionKernel

_log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to compute attention: `run` takes [rows, heads, tokens, head size] thrice and returns as much as queries.

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
    """xformers' attention of [rows, tokens, heads, head size]; an operator, so that compilers need not look inside.

    Raises whatever xformers raises; ImportError where it is missing.
    """
    from xformers.ops import memory_efficient_attention_forward

    output: Tensor = memory_efficient_attention_forward(queries, keys, values)
    return output.contiguous()  # as is declared below; nearly always it is already


@xformers_attention.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return queries.new_empty(queries.shape)


def _xformers(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    output: Tensor = xformers_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return output.transpose(1, 2)


_NO_BIAS = (None, False)  # nor the logarithms that a backward pass would need
PLAIN = Kernel("sdpa", scaled_dot_product_attention)
_XFORMERS = Kernel("xformers", _xformers)
_CANDIDATES = (
    Kernel("flash", _operator("_scaled_dot_product_flash_attention")),
    Kernel("cudnn", _operator("_scaled_dot_product_cudnn_attention", *_NO_BIAS)),
    Kernel("efficient", _operator("_scaled_dot_product_efficient_attention", *_NO_BIAS)),
    _XFORMERS,
    Kernel("math", _operator("_scaled_dot_product_attention_math"), keeps_scores=True),
)


def kernels(device: torch.device, wanted: AttentionKernel = "auto") -> tuple[Kernel, ...]:
    """The kernels to choose from on a device; those that it lacks are logged.

    `wanted` leaves that one alone. Where there is nothing to choose from it is `PLAIN`, torch's own choice: on a CPU,
    and where the wanted one is missing.
    """
    candidates = [each for each in _CANDIDATES if wanted in ("auto", each.name)]
    missing = {each.name: why for each in candidates if (why := _missing(each.name, device))}
    found = tuple(each for each in candidates if each.name not in missing)
    if wanted != "auto" and missing:
        _log.warning("engine.speed.attention: %s cannot be used: %s; torch chooses instead", wanted, missing[wanted])
    elif missing and found:
        _log.info("attention: not to be had here: %s", listed(missing))
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
            return _flaw(_XFORMERS, device)
        case _:
            return ""


def flaws(device: torch.device) -> dict[str, str]:
    """Of each kernel why it cannot be used on a device, empty if it can: each is tried. A CPU has torch's own."""
    if device.type != "cuda":
        return {PLAIN.name: ""}
    return {each.name: _missing(each.name, device) or _flaw(each, device) for each in _CANDIDATES}


def _flaw(kernel: Kernel, device: torch.device) -> str:
    """Why a kernel does not run on a device. Beside a torch that it was not built for, xformers may import and fail."""
    try:
        sample = torch.zeros(1, 1, 8, 64, dtype=torch.float16, device=device)
        kernel.run(sample, sample, sample).sum().item()
    except Exception as error:  # noqa: BLE001 - they fail in as many ways as there are versions of them
        return summary(error)
    return ""


def listed(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, for the log."""
    return ", ".join(f"{name} ({why})" for name, why in reasons.items())


def summary(error: Exception) -> str:
    """The first line of an error, cut: some explain themselves at length."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:_REASON_CHARS]
