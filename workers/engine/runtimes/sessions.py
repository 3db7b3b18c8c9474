"""ONNX Runtime in place of torch: a model whose networks are the files that `workers.convert` made.

Tensors are torch's all the same, and a session reads and writes their memory: nothing is copied.

TensorRT, where it is configured, compiles each file for one range of shapes when the session is opened. That takes
minutes, so the result is cached.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnxruntime
import torch
from torch import Tensor

from workers.engine.conditioning import TEXT_TOKENS, TextConditioning, Tokens
from workers.engine.config import EngineConfig
from workers.engine.denoiser import Predict, StepInputs
from workers.engine.model import dtype_of, plans_of, small_parts
from workers.engine.networks import Attend
from workers.engine.plan import Plans
from workers.engine.runtime import ModelFunctions
from workers.engine.runtimes.files import (
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    RuntimeProblem,
    digest,
    facts_in,
    free_dimensions,
    identity,
    paths,
    refuse_others,
)
from workers.engine.streams import SideStream

log = logging.getLogger(__name__)

Provider: TypeAlias = tuple[str, dict[str, str]]

CACHE = "ORT_TENSORRT_CACHE_PATH"  # set by the worker's process to a folder of workers.cache
# Calls of the model for an image: the least, the default of diffusers, and as many as samplers are trained for.
_CALLS = 1, 20, 1000
_WITHOUT_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc")
_NUMPY = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64", torch.uint8: "uint8"}


class Session:
    """One file, ready to run on a device. Raises RuntimeProblem when ONNX Runtime cannot use that."""

    def __init__(self, path: Path, device: torch.device, tensorrt: Provider | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        # Threads that spin while they wait save a tenth of a step on idle cores. But beside another busy process on two
        # cores, a step took 1.7 to 2.6 times as long with them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._device = device
        wanted = [tensorrt, *providers(device)] if tensorrt else providers(device)
        self._session = onnxruntime.InferenceSession(path, options, providers=wanted)
        started = self._session.get_providers()
        if device.type == "cuda" and CUDA_PROVIDER not in started:
            raise RuntimeProblem("ONNX Runtime could not start CUDA; what it printed says why")
        if tensorrt and TENSORRT_PROVIDER not in started:  # ONNX Runtime goes on with the next provider
            log.warning("%s runs without TensorRT: ONNX Runtime could not start it and printed why", path.name)
        self.shapes = {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}

    @property
    def facts(self) -> Mapping[str, str]:
        """The facts in the file."""
        return facts_in(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, result: Tensor, *inputs: Tensor) -> Tensor:
        """Write the output to `result` and return it; inputs are in the file's order.

        Raises torch.OutOfMemoryError.
        """
        kept = [tensor.contiguous() for tensor in inputs]
        binding = self._session.io_binding()
        for value, tensor in zip(self._session.get_inputs(), kept, strict=True):
            binding.bind_input(value.name, *self._memory(tensor))
        binding.bind_output(self._session.get_outputs()[0].name, *self._memory(result))
        if self._device.type == "cuda":  # the session runs on its own stream
            torch.cuda.current_stream().synchronize()
        with _memory_errors():
            self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return result

    def _memory(self, tensor: Tensor) -> tuple[str, int, str, list[int], int]:
        index = tensor.device.index or 0
        return self._device.type, index, _NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn ONNX Runtime's lack of memory into torch's error, which the engine handles."""
    try:
        yield
    except RuntimeError as error:  # raised for any reason
        if any(words in str(error) for words in _WITHOUT_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def providers(device: torch.device) -> list[Provider]:
    """What runs a session on a device, the preferred first."""
    cpu: Provider = ("CPUExecutionProvider", {})
    return [(CUDA_PROVIDER, {"device_id": str(device.index or 0)}), cpu] if device.type == "cuda" else [cpu]


def without_tensorrt(device: torch.device) -> str:
    """Return why TensorRT cannot run on a device; empty if it can, as far as ONNX Runtime says."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without it; install onnxruntime-gpu and tensorrt"
    return ""


def tensorrt_provider(path: Path, config: EngineConfig, dtype: str, device: torch.device) -> Provider:
    """TensorRT with its options for a file: the shapes to compile it for, and where to cache the result."""
    spans = shapes(path, config)
    options = {"device_id": str(device.index or 0), "trt_fp16_enable": str(int(dtype == "float16"))}
    for n, bound in enumerate(("min", "opt", "max")):
        if spans:
            options[f"trt_profile_{bound}_shapes"] = ",".join(
                f"{name}:{'x'.join(str(span[n]) for span in dims)}" for name, dims in spans.items()
            )
    if folder := os.environ.get(CACHE):
        # ONNX Runtime finds an engine by the file's name and shapes, so that one of other weights would be taken too.
        key = digest([identity(config, dtype), onnxruntime.__version__])[:16]
        options |= {f"trt_{kind}_cache_enable": "1" for kind in ("engine", "timing")}
        options |= {"trt_engine_cache_path": str(Path(folder) / key), "trt_timing_cache_path": folder}
    return TENSORRT_PROVIDER, options


def shapes(path: Path, config: EngineConfig) -> dict[str, list[tuple[int, int, int]]]:
    """Least, usual and greatest size of each dimension, of those inputs of a file that have free dimensions."""
    inputs, facts = free_dimensions(path)
    scale = int(facts["latent_scale"])
    sides = (config.size.multiple, config.size.short_side, config.size.long_side)

    def span(name: str, axis: int) -> tuple[int, int, int]:
        if name == "timesteps":
            return _CALLS
        if axis == 0 and name != "edges":
            return 1, 1, config.slots  # compiled for a lone image first
        least, usual, most = (side if name == "edges" else max(1, side // scale) for side in sides)
        return least, usual, most

    return {
        name: [span(name, axis) if size is None else (size, size, size) for axis, size in enumerate(dims)]
        for name, dims in inputs.items()
        if None in dims
    }


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An `AnyModel`."""

    tokens: Tokens
    text: TextConditioning
    plans: Plans
    device: torch.device
    dtype: torch.dtype
    hint_channels: int
    latent_channels: int
    latent_scale: int
    sessions: Mapping[str, Session]

    @property
    def rounding_dtype(self) -> torch.dtype:
        return self.dtype

    @property
    def time_width(self) -> int:
        return int(self.sessions["times"].shapes["times"][1])

    def times(self, timesteps: Tensor) -> Tensor:
        made = torch.empty(len(timesteps), self.time_width, dtype=self.dtype, device=self.device)
        return self.sessions["times"](made, timesteps)

    def hint(self, edges: Tensor) -> Tensor:
        height, width = (side // self.latent_scale for side in edges.shape)
        made = torch.empty(self.hint_channels, height, width, dtype=self.dtype, device=self.device)
        return self.sessions["hint"](made, edges)

    def functions(self, attend: Attend, mode: str | None) -> ModelFunctions:
        return ModelFunctions(self._predict, self._decode)

    def _predict(self, side_stream: SideStream) -> Predict:
        return partial(_predict, self.sessions["step"])

    def _decode(self, latents: Tensor) -> Tensor:
        height, width = (side * self.latent_scale for side in latents.shape[1:])
        made = torch.empty(height, width, 3, dtype=torch.uint8, device=latents.device)
        return self.sessions["vae"](made, latents)


def _predict(step: Session, moment: StepInputs) -> Tensor:
    latents = moment.latents
    noise = torch.empty(latents.shape, dtype=torch.float32, device=latents.device)
    scales = moment.control_scale, moment.guidance_scale, moment.inverse_temperature
    return step(noise, latents, moment.times, moment.text, moment.hint, *scales)


def load(config: EngineConfig, device: str) -> OnnxModel:
    """Open the files of a configuration. Raises RuntimeProblem, MissingWeightsError and UnsupportedSamplerError."""
    place, dtype = torch.device(device), dtype_of(config, device)
    sessions = _open(config, config.dtype_on(cuda=place.type == "cuda"), place)
    tokenizer, scheduler = small_parts(config)
    width, step = sessions["text"].shapes["keys_values"][1], sessions["step"]
    tokens, encode = Tokens(tokenizer, config.prompt), partial(_encode, sessions["text"], width, dtype)
    return OnnxModel(
        tokens=tokens,
        text=TextConditioning(encode, width, dtype, place, tokens.configured_negative),
        plans=plans_of(config.sampler, scheduler),
        device=place,
        dtype=dtype,
        hint_channels=step.shapes["hint"][3],
        latent_channels=step.shapes["latents"][1],
        latent_scale=int(step.facts["latent_scale"]),
        sessions=sessions,
    )


def _open(config: EngineConfig, dtype: str, place: torch.device) -> dict[str, Session]:
    """Open all files. The front end has checked them (`files.check`), but they may have been replaced since."""
    wanted, sessions, by_tensorrt = identity(config, dtype), {}, config.onnx_provider == "tensorrt"
    if by_tensorrt and (reason := without_tensorrt(place)):
        by_tensorrt = False
        log.warning("engine.onnx_provider is tensorrt, but %s; running on %s without TensorRT", reason, place)
    for path in paths(config, dtype):
        tensorrt = tensorrt_provider(path, config, dtype, place) if by_tensorrt else None
        sessions[path.stem] = Session(path, place, tensorrt)
        refuse_others(path, sessions[path.stem].facts, wanted)
    return sessions


def _encode(session: Session, width: int, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    return session(torch.empty(TEXT_TOKENS, width, dtype=dtype, device=tokens.device), tokens)
