"""This machine: the port, the limits on files and cores, memory, and disk."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from app.checks.finding import GIB, Finding, Level, Subject, size
from app.checks.model import bytes_of_weights
from app.http.listening import REACHED_AT, ListenError, bracketed, listen
from app.startup import slot_layout
from workers.config import home_folder
from workers.engine.weights import absent
from workers.folders import existing, refuse_if_shared
from workers.logs import counted
from workers.machine import GROUPS, MEMBERSHIP, available_cores, group_folders
from workers.shared_memory import SlotMemory

# ----------------------------------------------------------------------------------------------------------------- port

PORT_SECONDS = 3.0  # for an answer of who listens there


def port(subject: Subject) -> Iterator[Finding]:
    """Listen on the port for a moment, as the server would."""
    host, port = subject.settings.server.host, subject.settings.server.port
    try:
        listeners = listen(host, port)
    except ListenError as error:
        ours = error.taken and _is_ours(REACHED_AT.get(host, host), port)
        text = f"{error}" + " It is Contour, and it answers." * ours
        yield Finding("port", Level.WARNING if ours else Level.MISSING, text, error.remedy)
        return
    for listener in listeners:
        listener.close()
    yield Finding("port", Level.OK, f"{bracketed(host)}:{port} is free" if port else f"{host}: any free port")


def _is_ours(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=PORT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer: object = json.loads(connection.getresponse().read(1024))
        return answer == {"status": "ok"}
    except (OSError, HTTPException, ValueError):
        return False
    finally:
        connection.close()


# --------------------------------------------------------------------------------------------------------------- limits

# Beside the clients' connections: what Python, the event loop and the log have open, and for each worker its socket,
# its region and its sentinel. 21 were open with one worker, and 5 more for each other one.
OWN_FILES, WORKER_FILES = 64, 8


def limits(subject: Subject) -> Iterator[Finding]:
    """Check how many files may be open, and how many threads share the cores."""
    yield _files(subject)
    yield _cores(subject)


def _files(subject: Subject) -> Finding:
    connections, workers = subject.settings.server.max_connections, len(subject.placement.devices)
    needed = connections + OWN_FILES + WORKER_FILES * workers
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{limit if limit != resource.RLIM_INFINITY else 'any number'} may be open"
    if limit != resource.RLIM_INFINITY and limit < needed:
        text += f", but {connections} connections (server.max_connections) need {needed}"
        return Finding("open files", Level.WARNING, text, f"ulimit -n {needed}, or lower server.max_connections")
    return Finding("open files", Level.OK, f"{text}, {needed} are needed at most")


def _cores(subject: Subject) -> Finding:
    granted, there = available_cores(), os.cpu_count() or 1
    workers = len(subject.placement.devices)
    threads = subject.settings.workers.threads_per_worker(granted, workers)
    text = f"{granted} of {there} for this process; {counted(workers, 'worker')} with {counted(threads, 'thread')} each"
    if workers * threads > granted and not subject.on_gpu:
        return Finding(
            "cores", Level.WARNING, f"{text}: more threads than cores", "lower workers.threads or workers.cpu_workers"
        )
    return Finding("cores", Level.OK, text)


# --------------------------------------------------------------------------------------------------------------- memory

MEMINFO = Path("/proc/meminfo")
# A group's limit and what it has taken, in the second and the first version of control groups.
USAGE_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
# What a worker took with the small model (422 MB without files and shared memory), whose weights are next to nothing.
WORKER_BYTES, ECHO_BYTES = 0.4 * GIB, 0.05 * GIB


def memory(subject: Subject) -> Iterator[Finding]:
    """Check main memory and shared memory. GPU memory is checked with each GPU."""
    yield _of_machine(subject)
    yield _shared_memory(subject)


def _of_machine(subject: Subject) -> Finding:
    workers = len(subject.placement.devices)
    engine = subject.settings.engine
    copies = (
        2 if engine.runtime_on(cuda=subject.on_gpu) == "openvino" else 1
    )  # torch's or for any shape, and for fixed shapes
    each = ECHO_BYTES if engine.kind == "echo" else WORKER_BYTES + copies * bytes_of_weights(subject)
    free, needed = available_bytes(), workers * each
    need = f"{counted(workers, 'worker')} need{'s' * (workers == 1)} about {size(needed)}"
    text = f"{size(free)} available; {need}, and some more for each image"
    if free < needed:
        return Finding("memory", Level.WARNING, text, "end other programs, raise the limit, or run fewer workers")
    return Finding("memory", Level.OK, text)


def available_bytes(meminfo: Path = MEMINFO, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """The free memory of the machine and of this process's control groups, whichever is less."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return max(0, min([int(lines["MemAvailable"].split()[0]) * 1024, *_left(groups, membership)]))


