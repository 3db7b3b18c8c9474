"""Estimates how long a kernel runs, from its shapes alone, to see where the time of a step goes.

It assumes that
- matrix products and convolutions (as implicit matrix products) run in waves of tiles over all multiprocessors, each
  size of tile at its share of the card's measured rate; the best size is taken, and with `split_k` also the best split
  of the inner dimension, whose parts are added through the L2 cache; products in float8 run at twice the rate;
- attention by the flash kernel pads heads to 64, 96, 128, 192 or 256, and runs at one rate for what is padded;
- everything else moves each operand once: through the L2 cache if it is all less than 30 MB, else through memory; the
  engine's own kernels and fallbacks, too, whatever they compute;
- a kernel costs 1.5 to 3 us beside that, one of a graph included, and none runs beside another.

No kernel has been timed on such a card to fit it: only differences between two programs mean something.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from tests.gpu_codegen.gpus import Gpu
from tests.gpu_codegen.program import Kernel, Kind, Operand

# Rows, columns, and the share of the rate that a card with only such tiles reaches.
_TILES = ((128, 256, 0.92), (256, 128, 0.92), (128, 128, 0.82), (128, 64, 0.62), (64, 128, 0.62), (64, 64, 0.42))
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_LEAST_DEPTH = 256  # of a tile: shorter ones take as long
_HEADS = (64, 96, 128, 192, 256)
_QUERIES = 128  # of a block of attention, of which two fit a multiprocessor
_WAVES_AT_MOST = 2.5  # how much longer a part of a wave takes, at most
_IN_L2 = 30e6
_PRODUCT_S, _SPLIT_S, _ATTENTION_S, _OTHER_S, _LEAST_S = 2.5e-6, 1.5e-6, 3e-6, 1.5e-6, 2.3e-6


def seconds_by_kind(kernels: Iterable[Kernel], gpu: Gpu, *, split_k: bool = False) -> Counter[Kind]:
    """The estimated seconds of all kernels of each kind."""
    seconds: Counter[Kind] = Counter()
    for kernel in kernels:
        seconds[kernel.kind] += estimate(kernel, gpu, split_k=split_k)  # type: ignore[assignment]
    return seconds


def estimate(kernel: Kernel, gpu: Gpu, *, split_k: bool = False) -> float:
    """The estimated seconds of a kernel."""
    match kernel.kind:
        case "convolution":
            *_, weight, made = kernel.operands
            batch, channels, height, width = made.shape
            rows, depth = batch * height * width, math.prod(weight.shape[1:])
            return _product(rows, channels, depth, kernel.operands, gpu, split_k)
        case "matrix product" if kernel.name.endswith("_scaled_mm"):  # in float8; scales and bias are in between
            taken, *_, made = kernel.operands
            twice = replace(gpu, tensor_flops=2 * gpu.tensor_flops)
            return _product(made.shape[0], made.shape[1], taken.shape[1], kernel.operands, twice, split_k)
        case "matrix product":
            *_, taken, _, made = kernel.operands
            rows = math.prod(made.shape[:-1])
            return _product(rows, made.shape[-1], taken.shape[-1], kernel.operands, gpu, split_k)
        case "attention":
            return _attention(kernel.operands[0].shape, kernel.operands[1].shape[2], gpu)
        case _:
            return max(_LEAST_S, _moved(kernel.operands, gpu) + _OTHER_S)


def _product(rows: int, columns: int, depth: int, operands: tuple[Operand, ...], gpu: Gpu, split_k: bool) -> float:
    splits = [n for n in _SPLITS if n == 1 or (split_k and depth / n >= _LEAST_DEPTH)]
    best = min(_tiled(rows, columns, depth, tile, split, gpu) for tile in _TILES for split in splits)
    return max(best, _bytes(operands) / gpu.memory_bandwidth) + _PRODUCT_S


def _tiled(rows: int, columns: int, depth: int, tile: tuple[int, int, float], split: int, gpu: Gpu) -> float:
    height, width, share = tile
    tiles = math.ceil(rows / height) * math.ceil(columns / width) * split
    waves, each = math.ceil(tiles / gpu.multiprocessors), 2 * height * width * max(depth, _LEAST_DEPTH) / split
    seconds = waves * each * gpu.multiprocessors / (share * gpu.tensor_flops)
    sums = 4 * rows * columns * split * 2 / gpu.l2_bandwidth + _SPLIT_S
    return seconds + (sums if split > 1 else 0)


def _attention(queries: tuple[int, ...], keys: int, gpu: Gpu) -> float:
    rows, heads, tokens, size = queries
    padded = next((each for each in _HEADS if size <= each), size)
    blocks, at_once = rows * heads * math.ceil(tokens / _QUERIES), 2 * gpu.multiprocessors
    uneven = math.ceil(blocks / at_once) * at_once / blocks
    return 4 * rows * heads * tokens * keys * padded / gpu.attention_flops * min(uneven, _WAVES_AT_MOST) + _ATTENTION_S


def _moved(operands: tuple[Operand, ...], gpu: Gpu) -> float:
    moved = _bytes(operands)
    return moved / (gpu.l2_bandwidth if moved < _IN_L2 else gpu.memory_bandwidth)


def _bytes(operands: tuple[Operand, ...]) -> int:
    return sum(each.bytes for each in operands)
