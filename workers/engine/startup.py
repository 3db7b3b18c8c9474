"""A fast start: what its seconds are spent on, in the log, and weights that are read ahead.

Weights are brought into memory while Python imports what is to load them: seconds each, and one does not hinder the
other.
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
    """Log, when it is done, how many seconds it took."""
    began = time.monotonic()
    yield
    _log.info("%s in %.2f s", what, time.monotonic() - began)


def read_ahead(config: EngineConfig, device: str) -> Thread:
    """Have the files that a model is loaded from read into the kernel's cache, by a thread that ends with that.

    They are read, as the kernel takes advice (WILLNEED) for a few hundred KiB at a time only. Nor are the model's parts
    loaded side by side instead: diffusers and transformers change torch's own classes while they load one.
    """
    thread = Thread(target=_read, args=(config, device), name="reads ahead", daemon=True)
    thread.start()
    return thread


def _read(config: EngineConfig, device: str) -> None:
    room = bytearray(_CHUNK_BYTES)
    with suppress(OSError):  # whoever loads it will say what is wrong
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
