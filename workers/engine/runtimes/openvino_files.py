"""Converts the engine's networks to OpenVINO's files, in a process of its own, and finds them again.

That process has the lowest priority, takes no lock of the worker's interpreter, and gives its memory back when it ends.
The files are in the cache, or in a folder that is only read: a container's image has converted networks there. Beside
the networks lie facts about them (`Facts`), with the size and a fingerprint of each file, and the sampler's plans: all
that a worker needs to do without torch's networks.

A worker locks the folder that it uses. After a conversion, the folders used least recently are deleted but for a few,
and but for those that are locked: older versions and other models leave gigabytes behind.

python -m workers.engine.runtimes.openvino_files FOLDER PARENT < engine.json
"""

import fcntl
import gc
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from workers.console import command as command_line
from workers.engine.config import EngineConfig, rows_of
from workers.engine.runtimes.files import RuntimeProblem, digest, identity, label, need
from workers.engine.runtimes.openvino_graphs import VAE, read
from workers.folders import make, replace_file

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.runtimes.export import Graph

CACHE = "OPENVINO_CACHE_PATH"  # set by the worker's process to a folder of workers.cache
BUILT_IN = "OPENVINO_BUILT_IN_PATH"  # a folder as `workers.convert --out` fills it
FACTS = "facts.json"  # written last
STORED = "float32"
DTYPES = ("bfloat16", "float32")
TIMEOUT_S = 1800.0
_ROOT = Path(__file__).parents[3]
_VERSION = "3"  # of the files in a folder
_LOWEST_PRIORITY = 19
_KEPT_FOLDERS = 3
_UNFINISHED = ".converting-"  # how the names of folders begin in which networks are written
_POLL_S = 0.5
_TOKENS = 400  # fewer than any text encoder knows
_SAMPLES, _SAMPLE_BYTES = 1024, 2**16  # of a file that is larger than all of them together
_COMPILED_BYTES = 4 * 2**30
_SEAL = ".sha256"  # beside a file of a compiled network
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
    made_by = *map(version, ("openvino", "torch", "diffusers", "transformers")), _VERSION
    return f"{label(config)}-{digest([identity(config, STORED), made_by])[:16]}"


