"""The Triton kernels of `group_norm.py`, which says what they compute. Importing this needs Triton.

Layout: `x` is [rows, positions, channels], contiguous, so a position's channels lie side by side, and a group is a
strip of GROUP of them. A tile is BLOCK_P positions of BLOCK_C channels, read in the order of memory. Triton's blocks
are powers of two and a group's channels are not (10 of SD 1.5's 320), so tiles are masked. A tile of several groups
reads longer runs of memory: one group's 20 bytes would be a part of a 32-byte sector.

There are no atomics, and each sum is taken in a fixed order: the same input is the same output, bit by bit. All
arithmetic is in float32, and the variance is the mean square distance from the mean, never a difference of two sums.
`EPS` is a constant because Inductor passes numbers as float64, in which all that follows would be computed.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803, PLR0913, PLR0917 - the signatures of kernels: pointers, sizes, then constants

import triton
import triton.language as tl


@triton.jit
def _tile(
    x, bias, shift, other, row, place, channel, valid, positions, channels, shift_stride, copies,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_OTHER: tl.constexpr,
):  # fmt: skip
    """A tile of the sum, 0 where not `valid`. `place` [BLOCK_P, BLOCK_C] is within a row; `channel` [1, BLOCK_C]."""
    value = tl.load(x + row * positions * channels + place, mask=valid, other=0.0).to(tl.float32)
    inside = channel < channels
    if HAS_BIAS:
        value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        value += tl.load(shift + row * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS or HAS_SHIFT:
        value = tl.where(valid, value, 0.0)
    if HAS_OTHER:
        value += tl.load(other + (row // copies) * positions * channels + place, mask=valid, other=0.0).to(tl.float32)
    return value


@triton.jit
def _scaled(value, mean, variance, weight, offset, channel, inside, EPS: tl.constexpr, SILU: tl.constexpr):
    """A tile normalised, scaled and shifted, and its SiLU if wanted."""
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    result = (value - mean) * tl.rsqrt(variance + EPS) * scale
    result += tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        result *= tl.sigmoid(result)
    return result


@triton.jit
def one_pass(
    x, bias, shift, other, weight, offset, total, out, positions, channels, shift_stride, copies,
    GROUP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_OTHER: tl.constexpr,
    EPS: tl.constexpr, SILU: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """A program takes one group of one row, all positions, and keeps it in registers. Grid: groups, rows."""
    row = tl.program_id(1).to(tl.int64)
    position, lane = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)[None, :]
    channel = tl.program_id(0) * GROUP + lane
    inside = lane < GROUP
    valid = (position < positions) & inside
    place = position * channels + channel
    value = _tile(
        x, bias, shift, other, row, place, channel, valid, positions, channels, shift_stride, copies,
        HAS_BIAS, HAS_SHIFT, HAS_OTHER,
    )  # fmt: skip
    begin = row * positions * channels
    if KEEP:
        tl.store(total + begin + place, value.to(total.dtype.element_ty), mask=valid)
    count = positions * GROUP
    mean = tl.sum(value) / count
    distance = tl.where(valid, value - mean, 0.0)
    variance = tl.sum(distance * distance) / count
    result = _scaled(value, mean, variance, weight, offset, channel, inside, EPS, SILU)
    tl.store(out + begin + place, result.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _by_group(by_channel, member):
    """[groups] sums of what is given by channel [BLOCK_C]."""
    return tl.sum(tl.where(member, by_channel[None, :], 0.0), axis=1)


@triton.jit
def _by_channel(by_group, member):
    """[1, BLOCK_C]: each channel has what its group has."""
    return tl.sum(tl.where(member, by_group[:, None], 0.0), axis=0)[None, :]


@triton.jit
def statistics(
    x, bias, shift, other, total, means, squares, positions, channels, shift_stride, copies, length,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_OTHER: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """A program takes `length` positions of GROUPS groups, a tile at a time. Grid: parts, blocks of groups, rows.

    For each group it writes the mean of its part and the sum of squared distances from that: [rows, parts, groups].
    """
    part, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lane, group = tl.arange(0, BLOCK_C), tl.arange(0, GROUPS)
    channel = (tl.program_id(1) * GROUPS * GROUP + lane)[None, :]
    inside, member = (lane < GROUPS * GROUP)[None, :], (lane // GROUP)[None, :] == group[:, None]
    begin = part * length
    end = tl.minimum(begin + length, positions)
    mean, square = tl.zeros([GROUPS], tl.float32), tl.zeros([GROUPS], tl.float32)
    for first in range(begin, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)[:, None]
        valid = (position < positions) & inside
        place = position * channels + channel
        value = _tile(
            x, bias, shift, other, row, place, channel, valid, positions, channels, shift_stride, copies,
            HAS_BIAS, HAS_SHIFT, HAS_OTHER,
        )  # fmt: skip
        if KEEP:
            tl.store(total + row * positions * channels + place, value.to(total.dtype.element_ty), mask=valid)
        before, new = (first - begin) * GROUP, tl.minimum(BLOCK_P, end - first) * GROUP
        tile_mean = _by_group(tl.sum(value, axis=0), member) / new
        distance = tl.where(valid, value - _by_channel(tile_mean, member), 0.0)
        # Two sums of squares, each around its own mean: Chan, Golub and LeVeque, 1979.
        change, share = tile_mean - mean, new / (before + new)
        mean += change * share
        square += _by_group(tl.sum(distance * distance, axis=0), member) + change * change * before * share
    target = (row * tl.num_programs(0) + part) * tl.num_programs(1) * GROUPS + tl.program_id(1) * GROUPS + group
    tl.store(means + target, mean)
    tl.store(squares + target, square)


@triton.jit
def normalise(
    x, bias, shift, other, weight, offset, means, squares, out, positions, channels, shift_stride, copies,
    length, parts, PARTS: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_OTHER: tl.constexpr,
    EPS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """A program takes a tile, and puts its groups' statistics together. Grid: tiles, blocks of groups, rows."""
    row, group = tl.program_id(2).to(tl.int64), tl.arange(0, GROUPS)
    part = tl.arange(0, PARTS)[:, None]
    there = (part < parts) & (group >= 0)[None, :]
    count = tl.where(there, tl.minimum(length, positions - part * length) * GROUP, 0)
    source = (row * parts + part) * tl.num_programs(1) * GROUPS + tl.program_id(1) * GROUPS + group[None, :]
    part_mean = tl.load(means + source, mask=there, other=0.0)
    mean = tl.sum(part_mean * count, axis=0) / (positions * GROUP)
    distance = part_mean - mean[None, :]
    square = tl.load(squares + source, mask=there, other=0.0)
    variance = tl.sum(square + count * distance * distance, axis=0) / (positions * GROUP)

    position, lane = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)
    channel = (tl.program_id(1) * GROUPS * GROUP + lane)[None, :]
    inside = (lane < GROUPS * GROUP)[None, :]
    valid = (position < positions) & inside
    place = position * channels + channel
    value = _tile(
        x, bias, shift, other, row, place, channel, valid, positions, channels, shift_stride, copies,
        HAS_BIAS, HAS_SHIFT, HAS_OTHER,
    )  # fmt: skip
    member = (lane // GROUP)[None, :] == group[:, None]
    by_channel = _by_channel(mean, member), _by_channel(variance, member)
    result = _scaled(value, by_channel[0], by_channel[1], weight, offset, channel, inside, EPS, SILU)
    tl.store(out + row * positions * channels + place, result.to(out.dtype.element_ty), mask=valid)
