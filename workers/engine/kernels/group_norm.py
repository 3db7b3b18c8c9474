"""Group norm with what stands before and after it, a sum and SiLU, in one or two kernels of a GPU.

A ResNet normalises sums: a convolution's output, its bias, and the time projection or the skip connection. torch has a
kernel for each addition, and its group norm copies to the contiguous layout, computes in three kernels, and the next
convolution copies back. torch's compiler fuses the additions, but reduces in up to three kernels of its own.

Here features are [rows, positions, channels], which is the channels-last layout of feature maps, and tokens. Where a
group of one row fits into a processor's registers (with SD 1.5 at 512 x 512 up to 32 x 32 positions of 30 channels),
one program adds, computes the statistics and normalises: one kernel, which reads its input once. Where it does not, a
first kernel adds and writes the statistics of up to 64 parts of a row, and a second one combines these and normalises.
More parts would take longer to combine than a tile takes to read: the VAE ends with 4,096 tiles of 64 positions.

The operators are `torch.library`'s, so torch's compiler compiles the kernels with its own and plans their memory. On a
CPU they run `reference`, which tests use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from workers.engine.compiling import check

_KEPT = 32_768  # elements that a program keeps in registers: 64 a thread, of 512
_WIDE = 64  # with more channels half as many, or it needs further registers for its vectors of 8 channels
_TILE = 8_192  # elements of a tile, where there are two kernels: 32 a thread, of 256
_LANES = 128  # channels of such a tile, at most
_PARTS = 64  # of a row's positions, at most; each is a program's, and one tile or more
_PROGRAMS = 128  # of a row where parts are several tiles, at least: nearly one for each multiprocessor of a large GPU

_operator = torch.library.custom_op
if find_spec("triton") is not None or TYPE_CHECKING:
    from torch.library import wrap_triton

    from workers.engine.kernels.group_norm_triton import normalise, one_pass, statistics

    _operator = torch.library.triton_op  # type: ignore[assignment] # it warns where there is no Triton


@_operator("contour::group_norm", mutates_args=())
def group_norm(
    x: Tensor, terms: Sequence[Tensor | None], weight: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Group norm of a sum, scaled by `weight` and shifted by `offset` [channels]; with `silu`, SiLU of that.

    The sum: `x` [rows, positions, channels] and three terms, each of which may be None. A bias [channels], a shift
    [rows, channels], and a tensor [rows / n, positions, channels], each row of which is added to n rows.
    """
    return _launch(x, terms, Norm(weight, offset, groups, eps, silu), None)


