"""Safetensors files: whether they are that, and the same weights in another number format."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from workers.weights.errors import FetchError

if TYPE_CHECKING:
    from torch import Tensor

_CODES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}
_WHOLE_NUMBERS = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}
_METADATA = {"format": "pt"}  # without it transformers refuses a file
_MAGIC = {  # how other files begin
    b"version https://git-lfs": "a pointer of Git LFS, not what it points at: run git lfs pull",
    b"PK\x03\x04": "a zip, as torch.save writes: a pickle, which can run any code and is not read",
    b"\x80": "a pickle, which can run any code and is not read",
    b"<": "a page of HTML or XML: what answered was not the hub",
}


def shapes_in(path: Path) -> dict[str, list[int]]:
    """Return the shapes of a file's tensors. Raises FetchError if it is no safetensors file."""
    return {key: shape for key, (_, shape) in _header(path).items()}


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return (number format, shape) of each tensor. The library checks that the file has all of them."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
            return {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    except SafetensorError as error:
        raise FetchError(f"{path} is no whole safetensors file: it is {_kind_of(path)}") from error


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(max(map(len, _MAGIC)))
    return next((text for magic, text in _MAGIC.items() if begin.startswith(magic)), "damaged or cut off")


def is_ready(path: Path, dtype: str) -> bool:
    """Return whether a file is in this number format and marked as torch's, so that it needs no conversion.

    Raises FetchError if it is no safetensors file.
    """
    formats = {code for code, _ in _header(path).values()}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    marked = header.get("__metadata__", {}).get("format") == _METADATA["format"]
    return marked and formats <= {_CODES[dtype]} | _WHOLE_NUMBERS


def read(paths: Sequence[Path], prefix: str = "") -> dict[str, "Tensor"]:
    """Return the tensors of files whose names begin with a prefix. Their bytes are read when they are used."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def write(tensors: Mapping[str, "Tensor"], dtype: str, target: Path, what: str) -> None:
    """Write tensors to a file in a number format. Raises FetchError and OSError."""
    from safetensors.torch import save_file

    cast = {name: _cast(tensor, dtype, f"{what}: {name}") for name, tensor in tensors.items()}
    target.touch()
    mode = target.stat().st_mode
    try:
        save_file(cast, target, _METADATA)
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
    target.chmod(mode)  # the library lets nobody else read it


def _cast(tensor: "Tensor", dtype: str, what: str) -> "Tensor":
    import torch

    if not tensor.is_floating_point():
        return tensor.contiguous()
    cast = tensor.to(getattr(torch, dtype)).contiguous()
    if not cast.isfinite().all():
        if not tensor.isfinite().all():
            raise FetchError(f"{what} has values that are not numbers: the file is damaged")
        raise FetchError(f"{what} goes up to {tensor.abs().max():g}, which {dtype} cannot hold: choose another --dtype")
    return cast
