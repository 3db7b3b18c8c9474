"""OpenVINO in place of torch on a CPU: the engine's own networks, converted once and compiled for each shape.

The first worker serves with torch from its first second (`model.Model`, whose `faster` is `OpenVino`). In the
background, a process of its own converts the networks to files (`openvino_files.py`), which stay in the cache. The
compiler's thread then compiles them, one size and batch after the other, and the engine switches to each between two
steps, as it does to compiled networks on a GPU.

A later start finds the files and does without torch's networks (`OpenVinoModel`): their weights stay on the disk, and
diffusers and transformers are not imported. Then the copies that take any shape are the plain functions. They are
compiled before the worker is ready, as no step could wait for that later.

A network compiled for fixed shapes is faster, and holds its own copy of the weights. Where all such copies together
would exceed a bound, further shapes share the one that takes any.

Whatever is wrong with OpenVINO costs speed. While torch runs, it goes on. A start that cannot load the files loads
torch's networks instead. After that, a process without torch's networks cannot go on when a plain function fails: it
names OpenVINO as the cause (`Trials.blame`) and ends, and its successor serves by torch. Loading torch's networks in
the middle of a step would save that restart, but it would take as long, and every image in the batch would wait.
"""

import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from workers.engine.conditioning import TextConditioning, Tokens
from workers.engine.config import EngineConfig
from workers.engine.denoiser import StepInputs
from workers.engine.model import dtype_of, plans_of, small_parts
from workers.engine.networks import Attend
from workers.engine.plan import Plans
from workers.engine.plan_files import keep, kept
from workers.engine.runtime import ModelFunctions
from workers.engine.runtimes import openvino_files as files
from workers.engine.runtimes.files import GRAPHS
from workers.engine.runtimes.openvino_files import openvino
from workers.engine.runtimes.openvino_graphs import read
from workers.engine.trials import COMPILING, Trials
from workers.folders import PRIVATE, make
from workers.logs import timed
from workers.machine import available_cores, memory_limit

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

log = logging.getLogger(__name__)

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_KEPT_ON_DISK = 2**28  # bytes of the largest copy
# Sinusoids of timesteps in bfloat16 would be those of other timesteps.
_EXACT = {"times": {"INFERENCE_PRECISION_HINT": "f32"}}
_BESIDE_WEIGHTS = 64 * 2**20  # bytes of a compiled copy of the small model; weights and results come on top
_RESULTS = 3  # times the largest result of a layer: measured 2.7 to 3.5, for the small model


@dataclass(frozen=True, eq=False, slots=True)
class _Bound:
    """A compiled network, and the tensors that it reads, whose memory it shares; with what was last copied to them."""

    compiled: "CompiledModel"
    request: "InferRequest"
    inputs: list[Tensor]
    copied: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def copy(self, n: int, given: Tensor) -> None:
        """Copy an input, unless it is what was copied last: text and hint change with the images, not at each step."""
        last, version = self.copied.get(n, (None, 0))
        if last is None or not given.is_set_to(last) or given._version != version:  # noqa: SLF001 - counts changes
            self.inputs[n].copy_(given)
            self.copied[n] = given, given._version  # noqa: SLF001


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
        for n, tensor in enumerate(inputs):
            bound.copy(n, tensor)
        bound.request.infer(share_outputs=True)
        return torch.from_numpy(bound.request.get_output_tensor().data)


def _bind(compiled: "CompiledModel", shapes: Shapes) -> _Bound:
    request, inputs = compiled.create_infer_request(), [torch.zeros(shape) for shape in shapes]
    for n, tensor in enumerate(inputs):
        request.set_input_tensor(n, openvino().Tensor(tensor.numpy(), shared_memory=True))
    return _Bound(compiled, request, inputs)


