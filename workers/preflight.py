"""Check that the files and the sampler of a configuration exist and fit together, before a worker starts.

Otherwise a worker would fail, and be started again and again. Files are checked here, by their names and headers. Only
torch and diffusers can tell whether an unusual sampler or a LoRA works: a separate process (`workers.engine.tryout`)
tries it, and a note in the cache keeps the next start from trying it again.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from workers.confinement import without_secrets
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.model_checks import (
    VAE_CLASSES,
    UnsafeModelError,
    UnsupportedModelError,
    check_fit,
    check_folders,
    check_vae,
    read_object,
)
from workers.engine.samplers import is_proven
from workers.engine.weights import (
    COMPONENTS,
    LANDMARKS,
    PICKLES,
    folder_of,
    is_folder,
    is_single_file,
    parts_of,
)
from workers.folders import replace_file
from workers.schema import Problem, nearest

log = logging.getLogger("contour")

ROOT = Path(__file__).parents[1]
MAX_HEADER = 100_000_000  # bytes; that of the safetensors library
SECONDS = 180.0  # for torch and diffusers to be imported from a cold disk
MARK = "tried"  # a file of the cache: the last trial that went well
CLASSES = {"unet": ("UNet2DConditionModel",), "controlnet": ("ControlNetModel",), "vae": VAE_CLASSES}


def problems(engine: EngineConfig, cache: Path | None = None) -> list[Problem]:
    """Return the problems of a (located) configuration; `cache` is the folder for the note of the last trial.

    Weights that must be fetched first are not looked at: `weights.absent` tells of them.
    """
    if engine.kind != "diffusion":
        return []
    found = [problem for name, weights in parts_of(engine) for problem in _readable_part(name, weights)]
    folders = {name: folder_of(name, weights) for name, weights in parts_of(engine)}
    model, controlnet = folders.get("model"), folders.get("controlnet")
    if found or model is None or controlnet is None or None in folders.values():
        return found
    found = list(_misfits(model, controlnet, folders.get("vae")))
    return found or _tried(engine, model, cache)


# --------------------------------------------------------------------------------------------------------------- files


def _readable_part(name: str, weights: Weights) -> list[Problem]:
    try:
        return list(_part_problems(name, weights))
    except OSError as error:
        text = f"is {weights.path}, but {error.filename or 'it'} cannot be read: {error.strerror or 'unknown reason'}"
        return [Problem(("engine", *name.split("."), "path"), text)]


def _part_problems(name: str, weights: Weights) -> Iterator[Problem]:
    key, path = ("engine", *name.split(".")), Path(weights.path)
    if is_folder(weights) and not path.exists():
        what = "file" if is_single_file(weights) else "folder"
        yield Problem((*key, "path"), f"is {path}, but there is no such {what}{_neighbour(path)}")
        return
    if is_single_file(weights):
        return
    if (folder := folder_of(name, weights)) is None:
        if is_folder(weights):
            yield _not_such_a_part(name, weights, key)
        return
    if isinstance(weights, Lora):
        flaws = _file_flaws(folder / weights.file)
    else:
        flaws = _model_flaws(folder) if name == "model" else _component_flaws(folder, name)
    for text in flaws:
        yield Problem((*key, "path"), f"is {path}, but {text}")


def _not_such_a_part(name: str, weights: Weights, key: tuple[str, ...]) -> Problem:
    path = Path(weights.path)
    if isinstance(weights, Lora):
        near = _neighbour(path / weights.file)
        return Problem((*key, "file"), f"is {weights.file}, but there is no such file in {path}{near}")
    what = {"model": "a model", "controlnet": "a ControlNet", "vae": "a VAE"}[name]
    text = f"is {path}, which is not {what} in diffusers' layout: it has no {LANDMARKS[name]}"
    inner = min(path.glob(f"*/{LANDMARKS[name]}"), key=lambda each: (each.parent.name != name, each), default=None)
    near = f"; did you mean {inner.parents[LANDMARKS[name].count('/')]}?" if inner is not None else ""
    return Problem((*key, "path"), text + near)


def _neighbour(path: Path) -> str:
    """End a sentence about a missing path with the name beside it that is most like it."""
    try:
        return nearest(path.name, [each.name for each in path.parent.iterdir()]).removesuffix(".")
    except OSError:
        return f"; {path.parent} does not exist either"


def _model_flaws(folder: Path) -> Iterator[str]:
    for component in ("unet", "vae", "text_encoder"):
        yield from _component_flaws(folder / component, component)
    tokenizer, scheduler = folder / "tokenizer", folder / "scheduler" / "scheduler_config.json"
    if not (tokenizer / "tokenizer_config.json").is_file():
        yield f"there is no {tokenizer / 'tokenizer_config.json'}"
    elif not ((tokenizer / "tokenizer.json").is_file() or (tokenizer / "vocab.json").is_file()):
        yield f"there is no {tokenizer / 'tokenizer.json'}, and no vocab.json"
    if not scheduler.is_file():
        yield f"there is no {scheduler}"
    yield from _json_flaws(tokenizer, "tokenizer")
    yield from _json_flaws(folder / "scheduler", "scheduler")


def _component_flaws(folder: Path, component: str) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        yield f"there is no {folder / 'config.json'}"
        return
    yield from _json_flaws(folder, component)
    stem = folder / COMPONENTS[component]
    paths = [path for end in ("", ".fp16") if (path := Path(f"{stem}{end}.safetensors")).is_file()]
    flaws = [list(_file_flaws(path)) for path in paths]  # which one is read depends on the device
    if not paths:
        pickles = sorted(each.name for each in folder.iterdir() if each.suffix in PICKLES)
        only = f", only {pickles[0]}, a pickle, which can run any code and is not read" if pickles else ""
        yield f"there is no {stem}.safetensors{only}"
    elif all(flaws):
        yield from flaws[0]


def _json_flaws(folder: Path, component: str) -> Iterator[str]:
    try:
        check_folders(folder)
        path = folder / "config.json"
        found = read_object(path).get("_class_name") if path.is_file() else None
        if found is not None and found not in CLASSES.get(component, (found,)):
            yield f"{path} describes {found}, not {' or '.join(CLASSES[component])}"
    except UnsafeModelError as error:
        yield str(error)


def _file_flaws(path: Path) -> Iterator[str]:
    """Look at the header first: the libraries that can name other kinds of files take 0.4 s to import."""
    if _looks_whole(path):
        return
    from workers.weights.checkpoints import shapes_in
    from workers.weights.messages import FetchError

    try:
        shapes_in(path)
    except FetchError as error:
        yield str(error)


def _looks_whole(path: Path) -> bool:
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError), path.open("rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        return bool(size == 8 + length + max(ends))
    return False


def _misfits(model: Path, controlnet: Path, vae: Path | None) -> Iterator[Problem]:
    """Find networks that this engine does not run, or not together."""
    parts = (model / "unet", controlnet, model / "text_encoder")
    try:
        check_fit(*(read_object(folder / "config.json") for folder in parts))
    except UnsupportedModelError as error:
        part = "model" if "ControlNet" not in str(error) else "controlnet"
        yield Problem(("engine", part, "path"), f"is {model if part == 'model' else controlnet}, but {error}")
    try:
        check_vae(*(read_object(folder / "config.json") for folder in (vae or model / "vae", model / "vae")))
    except UnsupportedModelError as error:
        yield Problem(("engine", "vae" if vae else "model", "path"), f"is {vae or model}, but {error}")


# --------------------------------------------------------------------------------------------------------------- trial


def _tried(engine: EngineConfig, model: Path, cache: Path | None) -> list[Problem]:
    """Try the sampler and the LoRAs with torch and diffusers, unless they are known to work."""
    base = read_object(model / "scheduler" / "scheduler_config.json")
    if is_proven(engine.sampler, base) and not engine.loras:
        return []
    mark, wanted = cache and cache / MARK, _digest(engine, model, base)
    with suppress(OSError):
        if mark is not None and mark.read_bytes() == wanted:
            return []
    log.info("Trying the sampler and LoRAs of this new configuration; this takes some seconds")
    found = _asked(engine)
    if mark is not None and found == []:
        with suppress(OSError):
            replace_file(mark, wanted)
    return found or []


def _digest(engine: EngineConfig, model: Path, base: dict[str, Any]) -> bytes:
    """Hash all that a trial depends on."""
    from importlib.metadata import version

    files = [Path(part.path) / part.file for _, part in parts_of(engine) if isinstance(part, Lora) and is_folder(part)]
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    configs = [(model / part / "config.json").read_bytes() for part in ("unet", "text_encoder")]
    facts = [engine.sampler, engine.loras, stamps, base, configs, version("diffusers"), version("torch")]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest().encode()


def _asked(engine: EngineConfig) -> list[Problem] | None:
    """Return the problems that the trial found; None if it came to no end, so that the workers must find out."""
    with suppress(OSError, subprocess.TimeoutExpired, msgspec.DecodeError):
        done = subprocess.run(
            [sys.executable, "-m", "workers.engine.tryout"],
            cwd=ROOT,
            env=without_secrets(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            input=msgspec.json.encode(engine),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        found = msgspec.json.decode(done.stdout, type=list[tuple[tuple[str, ...], str]])
        return [Problem(key, text) for key, text in found]
    return None