def openvino() -> Any:
    """The package. It reports each import and conversion to the internet where it finds openvino_telemetry."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


class Facts(msgspec.Struct, frozen=True):
    """What a worker needs to know of converted networks (as `runtime.AnyModel` has it), and of each file its size and
    fingerprint."""

    text_width: int
    time_width: int
    hint_channels: int
    latent_channels: int
    latent_scale: int
    files: dict[str, tuple[int, str]]


def facts(folder: Path) -> Facts | None:
    """The facts about converted networks, if all are in a folder: each file is there and has its size."""
    try:
        found = msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
        whole = all((folder / name).stat().st_size == size for name, (size, _) in found.files.items())
    except (OSError, msgspec.DecodeError):
        return None
    return found if whole else None


def is_complete(folder: Path) -> bool:
    """Whether all networks are in a folder."""
    return facts(folder) is not None


def sound(folder: Path) -> Facts:
    """The facts about converted networks.

    Raises ConversionError where files are missing, or damaged: not what was written, by their fingerprints. Deletes the
    folder then, so that it is made anew. Raises OSError.
    """
    found = facts(folder)
    if found is None:
        raise ConversionError(f"in {folder} files are missing")
    wrong = [name for name, (_, written) in found.files.items() if fingerprint(folder / name) != written]
    if wrong:
        delete(folder)
        raise ConversionError(f"in {folder} {', '.join(wrong)} was damaged, so all of it was deleted")
    return found


def fingerprint(path: Path) -> str:
    """A hash of a file: of all of it up to 64 MiB, else of as much in samples, as a start cannot read gigabytes."""
    size, hashed = path.stat().st_size, hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            hashed.update(file.read())
        else:
            for n in range(_SAMPLES):
                hashed.update(os.pread(file.fileno(), _SAMPLE_BYTES, n * (size - _SAMPLE_BYTES) // (_SAMPLES - 1)))
    return hashed.hexdigest()


def hold(folder: Path) -> int:
    """Note that a folder is used, and keep others from deleting it until the file that this returns is closed.

    Raises OSError when it is not there, or being deleted.
    """
    held = os.open(folder / FACTS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(folder)
    except BlockingIOError:
        os.close(held)
        raise
    except OSError:  # a file system without locks, or a folder that is only read
        pass
    return held


def delete_old(cache: Path) -> None:
    """Delete the converted networks in a cache that were used least recently, and that no process holds."""
    folders = [path.parent for path in cache.glob("*/step.xml")]
    with suppress(OSError):  # another process deletes, too
        folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT_FOLDERS:]:
        with suppress(OSError), (folder / FACTS).open("ab") as file:  # older versions wrote none
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.info("Deleting %s, as the networks in it have not been used for long", folder)
            delete(folder)


def delete(folder: Path) -> None:
    """Delete converted networks, if their folder can be written to."""
    shutil.rmtree(folder, ignore_errors=True)


def delete_damaged(folder: Path) -> None:
    """Delete files of compiled networks that are not what `tidy` saw. OpenVINO takes one for whole by its beginning."""
    for file in folder.glob("*.blob"):
        with suppress(OSError):  # another process deletes it, too, or the folder is only read
            seal = file.with_suffix(_SEAL)
            if not seal.exists() or seal.read_text() != fingerprint(file):
                file.unlink()
                seal.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Note the fingerprint of each new file of a compiled network; delete the oldest, where they exceed a bound."""
    with suppress(OSError):  # as above
        for file in folder.glob("*.blob"):
            if not (seal := file.with_suffix(_SEAL)).exists():
                replace_file(seal, fingerprint(file).encode())
        files = sorted(folder.glob("*.blob"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file, total in zip(files, accumulate(file.stat().st_size for file in files), strict=True):
            if total > _COMPILED_BYTES:
                file.unlink(missing_ok=True)
                file.with_suffix(_SEAL).unlink(missing_ok=True)


def convert(config: EngineConfig, folder: Path) -> None:
    """Convert a (located) configuration's networks in another process, and wait for it, unless one has just done so.

    Raises ConversionError.
    """
    with _alone_in(folder.parent):
        if not is_complete(folder):
            _convert(config, folder)
            delete_old(folder.parent)


@contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """Wait until no other process converts into a place, and delete what was left there by those that were killed.

    The kernel releases the lock with the process, however that ends.
    """
    try:
        make(place)
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConversionError(f"{place} cannot be used: {error.strerror}") from error
    try:
        if _locked(held, place):
            for left in place.glob(f"{_UNFINISHED}*"):
                delete(left)
        yield
    finally:
        os.close(held)


def _locked(file: int, place: Path) -> bool:
    """Lock a file, once no other process has it; False where its file system has no locks. Raises ConversionError."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        except OSError:
            return False
        else:
            return True
    raise ConversionError(f"another process has been converting in {place} for more than {TIMEOUT_S:g} s")


def _convert(config: EngineConfig, folder: Path) -> None:
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


def write(config: EngineConfig, folder: Path) -> None:
    """Convert the networks of a (located) configuration into a folder, whole or not at all.

    They are in float32, whatever they are computed in. OpenVINO keeps the weights of a compiled network as float32
    besides its own copy. It maps files of float32 and shares them, but makes others float32 in memory, for each copy.

    Raises WrongResultError when a network computes something else than torch's, as no later start compares them.
    """
    make(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as made:
        new = Path(made) / "new"
        new.mkdir()
        calls = _write_all(config, new)  # on return, torch's networks are no longer in memory
        gc.collect()
        for name, call in calls.items():
            prove(new / f"{name}.xml", call)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)


def _write_all(config: EngineConfig, folder: Path) -> dict[str, "Call"]:
    """Write networks, facts and plans into a folder; return a call of each of torch's networks by name."""
    import torch

    from workers.engine.model import plans_of, read
    from workers.engine.plan_files import keep
    from workers.engine.runtimes.export import graphs

    parts = read(config, getattr(torch, STORED))
    for network in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        network.eval().requires_grad_(False)
    pairs = graphs(parts, rows_of(config.guidance_scale))
    calls = {name: _write(graph, folder / f"{name}.xml") for name, graph in pairs}
    (folder / FACTS).write_bytes(msgspec.json.encode(_facts(parts, folder)))
    keep(plans_of(config.sampler, parts.scheduler), config.sampler, parts.scheduler, folder)
    return calls


def _facts(parts: Any, folder: Path) -> Facts:
    from workers.engine.conditioning import keys_values_widths, shift_widths
    from workers.engine.model import latent_scale

    networks = parts.unet, parts.controlnet
    return Facts(
        text_width=sum(sum(keys_values_widths(network)) for network in networks),
        time_width=sum(sum(shift_widths(network)) for network in networks),
        hint_channels=parts.unet.config.block_out_channels[0],
        latent_channels=parts.unet.config.in_channels,
        latent_scale=latent_scale(parts.vae),
        files={path.name: (path.stat().st_size, fingerprint(path)) for path in sorted(folder.iterdir())},
    )


class Call(NamedTuple):
    """Inputs of a network, and what torch computes of them."""

    inputs: Sequence["Tensor"]
    output: "Tensor"


def _write(graph: "Graph", path: Path) -> Call:
    import torch

    ov, inputs = openvino(), tuple(graph.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches on shapes, which all requests take alike
        traced = torch.jit.trace(graph.module.eval(), inputs, check_trace=False)
        ov.save_model(ov.convert_model(traced, example_input=inputs), path, compress_to_fp16=False)
        return call(graph)


def call(graph: "Graph") -> Call:
    """Call a network with random inputs of the shapes of its examples."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def random(example: "Tensor") -> "Tensor":
        if example.is_floating_point():
            return example + torch.empty_like(example).normal_(generator=generator)
        return torch.randint(_TOKENS, example.shape, generator=generator)

    inputs = [random(each) for each in graph.inputs.values()]
    with torch.no_grad():
        return Call(inputs, graph.module(*inputs))


def prove(path: Path, expected: Call) -> None:
    """Raise WrongResultError when a converted network computes something else than torch."""
    import torch

    from workers.engine.compiling import check

    core = openvino().Core()
    for dtype in DTYPES if path.stem == VAE else DTYPES[:1]:  # for which the graph differs
        compiled = core.compile_model(read(core, path, dtype), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        actual = compiled([each.numpy() for each in expected.inputs])[0]
        check(torch.from_numpy(actual), expected.output, torch.float32)


def main(folder: str, parent: str) -> None:
    """Convert what the standard input names."""
    from workers.process import be_killed_first, die_with_parent

    die_with_parent(int(parent))
    be_killed_first()
    os.nice(_LOWEST_PRIORITY)
    write(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
