"""CUDA tensors without CUDA: torch's fake tensors, which have shapes, strides, dtypes and a device but no content.

What asks for a content fails (`.item()`, shapes that depend on values), and so does what mixes devices. Where fake
tensors of a torch without CUDA differ from tensors on a GPU, `FakeCuda` makes them do as a GPU does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.engine.attention import Kernel, kernels

DEVICE = "cuda:0"
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Call:
    """An operator that ran, with the tensors that it took and made."""

    operator: Any
    took: tuple[Tensor, ...]
    made: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """As in "convolution"."""
        name: str = self.operator.overloadpacket.__name__
        return name


@contextmanager
def fake_cuda() -> Iterator[list[Call]]:
    """What is made within on `DEVICE` is fake; the operators that run are noted."""
    calls: list[Call] = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _AsOnCuda(), _Noted(calls):
        yield calls


def layout_kept(x: Tensor) -> bool:
    """Whether it lies in the channels-last layout."""
    return x.is_contiguous(memory_format=torch.channels_last)


def efficient_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """By a kernel that only CUDA has; `networks.Attend`."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys, values))
    return _efficient().run(q, k, v).transpose(1, 2).flatten(2)


def _efficient() -> Kernel:
    (kernel,) = kernels(torch.device(DEVICE), "efficient")
    return kernel


class _AsOnCuda(TorchFunctionMode):
    """Indexing and two other methods look for a CUDA driver before they ask whether a tensor is fake, so they are
    called by their operators; attention is what torch has for CUDA, not what it falls back to without."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        stand_in = _STAND_INS.get(function, function)
        return stand_in(*args, **(kwargs or {}))


class _Noted(TorchDispatchMode):
    """Notes each operator. A convolution's output is laid out as cuDNN does: channels last, where either input is.

    Source: torch's cudnn_conv_suggest_memory_format, in aten/src/ATen/native/ConvUtils.h.
    """

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        if operator is aten.convolution.default and any(map(layout_kept, args[:2])):
            made = torch.empty_like(made, memory_format=torch.channels_last)
        if operator is not torch.ops.prim.device.default:
            self._calls.append(Call(operator, _tensors((args, kwargs)), _tensors(made)))
        return made


def _tensors(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    mask = None if attn_mask is None else attn_mask.expand(*queries.shape[:3], keys.shape[2])
    output: Tensor = aten._scaled_dot_product_efficient_attention(queries, keys, values, mask, False)[0]
    return output


def _part(x: Tensor, key: Any) -> Tensor:
    """x[key], without a device guard."""
    dim, chosen = 0, list[Tensor | None]()
    for each in key if isinstance(key, tuple) else (key,):
        match each:
            case None:
                x = x.unsqueeze(dim)
            case slice():
                x = aten.slice(x, dim, each.start, each.stop, each.step or 1)
            case Tensor():
                chosen += [None] * (dim - len(chosen)) + [each]
            case int():
                x, dim = x.select(dim, each), dim - 1
            case _:
                raise NotImplementedError(f"indexing by {each!r}")
        dim += 1
    return aten.index(x, chosen) if chosen else x


def _set_part(x: Tensor, key: Any, value: Tensor | complex) -> None:
    part = _part(x, key)
    if isinstance(value, Tensor):
        aten.copy_(part, value)
    else:
        part.fill_(value)


_STAND_INS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _part,
    Tensor.__setitem__: _set_part,
    Tensor.contiguous: aten.contiguous,
    Tensor.copy_: aten.copy_,
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