@_operator("contour::add_group_norm", mutates_args=())
def add_group_norm(
    x: Tensor, terms: Sequence[Tensor | None], weight: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """The sum, and what `group_norm` returns."""
    total = _made_like(x)
    return total, _launch(x, terms, Norm(weight, offset, groups, eps, silu), total)


@group_norm.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _made_like(x)


@add_group_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _made_like(x), _made_like(x)


@group_norm.register_kernel("cpu")
def _(x: Tensor, terms: Sequence[Tensor | None], *norm: Any) -> Tensor:
    return reference(x, terms, Norm(*norm))[1]


@add_group_norm.register_kernel("cpu")
def _(x: Tensor, terms: Sequence[Tensor | None], *norm: Any) -> tuple[Tensor, Tensor]:
    return reference(x, terms, Norm(*norm))


class Norm(NamedTuple):
    """The operators' last arguments."""

    weight: Tensor
    offset: Tensor
    groups: int
    eps: float
    silu: bool


def reference(x: Tensor, terms: Sequence[Tensor | None], norm: Norm) -> tuple[Tensor, Tensor]:
    """The sum and the result by torch, computed in float32, or in float64 if `x` is."""
    bias, shift, other = terms
    total = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)  # no operator may return what it was given
    if bias is not None:
        total = total + bias
    if shift is not None:
        total = total + shift[:, None]
    if other is not None:
        total = total + other.repeat_interleave(x.shape[0] // other.shape[0], 0)
    scale = norm.weight.to(total.dtype), norm.offset.to(total.dtype)
    result = functional.group_norm(total.mT, norm.groups, *scale, norm.eps).mT
    return total.to(x.dtype).contiguous(), (functional.silu(result) if norm.silu else result).to(x.dtype).contiguous()


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a group norm is split.

    `kernels`: 1 or 2. `groups`, `positions`, `lanes`: of a tile. `part`: tiles of a part. `warps`: of 32 threads, of a
    program.
    """

    kernels: int
    groups: int
    positions: int
    lanes: int
    part: int
    warps: int


def tiles(positions: int, channels: int, groups: int) -> Tiles:
    """The split for rows of this shape."""
    width = channels // groups
    whole = _power_of_two(positions), _power_of_two(width)
    kept = whole[0] * whole[1]
    if kept <= (_KEPT if whole[1] <= _WIDE else _KEPT // 2):
        return Tiles(1, 1, *whole, 1, min(max(kept // 1024, 4), 16))
    together = groups & -groups  # so many that tiles end with a group
    while together > 1 and not _fits(positions, groups // together, _power_of_two(together * width)):
        together //= 2
    lanes = _power_of_two(together * width)
    height = max(_TILE // lanes, 1)
    part = -(-positions // (height * _PARTS))
    return Tiles(2, together, height, lanes, part, 8 if part == 1 else 16)  # a loop needs registers, too


def _fits(positions: int, beside: int, lanes: int) -> bool:
    """Whether tiles of so many lanes, of which so many lie beside each other, are neither too wide nor too few."""
    return lanes <= _LANES and (positions * lanes <= _PARTS * _TILE or beside * _PARTS >= _PROGRAMS)


def _made_like(x: Tensor) -> Tensor:
    """What the kernels write to: contiguous, whatever `x` is."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _power_of_two(number: int) -> int:
    """The lowest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def _launch(x: Tensor, terms: Sequence[Tensor | None], norm: Norm, total: Tensor | None) -> Tensor:
    """Launch the kernels; `total` receives the sum."""
    x = x.contiguous()
    rows, positions, channels = x.shape
    bias, shift, other = terms
    split, out = tiles(positions, channels, norm.groups), torch.empty_like(x)
    if shift is not None and shift.stride(1) != 1:  # the rows of a slice may lie apart, but not its channels
        shift = shift.contiguous()
    common = {
        "x": x,
        # A kernel does not touch what it has not: any tensor will do.
        "bias": norm.weight if bias is None else bias,
        "shift": norm.weight if shift is None else shift,
        "other": norm.weight if other is None else other.contiguous(),
        "positions": positions,
        "channels": channels,
        "shift_stride": 0 if shift is None else shift.stride(0),
        "copies": 1 if other is None else rows // other.shape[0],
        "HAS_BIAS": bias is not None,
        "HAS_SHIFT": shift is not None,
        "HAS_OTHER": other is not None,
        "GROUP": channels // norm.groups,
        "BLOCK_P": split.positions,
        "BLOCK_C": split.lanes,
        "num_warps": split.warps,
    }
    keep = {"total": norm.weight if total is None else total, "KEEP": total is not None}
    scale = {"weight": norm.weight, "offset": norm.offset, "EPS": norm.eps, "SILU": norm.silu, "out": out}
    if split.kernels == 1:
        wrap_triton(one_pass)[norm.groups, rows](**common, **keep, **scale)
        return out
    beside, length = norm.groups // split.groups, split.part * split.positions
    parts = -(-positions // length)
    means, squares = (torch.empty(rows, parts, norm.groups, dtype=torch.float32, device=x.device) for _ in range(2))
    found = {"means": means, "squares": squares, "length": length, "GROUPS": split.groups}
    wrap_triton(statistics)[parts, beside, rows](**common, **found, **keep)
    if total is not None:
        common |= {"x": total, "HAS_BIAS": False, "HAS_SHIFT": False, "HAS_OTHER": False}
    grid = -(-positions // split.positions), beside, rows
    wrap_triton(normalise)[grid](**common, **found, **scale, parts=parts, PARTS=_PARTS)
    return out


def flaw(device: torch.device) -> str:
    """Try the kernels in this process, and return why they cannot be used; empty if they are right."""
    try:
        for positions, channels in ((64, 1280), (1024, 640), (4096, 320), (32_768, 128)):  # of one kernel, and of two
            draw = Generator(device).manual_seed(channels)
            shapes = (2, positions, channels), (channels,), (2, channels), (1, positions, channels), (channels,)
            x, bias, shift, other, scale = (torch.randn(s, generator=draw, device=device).half() for s in shapes)
            norm = Norm(scale, bias, 32, 1e-5, silu=True)
            actual = add_group_norm(x, [bias, shift, other], *norm)
            for one, expected in zip(actual, reference(x, [bias, shift, other], norm), strict=True):
                check(one, expected, x.dtype)
    except Exception as error:  # noqa: BLE001 - compilers, drivers and launchers fail each in their own way
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""
