"""A fast start: the log shows where its seconds go, and weights are read ahead.

Imports and reading weights take seconds each, and do not hinder each other. So a thread reads the weights into the
kernel's cache while Python imports.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from workers.engine.config import EngineConfig, Weights
from workers.engine.weights import COMPONENTS, folder_of, named_loras, weight_file

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**23


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how many seconds the context took."""
    began = time.monotonic()
    yield
    _log.info("%s in %.2f s", what, time.monotonic() - began)


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
    control = _folder("controlnet", config.controlnet) or (model and model / "controlnet")
    for part, folder in (("unet", model), ("text_encoder", model), ("controlnet", control), ("vae", model)):
        if folder is not None:
            yield weight_file(folder if part == "controlnet" else folder / part, COMPONENTS[part], half=half)
    for name, lora in named_loras(config):
        if (folder := folder_of(name, lora)) is not None:
            yield folder / lora.file


def _folder(name: str, weights: Weights | None) -> Path | None:
    return None if weights is None else folder_of(name, weights)