class PlainNetwork:
    """A network for any shapes that nothing replaces. The first call with new shapes is a trial; an error is blamed on
    OpenVINO, as it ends the process. Not for two threads at once."""

    def __init__(self, compiled: "CompiledModel", trials: Trials) -> None:
        self._request = compiled.create_infer_request()  # one for all shapes, as each would hold memory
        integral = (port.get_element_type().is_integral() for port in compiled.inputs)
        self._dtypes = [torch.int64 if each else torch.float32 for each in integral]
        self._trials = trials
        self._tried: set[Shapes] = set()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the output, which the next call writes over."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        try:
            with nullcontext() if shapes in self._tried else self._trials.of(COMPILING):
                output = self._infer(inputs)
        except Exception:
            self._trials.blame(COMPILING)
            raise
        self._tried.add(shapes)
        return output

    def _infer(self, inputs: Sequence[Tensor]) -> Tensor:
        # In a list, as the request keeps no memory alive.
        values = [tensor.to(dtype).contiguous() for tensor, dtype in zip(inputs, self._dtypes, strict=True)]
        for n, tensor in enumerate(values):
            self._request.set_input_tensor(n, openvino().Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer(share_outputs=True)
        return torch.from_numpy(self._request.get_output_tensor().data)


class OpenVino:
    """Runs the step and the VAE of a (located) configuration; a `runtime.Faster`."""

    automatic = everywhere = True

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        self._config = config
        self._dtype = dtype
        self._bytes = torch.finfo(getattr(torch, dtype)).bits // 8  # of a weight
        self._folder = files.folder_for(config)
        share = min(torch.get_num_threads() / available_cores(), 1)
        self._bound = config.speed.openvino_bytes(int(memory_limit() * share))
        self._used = 0  # bytes of the copies for fixed shapes
        self._failure: files.ConversionError | None = None
        self._opened = self._new = False
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
        files.delete_damaged(self._blobs)
        core = openvino().Core()
        core.set_property("CPU", self._properties)
        return core

    def prepare(self) -> None:
        """Open the converted networks, or convert them first. Raises ConversionError, and does not try that twice."""
        if self._failure is not None:
            raise self._failure
        if not self._opened:
            try:
                self._open_or_convert()
            except files.ConversionError as error:
                self._failure = error
                raise

    def _open_or_convert(self) -> None:
        try:
            self.open()
        except files.ConversionError:
            files.convert(self._config, self._folder)
            self.open()
            self._new = True

    def compiling(self) -> AbstractContextManager[None]:
        """After a conversion, compile what the next start needs, too."""
        if self._new:
            self._new = False
            self._compile_for_next_start()
        return nullcontext()

    def open(self) -> files.Facts:
        """Keep the converted networks from being deleted, and return the facts about them.

        Raises ConversionError where they are missing, or damaged: then they are deleted.
        """
        try:
            weakref.finalize(self, os.close, files.hold(self._folder))
            facts = files.sound(self._folder)
        except OSError as error:
            raise files.ConversionError(f"{self._folder} cannot be used: {error.strerror}") from error
        self._opened = True
        return facts

    def trying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def serving(self) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def functions(self) -> ModelFunctions:
        """Functions that compile a network at its first call with new shapes, and hold it."""
        step, vae = (Network(partial(self._compiled, name)) for name in ("step", "vae"))
        return ModelFunctions(lambda _: partial(_predict, step), vae, by_torch=False)

    def _compiled(self, name: str, shapes: Shapes) -> "CompiledModel":
        """A network for these shapes, or for any where the bound leaves no room."""
        model = self._model(name, shapes)
        size = _BESIDE_WEIGHTS + self._bytes * (_weights(model) + _RESULTS * _largest_result(model))
        if self._used + size > self._bound:
            return self.any_shape(name)
        compiled = self._compile(model, self._cache(self._size(name)))
        self._used += size
        weakref.finalize(compiled, self._give_back, size)
        return compiled

    def _compile(self, model: "Model", options: Mapping[str, str]) -> "CompiledModel":
        compiled = self._core.compile_model(model, "CPU", options)
        files.tidy(self._blobs)
        return compiled

    def _size(self, name: str) -> int:
        """Bytes of a compiled copy, but for its layers' results."""
        return _BESIDE_WEIGHTS + (self._folder / f"{name}.bin").stat().st_size * self._bytes // 4

    def _give_back(self, size: int) -> None:
        self._used -= size

    def _compile_for_next_start(self) -> None:
        """Have OpenVINO keep the copies for any shape on the disk, as far as they are small."""
        for name in GRAPHS:
            with suppress(RuntimeError):  # then the next start says so
                if self._cache(self._size(name)):
                    self._compiled_for_any(name)

    def any_shape(self, name: str) -> "CompiledModel":
        """The copy of a network that takes any shape."""
        if name not in self._any_shape:
            self._any_shape[name] = self._compiled_for_any(name)
        return self._any_shape[name]

    def _compiled_for_any(self, name: str) -> "CompiledModel":
        return self._compile(self._model(name), self._cache(self._size(name)) | _EXACT.get(name, {}))

    def _model(self, name: str, shapes: Shapes | None = None) -> "Model":
        """A converted network, for fixed shapes if any are given."""
        return read(self._core, self._folder / f"{name}.xml", self._dtype, shapes)

    def _cache(self, size: int) -> dict[str, str]:
        """Where OpenVINO keeps what it has compiled.

        Nowhere if that cannot be written, as it then compiles nothing; nor for a large network, as the file has all
        weights once more.
        """
        if size > _KEPT_ON_DISK:
            return {}
        with suppress(OSError):
            make(self._blobs, PRIVATE)
        return {"CACHE_DIR": str(self._blobs)} if os.access(self._blobs, os.W_OK | os.X_OK) else {}


def _weights(model: "Model") -> int:
    """Numbers in all weights."""
    return sum(math.prod(layer.get_output_shape(0)) for layer in model.get_ops() if layer.get_type_name() == "Constant")


def _largest_result(model: "Model") -> int:
    """Numbers in the largest result of a layer."""
    layers = (layer for layer in model.get_ops() if layer.get_type_name() != "Constant")
    return max(int(math.prod(output.get_shape())) for layer in layers for output in layer.outputs())


@dataclass(frozen=True, eq=False)
class OpenVinoModel:
    """A model whose networks are all OpenVINO's; an `AnyModel`."""

    tokens: Tokens
    text: TextConditioning
    plans: Plans
    device: torch.device
    dtype: torch.dtype
    facts: files.Facts
    networks: Mapping[str, PlainNetwork]
    faster: OpenVino

    @property
    def rounding_dtype(self) -> torch.dtype:
        return self.dtype

    @property
    def time_width(self) -> int:
        return self.facts.time_width

    @property
    def hint_channels(self) -> int:
        return self.facts.hint_channels

    @property
    def latent_channels(self) -> int:
        return self.facts.latent_channels

    @property
    def latent_scale(self) -> int:
        return self.facts.latent_scale

    def times(self, timesteps: Tensor) -> Tensor:
        return self.networks["times"](timesteps).to(self.dtype, copy=True)

    def hint(self, edges: Tensor) -> Tensor:
        return self.networks["hint"](edges).to(self.dtype, copy=True)

    def functions(self, attend: Attend, mode: str | None) -> ModelFunctions:
        predict = partial(_predict, self.networks["step"])
        return ModelFunctions(lambda _: predict, self.networks["vae"], by_torch=False, faster=self.faster)


def load(config: EngineConfig, device: str, trials: Trials) -> OpenVinoModel | None:
    """The model of a (located) configuration's converted networks; None if they cannot be used, and the log says why.

    Raises MissingWeightsError, UnsafeModelError and UnsupportedSamplerError.
    """
    dtype, (tokenizer, scheduler) = dtype_of(config, device), small_parts(config)
    faster = OpenVino(config, str(dtype).removeprefix("torch."))
    try:
        with timed("Compiled the networks for any shape"), trials.of(COMPILING):
            facts = faster.open()
            networks = {name: PlainNetwork(faster.any_shape(name), trials) for name in GRAPHS}
    except Exception as error:  # noqa: BLE001 - whatever it is, torch can serve
        log.warning("The converted networks cannot be used, so torch serves: %s", error)
        return None
    log.info("Networks run by OpenVINO alone, of the files in %s", files.folder_for(config))
    tokens, place = Tokens(tokenizer, config.prompt), torch.device(device)
    return OpenVinoModel(
        tokens=tokens,
        text=TextConditioning(networks["text"], facts.text_width, dtype, place, tokens.configured_negative),
        plans=_plans(config, scheduler),
        device=place,
        dtype=dtype,
        facts=facts,
        networks=networks,
        faster=faster,
    )


def _plans(config: EngineConfig, scheduler: Mapping[str, Any]) -> Plans:
    """The sampler's plans: those that are kept beside the networks, or else they are made, and kept if possible."""
    folder = files.folder_for(config)
    found = kept(config.sampler, scheduler, folder)
    plans = plans_of(config.sampler, dict(scheduler), found)
    if found is None:
        with suppress(OSError):
            keep(plans, config.sampler, scheduler, folder)
    return plans


def _predict(step: Network | PlainNetwork, inputs: StepInputs) -> Tensor:
    scales = inputs.control_scale, inputs.guidance_scale, inputs.inverse_temperature
    return step(inputs.latents, inputs.times, inputs.text, inputs.hint, *scales)
