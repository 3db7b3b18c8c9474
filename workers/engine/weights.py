"""Finds the weights of a model on this machine, in a folder or the Hugging Face cache, and reads them ahead.

It downloads nothing. Imports and reading weights take seconds each, and do not hinder each other. So a thread reads the
weights into the kernel's cache while Python imports.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

from workers.console import command
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.contract import UnusableModelError

# A file that shows where a part is, by the part's key in the `engine` section.
LANDMARKS = {"model": "unet/config.json", "controlnet": "config.json", "vae": "config.json"}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # files that can run any code when they are read
_NETWORK = "diffusion_pytorch_model"
# File names without extension, by the component's folder.
COMPONENTS = {"unet": _NETWORK, "controlnet": _NETWORK, "vae": _NETWORK, "text_encoder": "model"}
_CHUNK_BYTES = 2**23  # that are read ahead at a time


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
    """The weights of a (located) configuration that are not on this machine."""
    return [
        f"engine.{name}: {weights.path}" + f" ({weights.file})" * (weights.file is not None and is_single_file(weights))
        for name, weights in parts_of(engine)
        if folder_of(name, weights) is None
    ]


def folder_of(name: str, weights: Weights) -> Path | None:
    """The folder of a part ("model", "controlnet", "vae", "loras.0"), or None when it is not here."""
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


# -------------------------------------------------------------------------------------------------------- reading ahead


def read_ahead(config: EngineConfig, device: str) -> Thread:
    """Start a thread that reads a model's files into the kernel's cache.

    It reads them, as the kernel takes advice (WILLNEED) for a few hundred KiB at a time only. Loading the model's parts
    in parallel is no alternative: diffusers and transformers change torch's own classes while they load one.
    """
    thread = Thread(target=_read, args=(config, device), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read(config: EngineConfig, device: str) -> None:
    room = bytearray(_CHUNK_BYTES)
    with suppress(OSError):  # whatever loads them reports it
        for path in files(config, device):
            with path.open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass


def files(config: EngineConfig, device: str) -> Iterator[Path]:
    """The weights of a model, in about the order in which they are loaded.

    Raises MissingWeightsError.
    """
    half = config.dtype_on(cuda=device.startswith("cuda")) != "float32"
    model = _folder("model", config.model)
    folders = {part: model and model / part for part in ("unet", "text_encoder")}
    for part in ("controlnet", "vae"):
        folders[part] = _folder(part, getattr(config, part)) or (model and model / part)
    for part, folder in folders.items():
        if folder is not None:
            yield weight_file(folder, COMPONENTS[part], half=half)
    for name, lora in named_loras(config):
        if (folder := folder_of(name, lora)) is not None:
            yield folder / lora.file


def _folder(name: str, weights: Weights | None) -> Path | None:
    return None if weights is None else folder_of(name, weights)