def _left(groups: Path, membership: Path) -> Iterator[int]:
    """The free memory of each control group above this process. In a container, the top ones are the container's."""
    for folder in group_folders("memory", groups, membership):
        for limit, taken in USAGE_FILES:
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int((folder / limit).read_text()) - int((folder / taken).read_text())


def _shared_memory(subject: Subject) -> Finding:
    layout = slot_layout(subject.settings)
    try:
        SlotMemory.create(layout).close()
    except OSError as error:
        text = f"a region of {size(layout.total)} cannot be made: {error.strerror or error}"
        remedy = "allow memfd_create (a seccomp profile may not), or lower engine.slots and server.max_image_bytes"
        return Finding("shared memory", Level.MISSING, text, remedy)
    text = f"memfd works; each worker uses up to {size(layout.total)} of it while it has images. /dev/shm is not used"
    return Finding("shared memory", Level.OK, text)


# ----------------------------------------------------------------------------------------------------------------- disk

CACHE_BYTES = GIB  # what compilers make of one model takes less; a guess on the safe side


def disk(subject: Subject) -> Iterator[Finding]:
    """Tries to write where the service would, and leaves nothing there."""
    workers = subject.settings.workers
    yield _cache(workers.cache)
    yield _models(subject, workers.models)
    yield _temporary(workers.cache)


def _cache(given: str) -> Finding:
    remedy = "make it writable, or choose another folder with CONTOUR_WORKERS__CACHE=FOLDER"
    folder = home_folder(given)
    if folder is None:
        return Finding("cache", Level.MISSING, f"workers.cache is {given}, but this user has no home folder", remedy)
    if flaw := _unwritable(folder) or _writable_by_others(folder):
        return Finding("cache", Level.MISSING, f"workers.cache: {folder} cannot be used: {flaw}", remedy)
    free = shutil.disk_usage(existing(folder)).free
    text = f"{folder} is writable, {size(free)} free"
    if free < CACHE_BYTES:
        return Finding("cache", Level.WARNING, text, "free some space: compiled code is kept there")
    return Finding("cache", Level.OK, text)


def _writable_by_others(folder: Path) -> str:
    """The reason if other users can write to the cache, else empty."""
    try:
        if folder.exists():  # one that is not there yet is made for us alone
            refuse_if_shared(folder)
    except OSError as error:
        return str(error)
    return ""


def _models(subject: Subject, given: str) -> Finding:
    """The server only reads this folder; `workers.fetch` writes there."""
    folder = home_folder(given)
    if folder is None:
        return Finding(
            "models", Level.OK, f"workers.models is {given}; this user has no home folder, so there are none"
        )
    text = f"{folder}, {size(shutil.disk_usage(existing(folder)).free)} free"
    if absent(subject.settings.engine) and (flaw := _unwritable(folder)):
        remedy = "choose another folder with CONTOUR_WORKERS__MODELS=FOLDER, also for workers.fetch"
        return Finding("models", Level.WARNING, f"{text}, but weights cannot be stored there: {flaw}", remedy)
    return Finding("models", Level.OK, text)


def _temporary(cache: str) -> Finding:
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:  # as `workers.folders` has it
        place = f"a folder in {cache}, as no usual folder is writable"
    return Finding("temporary files", Level.OK, f"written to {place}")


def _unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, or none made there; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)
