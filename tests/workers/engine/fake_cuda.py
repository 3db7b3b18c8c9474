"""CUDA tensors without CUDA: torch's fake tensors, which have shapes, strides, dtypes and a device but no content.

What asks for a content fails (`.item()`, shapes that depend on values), and so does what mixes devices. Where fake
tensors of a torch without CUDA differ from tensors on a GPU, `FakeCuda` makes them do as a GPU does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
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
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), AsOnCuda(), _Noted(calls):
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


# -------------------------------------------------------------------------------------------------------- what waits


class Host:
    """What the host does, in order: `noted` by a test, and each time that it waits for the device.

    It waits for an event, for a stream, for all of the device, and for each copy that is not `non_blocking`, from or to
    pinned memory.
    """

    def __init__(self) -> None:
        self.did: list[str] = []
        self.copies = 0
        self._pinned: list[Tensor] = []

    def note(self, what: str) -> None:
        self.did.append(what)

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def on_copy(self, *tensors: Tensor, non_blocking: bool) -> None:
        """Note a copy between devices if the host waits for it."""
        self.copies += 1
        in_main_memory = next(tensor for tensor in tensors if tensor.device.type == "cpu")
        if not (non_blocking and any(tensor is in_main_memory for tensor in self._pinned)):
            self.note("waits for a copy")

    def empty_like(self, tensor: Tensor, *, device: str, pin_memory: bool) -> Tensor:
        made = aten.empty_like(tensor, device=torch.device(device))
        return self.pin(made) if pin_memory else made

    def event(self) -> "_Event":
        return _Event(self)

    def stream(self, *_: object) -> "_Stream":
        return _Stream(self)


@dataclass
class _Event:
    host: Host
    after: str = "nothing"

    def record(self) -> None:
        self.after = next((each for each in reversed(self.host.did) if not each.startswith("waits")), self.after)

    def synchronize(self) -> None:
        self.host.note(f"waits for {self.after}")


@dataclass
class _Stream:
    host: Host

    def wait_stream(self, other: object) -> None:
        """The device waits, the host does not."""

    def synchronize(self) -> None:
        self.host.note("waits for a stream")


@contextmanager
def host_on_fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[Host]:
    """As `fake_cuda`, with stand-ins for streams and events, too."""
    host = Host()
    stand_ins = {
        "Event": host.event,
        "Stream": host.stream,
        "current_stream": host.stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda device: host.note("waits for the device"),
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(torch.cuda, name, stand_in)
    patch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    with fake_cuda(), _Copies(host), _Memory(host):
        yield host


class _Memory(TorchFunctionMode):
    """Pinned memory, and what fake tensors lack for an image."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._stand_ins: dict[Any, Callable[..., Any]] = {
            Tensor.pin_memory: host.pin,
            Tensor.numpy: lambda tensor: np.zeros(tensor.shape, np.uint8),
            torch.empty_like: host.empty_like,
        }

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        pinned = function is not torch.empty_like or "pin_memory" in (kwargs or {})
        return (self._stand_ins.get(function, function) if pinned else function)(*args, **(kwargs or {}))


class _Copies(TorchDispatchMode):
    """Tells a host of what can make it wait."""

    def __init__(self, host: Host) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._host = host

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        if operator in (aten._to_copy.default, aten.copy_.default):
            ends = (made, args[0]) if operator is aten._to_copy.default else args[:2]
            if len({tensor.device.type for tensor in ends}) > 1:
                self._host.on_copy(*ends, non_blocking=any(each is True for each in (*args, *(kwargs or {}).values())))
        return made


# --------------------------------------------------------------------------------------------------------- stand-ins


class AsOnCuda(TorchFunctionMode):
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
