"""TensorRT engines of the ONNX files: built on the machine and for the GPU that is to run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workers.console import command
from workers.engine.config import EngineConfig
from workers.engine.runtimes.files import GRAPHS, RuntimeProblem
from workers.folders import replace_file

PACKAGE = "tensorrt"
INSTALL = f"{command('-m', 'pip', 'install', 'tensorrt')}, on a machine with an NVIDIA GPU and its driver"
Shape = tuple[int, ...]
_WORKSPACE_BYTES = 4 * 2**30
_TIMING_CACHE = "timing.cache"
_BATCHED = ("latents:step", "times", "text", "hint", "control_scale", "guidance_scale", "coldness")


@dataclass(frozen=True, slots=True)
class Range:
    """How large the free dimensions of a graph's inputs may be: batch, and sides of the latents."""

    slots: int
    shortest: int
    nominal: int
    longest: int

    @classmethod
    def of(cls, engine: EngineConfig, latent_scale: int) -> "Range":
        """What a configuration can ask for."""
        size = engine.size
        sides = (size.multiple, size.short_side, size.long_side)
        return cls(engine.slots, *(max(1, side // latent_scale) for side in sides))

    def shapes(self, name: str, shape: Sequence[int | str], latent_scale: int) -> tuple[Shape, Shape, Shape]:
        """Least, usual and greatest shape of an input with fixed and free (negative) dimensions."""
        pixels = latent_scale if name == "edges" else 1
        free = {
            "batch": (1, self.slots, self.slots),
            "calls": (1, 20, 1000),  # of samplers: what diffusers' have by default, and as many as they can be trained
            "side": (self.shortest * pixels, self.nominal * pixels, self.longest * pixels),
        }
        kinds = [_kind(name, n) for n in range(len(shape))]
        picks = [
            free[kind] if not isinstance(size, int) or size < 0 else (size,) * 3
            for kind, size in zip(kinds, shape, strict=True)
        ]
        least, usual, greatest = zip(*picks, strict=True)
        return least, usual, greatest


def _kind(name: str, axis: int) -> str:
    if name == "timesteps":
        return "calls"
    return "batch" if name in _BATCHED and axis == 0 else "side"


def missing() -> str | None:
    """What is not there of what TensorRT needs, with what to do; None when it is all there."""
    if find_spec(PACKAGE) is None:
        return f"TensorRT is not installed (no Python package {PACKAGE}): {INSTALL}"
    import torch

    if not torch.cuda.is_available():
        return "TensorRT is installed, but no NVIDIA GPU can be used: engines are built on the GPU that runs them"
    return None


def build(engine: EngineConfig, folder: Path, latent_scale: int, *, half: bool) -> list[Path]:
    """Make an engine beside each ONNX file of a folder; their paths. Raises RuntimeProblem."""
    if (problem := missing()) is not None:
        raise RuntimeProblem(problem)
    wanted = Range.of(engine, latent_scale)
    return [_build(folder / f"{name}.onnx", wanted, latent_scale, half=half) for name in GRAPHS]


def _build(path: Path, wanted: Range, latent_scale: int, *, half: bool) -> Path:
    import tensorrt as trt

    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(0)
    _parse(trt, network, path)
    config, cache = _settings(trt, builder, path.parent / _TIMING_CACHE, half=half)
    config.add_optimization_profile(_profile(builder, network, path.stem, wanted, latent_scale))
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise RuntimeProblem(f"TensorRT could not build {path}; the reason is in what it printed above")
    replace_file(path.parent / _TIMING_CACHE, bytes(cache.serialize()))
    return replace_file(path.with_suffix(".plan"), bytes(made))


def _parse(trt: Any, network: Any, path: Path) -> None:
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise RuntimeProblem(f"TensorRT cannot read {path}: {errors}")


def _settings(trt: Any, builder: Any, cache_path: Path, *, half: bool) -> tuple[Any, Any]:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if half and hasattr(trt.BuilderFlag, "FP16"):  # from version 11 on, the files' own types decide
        config.set_flag(trt.BuilderFlag.FP16)
    cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return config, cache


def _profile(builder: Any, network: Any, graph: str, wanted: Range, latent_scale: int) -> Any:
    profile = builder.create_optimization_profile()
    for n in range(network.num_inputs):
        value = network.get_input(n)
        name = "latents:step" if (graph, value.name) == ("step", "latents") else value.name
        if -1 in tuple(value.shape):
            profile.set_shape(value.name, *wanted.shapes(name, tuple(value.shape), latent_scale))
    return profile
