"""Converts the engine's networks to OpenVINO's files, in a process of its own, and finds them again.

That process has the lowest priority, takes no lock of the worker's interpreter, and gives its memory back when it ends.
The files are in the cache, or in a folder that is only read: a container's image has converted networks there.

python -m workers.engine.runtimes.openvino_files FOLDER PARENT < engine.json
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from workers.console import command as command_line
from workers.engine.config import EngineConfig, rows_of
from workers.engine.runtimes.files import RuntimeProblem, digest, identity, label, need
from workers.folders import make

CACHE = "OPENVINO_CACHE_PATH"  # set by the worker's process to a folder of workers.cache
BUILT_IN = "OPENVINO_BUILT_IN_PATH"  # a folder as `workers.convert --out` fills it
NETWORKS = ("step", "vae")
STORED = "float32"
DTYPES = ("bfloat16", "float32")
TIMEOUT_S = 1800.0
_ROOT = Path(__file__).parents[3]
_VERSION = "1"  # of the converted networks' inputs and outputs
_LOWEST_PRIORITY = 19
_COMPILED_BYTES = 4 * 2**30
INSTALL = command_line("-m", "pip", "install", "-c", "constraints.txt", "openvino")

log = logging.getLogger(__name__)


class ConversionError(RuntimeError):
    """The networks could not be converted."""


def check(dtype: str, *, cuda: bool, why: str = "engine.runtime is openvino") -> None:
    """Raises RuntimeProblem where OpenVINO cannot run the networks in this number format."""
    need(("openvino",), why, INSTALL)
    if cuda:
        raise RuntimeProblem(f"{why}, which runs on a CPU: make it auto, or set CUDA_VISIBLE_DEVICES= (empty)")
    if dtype not in DTYPES:
        raise RuntimeProblem(f"engine.dtype is {dtype}: OpenVINO runs the networks in {' or '.join(DTYPES)}")


def cache() -> Path:
    """The folder for converted and compiled networks."""
    return Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"contour-openvino-{os.geteuid()}")


def folder_for(config: EngineConfig, place: Path | None = None) -> Path:
    """The folder of a (located) configuration's converted networks, which are there or will be: in the cache, or in
    another `place`."""
    name, built_in = name_of(config), os.environ.get(BUILT_IN)
    if built_in and is_complete(Path(built_in) / name):
        return Path(built_in) / name
    return (place or cache()) / name


def name_of(config: EngineConfig) -> str:
    """The name of that folder, wherever it is."""
    made_by = version("openvino"), version("torch"), _VERSION
    return f"{label(config)}-{digest([identity(config, STORED), made_by])[:16]}"


def openvino() -> Any:
    """The package. It reports each import and conversion to the internet where it finds openvino_telemetry."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def is_complete(folder: Path) -> bool:
    """Whether all networks are in a folder."""
    return all((folder / f"{name}.{kind}").is_file() for name in NETWORKS for kind in ("xml", "bin"))


def delete(folder: Path) -> None:
    """Delete converted networks, if their folder can be written to."""
    shutil.rmtree(folder, ignore_errors=True)


def prune(folder: Path) -> None:
    """Delete the oldest files of compiled networks, where they exceed a bound."""
    files = sorted(folder.glob("*.blob"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file, total in zip(files, accumulate(file.stat().st_size for file in files), strict=True):
        if total > _COMPILED_BYTES:
            file.unlink(missing_ok=True)


def convert(config: EngineConfig, folder: Path) -> None:
    """Convert a (located) configuration's networks in another process, and wait for it. Raises ConversionError.

    Only one process at a time may do so. What others have left when they were killed is deleted.
    """
    for left in folder.parent.glob(f"{_unfinished(folder)}*"):
        delete(left)
    log.info("Converting the networks for OpenVINO, in a process of low priority")
    began = time.monotonic()
    command = [sys.executable, "-m", __name__, str(folder), str(os.getpid())]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, cwd=_ROOT, input=msgspec.json.encode(config), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"converting took more than {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise ConversionError(f"converting could not be started: {error}") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise ConversionError(f"converting ended with {how}: {last}")
    log.info("Networks converted for OpenVINO in %.1f s; they are in %s", time.monotonic() - began, folder)


def _unfinished(folder: Path) -> str:
    """How the names of folders begin in which the networks are written, beside where they will be."""
    return f".{folder.name}-"


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
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_unfinished(folder)) as made:
        new = Path(made) / "new"
        new.mkdir()
        for name, graph in graphs(parts, rows_of(config.guidance_scale)):
            if name in NETWORKS:
                _write(graph, new / f"{name}.xml")
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)


def _write(graph: Any, path: Path) -> None:
    import torch

    ov, inputs = openvino(), tuple(graph.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches on shapes, which all requests take alike
        traced = torch.jit.trace(graph.module.eval(), inputs, check_trace=False)
        ov.save_model(ov.convert_model(traced, example_input=inputs), path, compress_to_fp16=False)


def main(folder: str, parent: str) -> None:
    """Convert what the standard input names."""
    from workers.process import die_with_parent

    die_with_parent(int(parent))
    os.nice(_LOWEST_PRIORITY)
    write(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
