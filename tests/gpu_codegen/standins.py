"""Stand-ins for a GPU: what torch's and Triton's compilers ask a device while they generate code for it.

They replace attributes of modules for the whole process, so each lowering has a process of its own. Where one of these
attributes is missing, torch has moved it: `MovedError` names it, and what it was replaced for.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.gpu_codegen.gpus import REGISTERS_PER_MULTIPROCESSOR, Gpu


class MovedError(Exception):
    """This version of torch or Triton no longer has an attribute that is to be replaced."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """A value for an attribute of a module, or of a class in it; `why` it is replaced."""

    owner: str  # as in "torch.cuda" or "torch._subclasses.fake_tensor:FakeTensorMode"
    attribute: str
    value: Any
    why: str

    def install(self) -> None:
        """Raises MovedError."""
        try:
            owner = resolve_name(self.owner)
            getattr(owner, self.attribute)
        except (ImportError, AttributeError) as error:
            name = f"{self.owner.replace(':', '.')}.{self.attribute}"
            raise MovedError(f"{name} has moved, which was replaced because {self.why}") from error
        setattr(owner, self.attribute, self.value)


def install(gpu: Gpu) -> None:
    """Make this process take `gpu` for its device, as far as compilers ask. Raises MovedError."""
    for stand_in in _stand_ins(gpu):
        stand_in.install()


def always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _stand_ins(gpu: Gpu) -> Iterator[StandIn]:
    asked = "Inductor asks for the device's properties: they choose block sizes and are written into each kernel"
    properties, interface = always(_properties(gpu)), "torch._dynamo.device_interface:CudaInterface"
    yield StandIn("torch.cuda", "get_device_properties", properties, asked)
    yield StandIn(interface, "get_device_properties", properties, asked)
    there = "a torch without CUDA says that there is no device"
    yield StandIn("torch.cuda", "is_available", always(True), there)
    yield StandIn("torch.cuda", "device_count", always(1), there)
    yield StandIn("torch.cuda", "current_device", always(0), there)
    built = "a torch without CUDA was built without flash attention; the engine then does not offer it"
    yield StandIn("torch.backends.cuda", "is_flash_attention_available", always(True), built)

    fakes, first = "torch._subclasses.fake_tensor", "fake tensors of a device that is there are preceded by a real one"
    yield StandIn(fakes, "init_gpu_context", always(None), first)
    yield StandIn(f"{fakes}:FakeTensorMode", "avoid_device_init", True, first)
    cudnn = "for a fake convolution torch asks the backend that it would choose, which here is none of CUDA's"
    yield StandIn("torch._C", "_conv_determine_backend_memory_format", _as_cudnn, cudnn)
    random = "the state of the device's random numbers is kept while code is generated"
    yield StandIn("torch.cuda", "get_rng_state", always(torch.zeros(16, dtype=torch.uint8)), random)
    yield StandIn("torch.cuda", "set_rng_state", always(None), random)
    selected = "it selects the device"
    yield StandIn("torch._inductor.compile_fx", "get_cuda_device_context", always(nullcontext()), selected)

    driver = SimpleNamespace(get_current_target=always(_target(gpu)))
    yield StandIn("triton.runtime:driver", "_active", driver, "Triton asks its driver for the target")
    helpers = "torch._inductor.runtime.triton_helpers"
    yield StandIn(helpers, "set_driver_to_gpu", always(None), "each kernel's file would replace that driver")


def _target(gpu: Gpu) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", gpu.cc, 32)


def _as_cudnn(images: Tensor, weight: Tensor, backend: object) -> torch.memory_format:
    """Channels last where either input is, as cudnn_conv_suggest_memory_format in ATen/native/ConvUtils.h."""
    either = any(x.is_contiguous(memory_format=torch.channels_last) for x in (images, weight))
    return torch.channels_last if either else torch.contiguous_format


def _properties(gpu: Gpu) -> SimpleNamespace:
    return SimpleNamespace(
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        multi_processor_count=gpu.multiprocessors,
        total_memory=gpu.memory,
        regs_per_multiprocessor=REGISTERS_PER_MULTIPROCESSOR,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=gpu.shared_per_block,
        shared_memory_per_multiprocessor=gpu.shared_per_multiprocessor,
        L2_cache_size=gpu.l2,
        gcnArchName="",
    )
