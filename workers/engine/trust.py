"""Refuses model folders that could make a loader run code or read other files: they come from strangers.

diffusers and transformers read JSON files beside the weights. Most of their keys are numbers of an architecture; some
name code to import from the hub, quantisers to install, or other files to read. None of those is needed here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.engine.contract import UnusableModelError

_CODE = "it names code for the loader to import"
_FILES = "it names other files for the loader to read"
_QUANTISED = "weights in other formats than float are not supported"
_KEYS = {
    "auto_map": _CODE,
    "trust_remote_code": _CODE,
    "attn_implementation": _CODE,
    "_attn_implementation": _CODE,
    "_attn_implementation_internal": _CODE,
    "_experts_implementation": _CODE,
    "experts_implementation": _CODE,
    "use_kernels": _CODE,
    "kernel_config": _CODE,
    "fusion_config": _CODE,
    "distributed_config": _CODE,
    "quantization_config": _QUANTISED,
    "base_model_name_or_path": _FILES,
    "transformers_weights": _FILES,
    "gguf_file": _FILES,
    "fast_tokenizer_files": _FILES,
    "init_inputs": _FILES,
    "tokenizer_file": _FILES,
    "tokenizer_object": _FILES,
    "vocab": _FILES,
    "vocab_file": _FILES,
    "merges": _FILES,
    "merges_file": _FILES,
}
_READ = ("*config.json", "special_tokens_map.json")
# Files whose presence alone changes what is loaded.
_UNWANTED = {"adapter_config.json": "a model to load instead", "*.index*.json": "files to read the weights from"}


class UnsafeModelError(UnusableModelError, ValueError):
    """A model folder could make a loader run code or read other files; the message names the file and what to do."""


def check(*folders: Path) -> None:
    """Look through the JSON files of a model's parts before anything loads them. Raises UnsafeModelError."""
    for folder in folders:
        for pattern, what in _UNWANTED.items():
            for path in folder.glob(pattern):
                raise UnsafeModelError(f"{path} may name {what}, which is refused: remove the file")
        for path in sorted(path for pattern in _READ for path in folder.glob(pattern)):
            _check_file(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UnsafeModelError when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"{path} is not JSON ({error}): get the model again") from error
    if not isinstance(content, dict):
        raise UnsafeModelError(f"{path} holds no JSON object: get the model again")
    return content


def _check_file(path: Path) -> None:
    for key, value in _entries(read_object(path)):
        if key in _KEYS and value not in (None, False):
            raise UnsafeModelError(f"{path} sets {key}, which is refused, as {_KEYS[key]}: remove that key")


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Keys and values at any depth: loaders look into nested objects too."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as inner:
                yield from inner.items()
                waiting.extend(inner.values())
            case list() as inner:
                waiting.extend(inner)
