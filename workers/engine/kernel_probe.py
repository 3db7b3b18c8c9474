"""Tries kernels that are not torch's own in a child process before they are used in this one: xformers', and ours.

A kernel that was built for another torch or another GPU may kill its process, or leave a CUDA error behind after which
the process cannot use its device. A probe takes some seconds, most of them to import torch, so the compiler's cache
keeps the result, by all that it depends on.

python -m workers.engine.kernel_probe KERNEL cuda:0 tries one, and writes why it cannot be used.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from workers.folders import replace_file

CACHE = "TORCHINDUCTOR_CACHE_DIR"
TIMEOUT_S = 120.0  # torch may have to be imported from a cold disk, and all devices at once
_ROOT = Path(__file__).parents[2]
# Signals from outside, such as for lack of memory, and errors of a busy device: another time it may work.
_SENT_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSING = ("memory", "CUDA error", "CUDA GPUs")


def flaw_of(kernel: str, device: torch.device) -> str:
    """Why a kernel cannot be used on a device; empty if it can. Its name is that of its package: ours need "triton"."""
    file = _cached(kernel, device)
    if file is not None and (known := _read(file)) is not None:
        return known
    found, lasting = _ask(kernel, device)
    if file is not None and lasting:
        _write(file, found)
    return found


def _ask(kernel: str, device: torch.device) -> tuple[str, bool]:
    """The flaw, and whether it would be the same another time."""
    command = [sys.executable, "-m", "workers.engine.kernel_probe", kernel, str(device), str(os.getpid())]
    try:
        asked = subprocess.run(  # noqa: S603 - our own module
            command, cwd=_ROOT, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the process that tried it did not finish within {TIMEOUT_S:g} s", False
    except OSError as error:
        return f"no process could be started to try it: {error}", False
    if asked.returncode:
        how = f"by signal {-asked.returncode}" if asked.returncode < 0 else f"with exit code {asked.returncode}"
        return f"it crashed the process that tried it, {how}", -asked.returncode not in _SENT_BY_OTHERS
    found = asked.stdout.decode(errors="replace").rpartition("\n")[2]
    return found, not any(reason in found for reason in _PASSING)


def _cached(kernel: str, device: torch.device) -> Path | None:
    """The file for the result; None without a cache."""
    try:
        package = version(kernel)
    except PackageNotFoundError:  # not installed by pip: its version is unknown
        return None
    return cache_file(kernel, device, package, digest_of_kernels())


def cache_file(name: str, device: torch.device, *facts: object) -> Path | None:
    """A file in the compiler's cache for what depends on the kind of device, on torch and on other facts.

    None without a cache.
    """
    folder = os.environ.get(CACHE)
    if folder is None:
        return None
    where: tuple[object, ...] = (str(device),)
    if device.type == "cuda":
        where = (torch.cuda.get_device_name(device), _driver_version())
    digest = sha256(json.dumps([torch.__version__, *where, *facts]).encode()).hexdigest()
    return Path(folder) / f"contour-{name}-{digest[:16]}.json"


def digest_of_kernels() -> str:
    """A digest of the sources of our kernels."""
    files = sorted((_ROOT / "workers" / "engine" / "kernels").glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _driver_version() -> int:
    """The CUDA version of the driver."""
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value


def _read(file: Path) -> str | None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _write(file: Path, found: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(found).encode())
    except OSError:
        return  # the next start probes again


def main(kernel: str, device: str, parent: str) -> int:
    """Try a kernel and write why it cannot be used, as the last line; the exit code."""
    from workers.engine import attention
    from workers.engine.kernels import group_norm
    from workers.process import die_with_parent

    die_with_parent(int(parent))
    where = torch.device(device)
    sys.stdout.write("\n" + (group_norm.flaw(where) if kernel == "triton" else attention.flaw(kernel, where)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
