"""Linear layers in 8-bit floats (float8 e4m3), which Ada and Hopper GPUs multiply twice as fast as float16.

Each layer `y = W x + b` becomes `y = scale_w * scale_x * (W8 x8) + b`, one product with float32 sums. Weights are
rounded once, when the model is loaded, with a scale for each output channel; so they take half the memory. Activations
are rounded at each call, with a scale for each token: the largest value of each is e4m3's largest, 448. So a token's
result depends on nothing but itself: not on the images that share its batch, nor on prompts that scales were calibrated
with. All of it is plain torch without a host value, which can be compiled and recorded.

Rounding to four significant bits makes noise, and other noise for each way to compute the same: two values that differ
in float16's last bit, on either side of a border, become neighbours in float8, a sixteenth apart. After some layers
nearly all noise is another. So networks that are compiled, or run for a batch of another size, return results that
differ as much as quantised results do from plain ones. The same kernels still repeat every bit.

Quantised are the linear layers of the transformers and the 1x1 convolutions before and after them, which are linear
layers over pixels. Not quantised are products that are computed once (text, time), and those that are few and cost the
most: the shortcuts of the ResNets, 5% of the work in float8, would make most of its error
(`python -m tests.bench.quantisation`). torch has no 3x3 convolution in float8. As a matrix product it would need each
pixel nine times in memory; whether that pays only a GPU can tell.

`fp8` needs a GPU. `fp8-emulated` rounds in the same way and multiplies in float32, on any device: for comparing images.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from workers.engine.compiling import check
from workers.engine.config import FLOAT8_CAPABILITY
from workers.engine.contract import UnusableModelError
from workers.engine.graphs import first_line
from workers.logs import timed

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

Rows: TypeAlias = tuple[Tensor, Tensor]  # [rows, channels] in float8, and a scale for each [rows, 1]
Multiply: TypeAlias = Callable[[Rows, Rows, Tensor | None], Tensor]  # inputs by weights, plus bias: [inputs, weights]

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
_SMALLEST_SCALE = 1e-12  # of a row of zeros, which has none
_TRIED = 64  # sides of the matrices of the trial
_REMEDY = "make it none, or fp8-emulated to compare images"
_MULTIPLE = 16  # sides of a matrix that cuBLAS and CUTLASS multiply in float8
QUANTISED = re.compile(
    r".*\.(attn1\.to_qkv|attn2\.to_q|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
)


class QuantisationError(UnusableModelError, RuntimeError):
    """This device cannot compute in 8-bit floats; the message says what to do."""


class Float8Linear(nn.Module):
    """A linear layer, or a 1x1 convolution of [..., channels], with weights in float8."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, multiply: Multiply) -> None:
        super().__init__()
        weight, scale = quantise(layer.weight.flatten(1))
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", layer.bias)
        self.out_features = len(weight)
        self._multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        rows = quantise(x.flatten(0, -2))
        product = self._multiply(rows, (self.weight, self.weight_scale), self.bias)
        y: Tensor = product.to(x.dtype).unflatten(0, x.shape[:-1])
        return y


