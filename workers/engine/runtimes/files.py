"""ONNX files of a model: their folder, the facts in them, and whether they belong to a configuration.

Imports torch and ONNX only when needed, as the front end uses this module, too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.console import command
from workers.engine.config import EngineConfig, Lora, Weights, installed, rows_of
from workers.engine.weights import folder_of, parts_of

VERSION = "3"  # of the graphs' inputs and outputs; files of another version are refused
GRAPHS = ("step", "vae", "text", "hint", "times")  # a file each
PACKAGES = ("onnx", "onnxruntime")
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"
CONVERT = command("-m", "workers.convert", "CONFIG", "--to", "onnx")
INSTALL = command("-m", "pip", "install", "-c", "constraints.txt", ".[onnx]")
_PREFIX = "contour."
_READ = ("*.safetensors", "config.json")
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # per file: training changes weights everywhere


class RuntimeProblem(RuntimeError):
    """A runtime cannot be used as configured; the message says why and what to do."""


def label(engine: EngineConfig) -> str:
    """The folder name for a (located) configuration's files."""
    assert engine.model is not None
    named = [(name, part.path, part.revision, getattr(part, "scale", None)) for name, part in parts_of(engine)]
    return f"{Path(engine.model.path).name}-{digest([named, rows_of(engine.guidance_scale)])[:8]}"


def identity(engine: EngineConfig, dtype: str) -> dict[str, str]:
    """The facts in the files of a (located) configuration, without what may change without new files: sampler, sizes,
    slots and scales."""
    parts = [(name, _contents(name, part), getattr(part, "scale", None)) for name, part in parts_of(engine)]
    return {"version": VERSION, "dtype": dtype, "model": digest([parts, rows_of(engine.guidance_scale)])}


def check(engine: EngineConfig, dtype: str, *, cuda: bool = False) -> None:
    """Raises RuntimeProblem where ONNX Runtime cannot run a (located) configuration, on a GPU with `cuda`: packages or
    files are missing, or the files belong to something else."""
    need(PACKAGES, "engine.runtime is onnxruntime")
    if cuda:
        _need_cuda()
    if dtype not in ("float32", "float16"):
        raise RuntimeProblem(f"engine.dtype is {dtype}: ONNX files are made in float32 and float16 only")
    wanted = identity(engine, dtype)
    for path in paths(engine, dtype):
        if not path.is_file():
            raise RuntimeProblem(f"{path} is missing; make it with: {CONVERT} --dtype {dtype}")
        refuse_others(path, written(path), wanted)


def need(packages: Sequence[str], why: str, install: str = INSTALL) -> None:
    """Raises RuntimeProblem when one of these packages is not installed."""
    if missing := [name for name in packages if not installed(name)]:
        raise RuntimeProblem(f"{why}, but {missing[0]} is not installed: {install}")


def _need_cuda() -> None:
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeProblem(
            "engine.runtime is onnxruntime, but the onnxruntime that is installed knows no GPU: install "
            "onnxruntime-gpu in its place, or compute on the CPU with CUDA_VISIBLE_DEVICES= (empty)"
        )


def refuse_others(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises RuntimeProblem when a file was made for something else."""
    reasons = {
        "version": f"was made by another version of contour ({found.get('version', 'none is written in it')})",
        "dtype": f"is of {found.get('dtype')}, not {wanted['dtype']}",
        "model": "was made of other weights than the configuration names now",
    }
    for key, reason in reasons.items():
        if found.get(key) != wanted[key]:
            raise RuntimeProblem(f"{path} {reason}; make it again with: {CONVERT} --dtype {wanted['dtype']}")


def paths(engine: EngineConfig, dtype: str) -> list[Path]:
    """The expected files."""
    return [folder_for(engine, dtype) / f"{name}.onnx" for name in GRAPHS]


def folder_for(engine: EngineConfig, dtype: str) -> Path:
    """The folder of a (located) configuration's files."""
    return Path(engine.onnx).expanduser() / label(engine) / dtype


def written(path: Path) -> dict[str, str]:
    """The facts in a file. Raises RuntimeProblem when it is no ONNX file."""
    return facts_in({entry.key: entry.value for entry in _load(path).metadata_props})


def free_dimensions(path: Path) -> tuple[dict[str, list[int | None]], dict[str, str]]:
    """The shape of each input of a file, None for dimensions that are free, and the facts in it.

    Raises RuntimeProblem when it is no ONNX file.
    """
    model = _load(path)
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    inputs = {name: [dim.dim_value or None for dim in shape] for name, shape in dims.items()}
    return inputs, facts_in({entry.key: entry.value for entry in model.metadata_props})


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise RuntimeProblem(f"{path} cannot be read ({error}); make it again with: {CONVERT}") from error


def to_write(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts as keys of a file, with our prefix."""
    return {_PREFIX + key: value for key, value in facts.items()}


def facts_in(written: Mapping[str, str]) -> dict[str, str]:
    """The facts among a file's keys."""
    return {key.removeprefix(_PREFIX): value for key, value in written.items() if key.startswith(_PREFIX)}


def _contents(name: str, part: Weights) -> Any:
    """The identity of a part: a commit, or samples of its weights and of what its networks are built by."""
    if part.revision is not None:
        return part.path, part.revision
    folder = folder_of(name, part)
    if folder is None:
        return None
    if isinstance(part, Lora):
        return _sample(folder / part.file)
    places = [place for pattern in _READ for place in (pattern, f"*/{pattern}")]  # unlike **, * follows links
    files = sorted(file for place in places for file in folder.glob(place))
    return [(str(file.relative_to(folder)), _sample(file)) for file in files]


def _sample(path: Path) -> str:
    size, found = path.stat().st_size, hashlib.sha256()
    found.update(str(size).encode())
    with path.open("rb") as file:
        for n in range(_SAMPLES):
            file.seek(n * max(1, size // _SAMPLES))
            found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()


def digest(value: Any) -> str:
    """A hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
