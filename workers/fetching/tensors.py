"""Safetensors files: whether they are what they are called, and the same weights in another number format."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from workers.fetching.errors import FetchError

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
    """The tensors of a file by their shapes. Raises FetchError when it is no safetensors file."""
    return {key: shape for key, (_, shape) in _header(path).items()}


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """(number format, shape) of each tensor; the library checks that the file has all of them."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
            return {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    except SafetensorError as error:
        raise FetchError(f"{path} is no whole safetensors file: it is {_what(path, error)}") from error


def _what(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        begin = file.read(max(map(len, _MAGIC)))
    return next((text for magic, text in _MAGIC.items() if begin.startswith(magic)), f"damaged or cut off ({error})")


def is_ready(path: Path, dtype: str) -> bool:
    """Whether a file can be used as it is: its numbers are in this format, and it says that it is torch's.

    Raises FetchError when it is no safetensors file.
    """
    found = {code for code, _ in _header(path).values()}
    return found <= {_CODES[dtype]} | _WHOLE_NUMBERS and _says_torch(path)


def _says_torch(path: Path) -> bool:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return bool(header.get("__metadata__", {}).get("format") == _METADATA["format"])


def read(paths: Sequence[Path], prefix: str = "") -> dict[str, "Tensor"]:
    """The tensors of files whose names begin with a prefix. They are read when they are used."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def write(tensors: Mapping[str, "Tensor"], dtype: str, target: Path, what: str) -> None:
    """Write tensors in a number format; who is killed meanwhile may leave other files beside. Raises FetchError."""
    from safetensors.torch import save_file

    try:
        save_file(
            {name: _cast(tensor, dtype, f"{what}: {name}") for name, tensor in tensors.items()}, target, _METADATA
        )
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
    target.chmod(0o666 & ~_umask())  # the library lets nobody else read it


def _umask() -> int:
    mask = os.umask(0)  # it can only be told by setting it
    os.umask(mask)
    return mask


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
