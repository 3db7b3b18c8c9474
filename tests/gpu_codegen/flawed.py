"""Tiny networks, each with one flaw that the checks must find."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from tests.gpu_codegen.passes import Call
from tests.workers.engine.fake_cuda import DEVICE


def _made(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16, device=DEVICE)


def _images() -> Tensor:
    return _made(1, 32, 32, 64).permute(0, 3, 1, 2)  # channels last


def _weight() -> Tensor:
    return _made(64, 3, 3, 64).permute(0, 3, 1, 2)


def sound(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1).relu()


def copied_weights(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight.contiguous(), padding=1)


def copied_images(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1).contiguous()


def other_layout(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1, groups=4)


def fallback(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1).kthvalue(2, dim=1)[0]


def copy_to_host(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1).cpu()


def host_value(x: Tensor, weight: Tensor) -> Tensor:
    return x * conv2d(x, weight, padding=1).amax().item()


def spilled_registers(x: Tensor) -> Tensor:
    from tests.gpu_codegen.spilling import spilling  # needs Triton

    spilled: Tensor = spilling(x)
    return spilled


FLAWED: dict[str, Callable[[], Call]] = {
    "sound": lambda: Call(sound, (_images(), _weight())),
    "copied_weights": lambda: Call(copied_weights, (_images(), _weight())),
    "copied_images": lambda: Call(copied_images, (_images(), _weight())),
    "other_layout": lambda: Call(other_layout, (_made(1, 64, 32, 32), _made(64, 16, 3, 3))),
    "fallback": lambda: Call(fallback, (_images(), _weight())),
    "copy_to_host": lambda: Call(copy_to_host, (_images(), _weight())),
    "spilled_registers": lambda: Call(spilled_registers, (_made(16_384).float(),)),
    "host_value": lambda: Call(host_value, (_images(), _weight())),
}
