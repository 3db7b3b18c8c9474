"""Converts the engine's networks to OpenVINO's files, in a process of its own, and finds them again.

That process has the lowest priority, takes no lock of the worker's interpreter, and gives its memory back when it ends.

python -m workers.engine.runtimes.openvino_files FOLDER PARENT < engine.json
"""

import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from workers.engine.config import EngineConfig, rows_of
from workers.engine.runtimes.files import digest, identity, label
from workers.folders import make

if TYPE_CHECKING:
    pass


CACHE = "OPENVINO_CACHE_PATH"  # set by the worker's process to a folder of workers.cache
NETWORKS = ("step", "vae")
STORED = "float32"
TIMEOUT_S = 1800.0
_ROOT = Path(__file__).parents[3]
_VERSION = "1"  # of the converted networks' inputs and outputs
_LOWEST_PRIORITY = 19
_COMPILED_BYTES = 4 * 2**30


class ConversionError(RuntimeError):
    """The networks could not be converted."""


def folder_for(config: EngineConfig) -> Path:
    """The folder of a (located) configuration's converted networks."""
    cache = os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"contour-openvino-{os.geteuid()}"
    made_by = version("openvino"), version("torch"), _VERSION
    return Path(cache) / f"{label(config)}-{digest([identity(config, STORED), made_by])[:16]}"


def is_complete(folder: Path) -> bool:
    """Whether all networks are in a folder."""
    return all((folder / f"{name}.{kind}").is_file() for name in NETWORKS for kind in ("xml", "bin"))


def prune(folder: Path) -> None:
    """Delete the oldest files of compiled networks, where they exceed a bound."""
    files = sorted(folder.glob("*.blob"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file, total in zip(files, accumulate(file.stat().st_size for file in files), strict=True):
        if total > _COMPILED_BYTES:
            file.unlink(missing_ok=True)


def convert(config: EngineConfig, folder: Path) -> None:
    """Convert a (located) configuration's networks in another process, and wait for it. Raises ConversionError."""
    command = [sys.executable, "-m", __name__, str(folder), str(os.getpid())]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, cwd=_ROOT, input=msgspec.json.encode(config), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"converting took more than {TIMEOUT_S:g} s") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConversionError(f"converting ended with exit code {done.returncode}: {last}")


def write(config: EngineConfig, folder: Path) -> None:
    """Convert the networks of a (located) configuration into a folder, whole or not at all.

    They are in float32, whatever they are computed in. OpenVINO keeps the weights of a compiled network as float32
    besides its own copy. It maps files of float32 and shares them, but makes others float32 in memory, for each copy.
    """
    import torch

    from workers.engine.model import read
    from workers.engine.runtimes.export import graphs

    parts = read(config, getattr(torch, STORED))
    for network in (parts.unet, parts.controlnet, parts.vae):
        network.eval().requires_grad_(False)
    make(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "new"
        new.mkdir()
        for name, graph in graphs(parts, rows_of(config.guidance_scale)):
            if name in NETWORKS:
                _write(graph, new / f"{name}.xml")
        if not is_complete(folder):
            new.rename(folder)


def _write(graph: Any, path: Path) -> None:
    import openvino as ov
    import torch

    inputs = tuple(graph.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches on shapes, which all requests take alike
        traced = torch.jit.trace(graph.module.eval(), inputs, check_trace=False)
        ov.save_model(ov.convert_model(traced, example_input=inputs), path, compress_to_fp16=False)


def main(folder: str, parent: str) -> None:
    """Convert what the standard input names."""
    from workers.process import die_with_parent

    die_with_parent(int(parent))
    os.nice(_LOWEST_PRIORITY)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO reports conversions where it finds it
    write(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
