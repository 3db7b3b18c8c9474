"""The noise that a seed stands for: drawn on the CPU, so that it is the same on every device."""

import numpy as np
import torch
from torch import Generator, Tensor

_TORCH_SEEDS = range(2**32)
_KEYS = 2**128


def draw(seed: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Normal noise [count, *shape] in float32: the latents, and what the sampler draws at its steps.

    On a CPU torch seeds an MT19937 with the low 32 bits: 0, 2**32 and -2**63 would be one seed. Seeds of 32 bits draw
    from it, one tensor after the other, as diffusers does. Any other seed is the key of a Philox generator, a block
    cipher that takes 128 bits, so that each of them draws other noise.
    """
    if seed in _TORCH_SEEDS:
        generator = Generator().manual_seed(seed)
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])
    philox = np.random.Generator(np.random.Philox(key=seed % _KEYS))
    return torch.from_numpy(philox.standard_normal((count, *shape), np.float32))