class Float8Convolution(Float8Linear):
    """A 1x1 convolution of [rows, channels, h, w]. In the channels-last layout neither permutation copies."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def quantise(x: Tensor) -> Rows:
    """Round the rows of [rows, channels] to float8."""
    scale = vector_norm(x, torch.inf, dim=1, keepdim=True, dtype=torch.float32).clamp(_SMALLEST_SCALE) / _LARGEST
    # No clamp: float32's rounding may exceed 448 by a millionth, and all up to 464 is rounded to 448.
    return (x / scale).to(FLOAT8, memory_format=torch.contiguous_format), scale


@torch.no_grad()
def quantise_networks(
    networks: "Sequence[UNet2DConditionModel | ControlNetModel]", quantisation: str, device: torch.device
) -> None:
    """Replace the layers of networks on a device, whose projections are packed. Raises QuantisationError."""
    if any(isinstance(layer, Float8Linear) for network in networks for layer in network.modules()):
        raise ValueError("these networks are quantised already: read them again")
    if quantisation == "none":
        return
    for network in networks:
        multiply = emulated if quantisation == "fp8-emulated" else scaled_mm_on(device, network.dtype)
        with timed("Rounded the weights to float8"):
            replace_layers(network, multiply)


def replace_layers(network: nn.Module, multiply: Multiply) -> None:
    """Replace the layers of a network that are to be quantised. The weights as they were are gone."""
    # Their names alone, so that the memory of each is free before the next is rounded.
    for name in [name for name, module in network.named_modules() if is_quantised(name, module)]:
        path, _, own = name.rpartition(".")
        parent = network.get_submodule(path)
        layer = getattr(parent, own)
        setattr(parent, own, (Float8Convolution if isinstance(layer, nn.Conv2d) else Float8Linear)(layer, multiply))
        if own == "to_qkv":  # its parts are views of the weights as they were, and would keep these
            for part in ("to_q", "to_k", "to_v"):
                setattr(parent, part, None)


def is_quantised(name: str, module: nn.Module) -> bool:
    """Whether a layer is one to quantise."""
    match module:
        case nn.Linear() | nn.Conv2d(kernel_size=(1, 1)) if QUANTISED.fullmatch(name):
            return not any(side % _MULTIPLE for side in module.weight.shape[:2])
    return False


# ------------------------------------------------------------------------------------------------------------- products


def scaled_mm(rows: Rows, weight: Rows, bias: Tensor | None, out: torch.dtype) -> Tensor:
    """By cuBLAS or CUTLASS, in either layout that they take. Sums lose bits beyond the 14th, which is faster."""
    (x, x_scale), (w, w_scale) = rows, weight
    bias = None if bias is None else bias.to(out)
    product: Tensor = torch._scaled_mm(  # noqa: SLF001 - its public form has no lowering of its own in torch 2.11
        x, w.t(), x_scale, w_scale.t(), bias, out_dtype=out, use_fast_accum=True
    )
    return product


def emulated(rows: Rows, weight: Rows, bias: Tensor | None) -> Tensor:
    """The same in float32."""
    (x, x_scale), (w, w_scale) = rows, weight
    product = (x.float() @ w.t().float()) * x_scale * w_scale.t()
    return product if bias is None else product + bias


def scaled_mm_on(device: torch.device, dtype: torch.dtype) -> Multiply:
    """The matrix product in float8 on a device, for networks that compute in `dtype`. Raises QuantisationError.

    It is tried first. With row-wise scales older releases of torch, and CUDA before 12.9, write bfloat16 only.
    """
    _check(device)
    x = torch.linspace(-1, 1, _TRIED**2, device=device, dtype=dtype).view(_TRIED, _TRIED)
    rows, weight, bias = quantise(x), quantise(x.t()), x[0].clone()  # no symmetry hides what is mixed up
    problems = []
    for out in dict.fromkeys((dtype, torch.bfloat16)):
        try:
            check(scaled_mm(rows, weight, bias, out), emulated(rows, weight, bias), out)
        except torch.OutOfMemoryError:
            raise  # another time there may be more
        except (RuntimeError, ValueError, ArithmeticError) as error:
            problems.append(f"{out}: {first_line(error)}")
        else:
            return partial(scaled_mm, out=out)
    raise QuantisationError(
        f"engine.quantisation is fp8, but a product in it failed ({'; '.join(problems)}): {_REMEDY}"
    )


def _check(device: torch.device) -> None:
    if device.type != "cuda":
        raise QuantisationError(f"engine.quantisation is fp8, which needs a GPU: {_REMEDY}")
    if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise QuantisationError(f"engine.quantisation is fp8, for which {name} has no instructions: {_REMEDY}")
