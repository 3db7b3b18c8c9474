"""Finds the weights of a model on this machine, in a folder or the Hugging Face cache. Downloads nothing."""

from collections.abc import Iterator
from pathlib import Path

from workers.console import command
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.contract import UnusableModelError

# A file that shows where a part is, by the part's key in the `engine` section.
LANDMARKS = {"model": "unet/config.json", "controlnet": "config.json"}
_NETWORK = "diffusion_pytorch_model"
# File names without extension, by the component's folder.
COMPONENTS = {"unet": _NETWORK, "controlnet": _NETWORK, "vae": _NETWORK, "text_encoder": "model"}


class MissingWeightsError(UnusableModelError, FileNotFoundError):
    """A part of the model is not on this machine; the message names it and the command that gets it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is missing; get it with: {command('-m', 'workers.fetch', 'CONFIG')}")


def is_folder(weights: Weights) -> bool:
    """A path that begins with `.` or `/` is a folder; any other is a repository on the hub."""
    return weights.path.startswith((".", "/"))


def is_single_file(weights: Weights) -> bool:
    """Whether all parts of a model are in one file, as other programs write it: it is converted before it is read."""
    return not isinstance(weights, Lora) and (weights.file is not None or weights.path.endswith(".safetensors"))


def parts_of(engine: EngineConfig) -> Iterator[tuple[str, Weights]]:
    """The parts of the model that have weights, by their keys."""
    if engine.kind == "diffusion":
        yield from ((name, part) for name in LANDMARKS if (part := getattr(engine, name)) is not None)
        yield from named_loras(engine)


def named_loras(engine: EngineConfig) -> Iterator[tuple[str, Lora]]:
    """The LoRAs by their keys: "loras.0", and so on."""
    return ((f"loras.{n}", lora) for n, lora in enumerate(engine.loras))


def absent(engine: EngineConfig) -> list[str]:
    """What is not on this machine of the weights that a (located) configuration names; empty when all of it is."""
    return [
        f"engine.{name}: {weights.path}" + f" ({weights.file})" * (weights.file is not None and is_single_file(weights))
        for name, weights in parts_of(engine)
        if folder_of(name, weights) is None
    ]


def folder_of(name: str, weights: Weights) -> Path | None:
    """The folder of a part ("model", "controlnet", "loras.0"), or None when it is not here."""
    landmark = weights.file if isinstance(weights, Lora) else LANDMARKS[name]
    if is_single_file(weights):
        return None  # what was made of it is a folder, and `locate` would have named that
    if is_folder(weights):
        return Path(weights.path) if (Path(weights.path) / landmark).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.path, landmark, revision=weights.revision)
    return Path(found.removesuffix(landmark)) if isinstance(found, str) else None


def weight_file(folder: Path, stem: str, *, half: bool) -> Path:
    """A component's file. Those in half precision are half to read; for float32 they are the second choice.

    Raises MissingWeightsError.
    """
    full, halved = folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"
    for path in (halved, full) if half else (full, halved):
        if path.is_file():
            return path
    raise MissingWeightsError(str(full))
