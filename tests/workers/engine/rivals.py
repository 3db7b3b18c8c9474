"""Attention kernels for tests, sound and broken, at a pace of one's choosing, and what they should compute."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine import attention as attention_module
from workers.engine.attention import Attention, Kernel

TOLERANCE = 1e-5
Qkv: TypeAlias = tuple[Tensor, Tensor, Tensor]

HEADS, SIZE = 2, 8
CHANNELS = HEADS * SIZE
BY_NAME = {kernel.name: kernel for kernel in attention_module._CANDIDATES}


@dataclass
class Bench:
    """Kernels that compute rightly, at the pace that a test gives them, and a clock that only they advance."""

    now: float = 0.0
    calls: list[str] = field(default_factory=list)

    def kernel(
        self, name: str, seconds: float = 1.0, run: Callable[..., Tensor] = scaled_dot_product_attention
    ) -> Kernel:
        def work(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.calls.append(name)
            self.now += seconds
            return run(q, k, v)

        return Kernel(name, work)

    def timer(self, work: Callable[[], object]) -> float:
        start = self.now
        work()
        return self.now - start

    def attention(self, *kernels: Kernel) -> Attention:
        return Attention(kernels, self.timer)


def xformers_ops() -> ModuleType:
    """A stand-in for xformers.ops: torch computes [rows, tokens, heads, head size] in another order of memory."""

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        by_heads = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return by_heads.contiguous().transpose(1, 2)

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention_forward = forward  # type: ignore[attr-defined]
    return ops


def random(rows: int, tokens: int, channels: int = CHANNELS, seed: int = 0) -> Tensor:
    return torch.randn(rows, tokens, channels, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int = 2, queries: int = 6, keys: int = 5) -> Qkv:
    return random(rows, queries), random(rows, keys, seed=1), random(rows, keys, seed=2)


def expected(queries: Tensor, keys: Tensor, values: Tensor, heads: int = HEADS) -> Tensor:
    """By loops over rows and heads."""
    output = torch.empty_like(queries)
    size = queries.shape[2] // heads
    for row in range(len(queries)):
        for head in range(heads):
            q, k, v = (x[row, :, head * size : (head + 1) * size] for x in (queries, keys, values))
            output[row, :, head * size : (head + 1) * size] = (q @ k.T / size**0.5).softmax(-1) @ v
    return output


def refuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("head size 8 is not for me\nand here is why, at length")


def no_memory(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a kernel computes that takes rows for heads."""
    return scaled_dot_product_attention(q, k.roll(1, 0), v.roll(1, 0))


def not_a_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.full_like(q, torch.nan)
