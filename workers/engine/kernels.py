"""The attention kernels there are: torch's own and that of xformers, and which of them a device has.

The kernels of torch are called by their own operators, and not through `scaled_dot_product_attention` under
`sdpa_kernel`, which sets flags of the whole process: an operator in a captured or compiled step is the one that was
chosen, whatever the flags are when it runs.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine import apart
from workers.engine.config import AttentionKernel
from workers.engine.takeover import check

_log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_REASON_CHARS = 200
_HEAD_SIZES = (40, 64, 80, 160)  # of Stable Diffusion's levels, and of its text encoder


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


def kernels(
    device: torch.device,
    wanted: AttentionKernel = "auto",
    note: Callable[[str, object], None] = lambda reason, detail: None,
    without: Collection[str] = (),
) -> tuple[Kernel, ...]:
    """The kernels to choose from on a device; those that it lacks are logged, and `note` is told of those that fail.

    `wanted` leaves that one alone, `without` leaves some out. Where there is nothing to choose from it is `PLAIN`,
    torch's own choice: on a CPU, and where the wanted one is missing.
    """
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
            return apart.flaw_of(name, device) if _is_installed(name) else "it is not installed"
        case _:
            return ""


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it is imported, and does not say from where
        return True


def flaws(device: torch.device) -> dict[str, str]:
    """Of each kernel why it cannot be used on a device, empty if it can: each is tried. A CPU has torch's own."""
    if device.type != "cuda":
        return {PLAIN.name: ""}
    return {each.name: _missing(each.name, device) or flaw(each.name, device) for each in _CANDIDATES}


def flaw(name: str, device: torch.device) -> str:
    """Why a kernel does not run on a device, where it may do so in this process; empty if it runs, and is right."""
    kernel = next(each for each in _CANDIDATES if each.name == name)
    try:
        for size in _HEAD_SIZES:
            generator = torch.Generator(device).manual_seed(size)
            sample = torch.empty(2, 8, 64, size, dtype=torch.float16, device=device).normal_(generator=generator)
            check(kernel.run(sample, sample, sample), PLAIN.run(sample, sample, sample), torch.float16)
    except Exception as error:  # noqa: BLE001 - they fail in as many ways as there are versions of them
        return summary(error)
    return ""


def listed(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, for the log."""
    return ", ".join(f"{name} ({why})" for name, why in reasons.items())


def summary(error: Exception) -> str:
    """The first line of an error, cut: some explain themselves at length."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:_REASON_CHARS]
