"""The `workers` section of a configuration file, and where the weights of the `engine` section are."""

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from workers.engine.config import Canny, EngineConfig, Lora, Sizing, Weights
from workers.engine.contract import BadImageError
from workers.engine.header import output_size
from workers.engine.samplers import unknown
from workers.engine.weights import PICKLES, is_folder, named_loras
from workers.schema import SHOWN_CHARS, Problem, show
from workers.weights.store import find

AnyWeights = TypeVar("AnyWeights", bound=Weights)

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PLACES = "a folder (./x, ../x or /x) or a repository on the hub (owner/name)"
COMMIT = re.compile(r"[0-9a-f]{40}")
_FOR_TORCH = {  # keys of `speed` that other runtimes do not look at
    "onnxruntime": ("compile", "attention", "time_convolutions"),
    "openvino": ("attention", "time_convolutions"),
}


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The worker processes and their resources."""

    cpu_workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Worker processes when no GPU is used."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Compute threads of each worker; `auto` divides the cores among the workers."""
    output_bytes: Annotated[int, Meta(ge=2**16, le=2**30)] = 16 * 2**20
    """Shared memory for the output file in each slot of a worker: the largest file that it can return."""
    cache: Annotated[str, Meta(min_length=1)] = "~/.cache/contour"
    """Folder for what compilers make, kept for the next start. TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR,
    ORT_TENSORRT_CACHE_PATH and OPENVINO_CACHE_PATH take precedence."""
    models: Annotated[str, Meta(min_length=1)] = "~/.cache/contour/models"
    """Folder of the weights that `workers.fetch` prepares."""
    harmless_xids: list[int] = field(default_factory=lambda: [13, 31, 43, 45, 68, 109])
    """XID errors after which a GPU stays in service: errors of an application, or ones that the GPU recovers from. The
    default is that of NVIDIA's k8s-device-plugin."""

    def threads_per_worker(self, cores: int, workers: int) -> int:
        """Compute threads of each of `workers` processes on a machine with `cores`."""
        return max(1, cores // workers) if self.threads == "auto" else self.threads


def locate(engine: EngineConfig, folder: Path, models: str | None = None) -> EngineConfig:
    """Replace paths of weights by where they are: relative paths start at the folder of the configuration file.

    Weights that `workers.fetch` has prepared get the path of their folder in `models`.
    """
    place = partial(_placed, folder, models_folder(models) if models else None, engine.dtype)
    return replace(
        engine,
        model=engine.model and place("model", engine.model),
        controlnet=engine.controlnet and place("controlnet", engine.controlnet),
        vae=engine.vae and place("vae", engine.vae),
        loras=[place("loras", lora) for lora in engine.loras],
        onnx=str(folder.absolute() / (home_folder(engine.onnx) or engine.onnx)),
    )


def models_folder(models: str | Path) -> Path | None:
    """The folder of prepared weights; None when it is in the home of a user who has none."""
    folder = home_folder(models)
    return folder and folder.absolute()


def home_folder(path: str | Path) -> Path | None:
    """A folder that may begin with `~`; None when it is in the home of a user who has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def _placed(folder: Path, models: Path | None, dtype: str, part: str, weights: AnyWeights) -> AnyWeights:
    weights = _located(weights, folder)
    prepared = find(models, part, weights, dtype) if models else None
    if prepared is None:
        return weights
    weights = replace(weights, path=str(prepared), revision=None)
    return weights if isinstance(weights, Lora) else replace(weights, file=None)


def _located(weights: AnyWeights, folder: Path) -> AnyWeights:
    if not is_folder(weights):
        return weights
    weights = replace(weights, path=str((folder / weights.path).resolve()), revision=None)  # a folder has no revision
    if weights.file is None or isinstance(weights, Lora):
        return weights
    return replace(weights, path=str(Path(weights.path) / weights.file), file=None)


def engine_problems(engine: EngineConfig) -> list[Problem]:
    """Return the problems between values of an `engine` section, each of which is valid by itself."""
    weights: dict[str, Weights | None] = {}
    if engine.kind == "diffusion":
        weights = {"model": engine.model, "controlnet": engine.controlnet}
        weights |= ({"vae": engine.vae} if engine.vae else {}) | dict(named_loras(engine))
    found = {
        **{key: text for name, part in weights.items() for key, text in weights_problems(name, part).items()},
        **_canny_problems(engine.canny),
        **_size_problems(engine.size),
        **_runtime_problems(engine),
        **_speed_problems(engine),
        **_sampler_problems(engine),
    }
    return [Problem(("engine", *key.split(".")), text) for key, text in found.items()]


def weights_problems(name: str, weights: Weights | None) -> dict[str, str]:
    """Return why the configured weights of a part cannot be found, by key."""
    if weights is None:
        return {name: f"is missing: kind diffusion needs a path, {PLACES}"}
    if weights.path.endswith(PICKLES):
        return {
            f"{name}.path": f"is {show(weights.path)}, a pickle, which can run any code: choose a .safetensors file"
        }
    if is_folder(weights):
        return {}
    if weights.path.endswith(".safetensors"):
        return {
            f"{name}.path": f"is {show(weights.path)}: write ./{weights.path} if it is a file beside this configuration"
        }
    if not REPOSITORY.fullmatch(weights.path):
        return {f"{name}.path": f"is {show(weights.path)}, but must be {PLACES}"}
    if not COMMIT.fullmatch(weights.revision or ""):
        found = weights.revision[:SHOWN_CHARS] if weights.revision else "missing"
        text = f"is {found}, but must be the repository's commit: 40 digits of 0-9 and a-f"
        return {f"{name}.revision": text}
    return {}


def _canny_problems(canny: Canny) -> dict[str, str]:
    if canny.low <= canny.high:
        return {}
    return {"canny.low": f"is {canny.low}, but must not be above canny.high ({canny.high})"}


def _runtime_problems(engine: EngineConfig) -> dict[str, str]:
    """Settings that the configured runtime would ignore."""
    found, but = {}, f"but engine.runtime is {engine.runtime}"
    if engine.runtime == "openvino" and engine.speed.compile is False:
        found["speed.compile"] = f"is false, {but}, which takes over as compiled networks do: leave one of them out"
    if engine.quantisation != "none" and engine.runtime not in ("auto", "torch"):
        found["quantisation"] = f"is {engine.quantisation}, {but}, and this is for torch: leave one of them out"
    for name in _FOR_TORCH.get(engine.runtime, ()):
        if (value := getattr(engine.speed, name)) not in ("auto", False):
            found[f"speed.{name}"] = f"is {show(value)}, {but}, and this is for torch: leave one of them out"
    if engine.runtime != "onnxruntime" and engine.onnx_provider != "auto":
        found["onnx_provider"] = f"is {engine.onnx_provider}, {but}: it needs onnxruntime"
    return found


def _speed_problems(engine: EngineConfig) -> dict[str, str]:
    sizes = ((n, _useless(size, engine.size)) for n, size in enumerate(engine.speed.sizes))
    return {f"speed.sizes.{n}": f"is {list(engine.speed.sizes[n])}, but {text}" for n, text in sizes if text}


def _useless(size: tuple[int, int], sizing: Sizing) -> str:
    """Return why no image has this size (width, height); empty if images have it."""
    if any(side % sizing.multiple for side in size):
        return f"both must be multiples of size.multiple ({sizing.multiple})"
    with suppress(BadImageError):
        if output_size(*size, sizing) == size:
            return ""
    sides = f"size.short_side ({sizing.short_side}) or the long one size.long_side ({sizing.long_side})"
    return f"no image gets that size: the short side is {sides}"


def _sampler_problems(engine: EngineConfig) -> dict[str, str]:
    wrong = unknown(engine.sampler.name)
    return {} if wrong is None else {"sampler.name": wrong}


def _size_problems(size: Sizing) -> dict[str, str]:
    found = {
        f"size.{name}": f"is {side}, but must be a multiple of size.multiple ({size.multiple})"
        for name, side in (("short_side", size.short_side), ("long_side", size.long_side))
        if side % size.multiple
    }
    if size.short_side > size.long_side:
        found["size.short_side"] = f"is {size.short_side}, but must not be above size.long_side ({size.long_side})"
    return found
