"""OpenVINO in place of torch on a CPU: the engine's own networks, converted once and compiled for each shape.

The worker serves with torch from its first second. In the background, a process of its own converts the networks to
files (`openvino_files.py`), which stay in the cache. The compiler's thread then compiles them, one size and batch after
the other, and the engine switches to each between two steps, as it does to compiled networks on a GPU. A later start
finds the files, and switches before it is ready.

A network is compiled for fixed shapes, as that is fastest, and then holds its own copy of the weights. So where all
copies together would exceed a bound, further shapes share one copy that takes any shape.

OpenVINO itself is imported by the first call that needs it. So whatever is wrong with it costs speed, and no start.
"""

import logging
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from workers.engine.config import EngineConfig
from workers.engine.denoiser import StepInputs
from workers.engine.runtime import ModelFunctions
from workers.engine.runtimes import openvino_files as files
from workers.engine.runtimes.openvino_files import openvino
from workers.folders import PRIVATE, make

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

log = logging.getLogger(__name__)

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_KEPT_ON_DISK = 2**28  # bytes of the largest copy
_BESIDE_WEIGHTS = 64 * 2**20  # bytes of a compiled copy of the small model; weights come on top


@dataclass(frozen=True, eq=False, slots=True)
class _Bound:
    """A compiled network, and the tensors that it reads, whose memory it shares."""

    compiled: "CompiledModel"
    request: "InferRequest"
    inputs: list[Tensor]


class Network:
    """A converted network, with its compiled copies by the shapes of their inputs. Not for two threads at once."""

    def __init__(self, compile_for: Callable[[Shapes], "CompiledModel"]) -> None:
        self._compile_for = compile_for
        self._ready: dict[Shapes, _Bound] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the output, which the next call with these shapes writes over."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        if shapes not in self._ready:
            self._ready[shapes] = _bind(self._compile_for(shapes), shapes)
        bound = self._ready[shapes]
        for own, tensor in zip(bound.inputs, inputs, strict=True):
            own.copy_(tensor)
        bound.request.infer()
        return torch.from_numpy(bound.request.get_output_tensor().data)


def _bind(compiled: "CompiledModel", shapes: Shapes) -> _Bound:
    request, inputs = compiled.create_infer_request(), [torch.zeros(shape) for shape in shapes]
    for n, tensor in enumerate(inputs):
        request.set_input_tensor(n, openvino().Tensor(tensor.numpy(), shared_memory=True))
    return _Bound(compiled, request, inputs)


class OpenVino:
    """Runs the step and the VAE of a (located) configuration; a `runtime.Faster`."""

    automatic = everywhere = True

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        self._config = config
        self._bytes = torch.finfo(getattr(torch, dtype)).bits // 8  # of a weight
        self._folder = files.folder_for(config)
        self._bound = int(config.speed.openvino_gib * 2**30)
        self._used = 0  # bytes of the copies for fixed shapes
        self._failure: files.ConversionError | None = None
        self._damaged = False  # whether files were deleted for that
        self._any_shape: dict[str, CompiledModel] = {}
        # OpenVINO takes a file that it has compiled in one format for one in another, and then computes nonsense.
        self._blobs = files.cache() / f"compiled-{dtype}"
        self._properties = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,  # the workers of a machine would all take the first cores
        }

    @cached_property
    def _core(self) -> "Core":
        core = openvino().Core()
        core.set_property("CPU", self._properties)
        return core

    @property
    def at_once(self) -> bool:
        """Whether the networks are converted already."""
        return files.is_complete(self._folder)

    def compiling(self) -> AbstractContextManager[None]:
        """Convert the networks first, if need be. Raises ConversionError, and does not try that twice."""
        if self._failure is not None:
            raise self._failure
        if not self.at_once:
            try:
                files.convert(self._config, self._folder)
            except files.ConversionError as error:
                self._failure = error
                raise
        return nullcontext()

    def trying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def functions(self) -> ModelFunctions:
        """Functions that compile a network at its first call with new shapes, and hold it."""
        step, vae = (Network(partial(self._compiled, name)) for name in files.NETWORKS)
        return ModelFunctions(lambda _: partial(_predict, step), vae, by_torch=False)

    def _compiled(self, name: str, shapes: Shapes) -> "CompiledModel":
        """A network for these shapes, or for any where the bound leaves no room."""
        size = _BESIDE_WEIGHTS + (self._folder / f"{name}.bin").stat().st_size * self._bytes // 4
        if self._used + size > self._bound:
            return self._flexible(name)
        # A file of what was compiled has all weights once more, so a large network is compiled at each start.
        cache = self._cache() if size <= _KEPT_ON_DISK else {}
        compiled = self._core.compile_model(self._model(name, shapes), "CPU", cache)
        self._used += size
        weakref.finalize(compiled, self._give_back, size)
        files.prune(self._blobs)
        return compiled

    def _give_back(self, size: int) -> None:
        self._used -= size

    def _flexible(self, name: str) -> "CompiledModel":
        if name not in self._any_shape:
            self._any_shape[name] = self._core.compile_model(self._model(name), "CPU")
        return self._any_shape[name]

    def _model(self, name: str, shapes: Shapes | None = None) -> "Model":
        """A converted network, for fixed shapes if any are given.

        Where its files are damaged, this deletes them, so that they are made again: once, by the next target.
        """
        try:
            model = self._core.read_model(self._folder / f"{name}.xml")
            if shapes is not None:
                model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        except RuntimeError as error:
            if self._damaged:
                self._failure = files.ConversionError("the converted networks cannot be read")
            self._damaged = True
            log.warning("Deleting %s, as its files are damaged", self._folder)
            files.delete(self._folder)
            raise files.ConversionError(
                f"{name}.xml or {name}.bin is damaged: {str(error).strip().splitlines()[-1]}"
            ) from error
        return model

    def _cache(self) -> dict[str, str]:
        """Where OpenVINO keeps what it has compiled; nowhere if that cannot be written, as it then compiles nothing."""
        with suppress(OSError):
            make(self._blobs, PRIVATE)
        return {"CACHE_DIR": str(self._blobs)} if os.access(self._blobs, os.W_OK | os.X_OK) else {}


def _predict(step: Network, inputs: StepInputs) -> Tensor:
    scales = inputs.control_scale, inputs.guidance_scale, inputs.inverse_temperature
    return step(inputs.latents, inputs.times, inputs.text, inputs.hint, *scales)
