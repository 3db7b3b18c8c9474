"""The estimates are those of the model that `tile_model.py` describes."""

import pytest

from tests.gpu_codegen.gpus import H100
from tests.gpu_codegen.program import Kernel, Operand
from tests.gpu_codegen.tile_model import estimate


def operand(*shape: int) -> Operand:
    return Operand("buf", shape, ())


def product(rows: int, columns: int, depth: int) -> Kernel:
    operands = operand(rows, depth), operand(depth, columns), operand(rows, columns)
    return Kernel("matrix product", "extern_kernels.mm", operands)


def attention(size: int) -> Kernel:
    q, k = operand(2, 8, 4096, size), operand(2, 8, 4096, size)
    return Kernel("attention", "torch.ops.aten._scaled_dot_product_flash_attention.default", (q, k, k))


def test_a_large_product_runs_at_nearly_the_cards_rate() -> None:
    side = 128 * 132
    assert estimate(product(side, side, side), H100) == pytest.approx(
        2 * side**3 / (0.92 * H100.tensor_flops), rel=0.01
    )


def test_products_in_float8_run_at_twice_the_rate() -> None:
    side = 128 * 132
    x, weight, scales, made = operand(side, side), operand(side, side), operand(side, 1), operand(side, side)
    in_float8 = Kernel("matrix product", "extern_kernels._scaled_mm", (x, weight, scales, scales, made))
    assert estimate(in_float8, H100) == pytest.approx(estimate(product(side, side, side), H100) / 2, rel=0.01)


def test_a_split_inner_dimension_fills_a_card_that_few_tiles_do_not() -> None:
    deep, large = product(128, 1280, 11_520), product(16_384, 16_896, 1024)
    assert estimate(deep, H100, split_k=True) < 0.5 * estimate(deep, H100)
    assert estimate(large, H100, split_k=True) == estimate(large, H100)


def test_heads_of_attention_are_padded() -> None:
    assert estimate(attention(40), H100) == estimate(attention(64), H100) < estimate(attention(80), H100)


def test_other_kernels_move_their_operands() -> None:
    small, large = (Kernel("pointwise", "triton_poi_0", (operand(n), operand(n))) for n in (1_000, 100_000_000))
    assert estimate(small, H100) == 2.3e-6
    assert estimate(large, H100) == pytest.approx(4e8 / H100.memory_bandwidth, rel=0.02)
