"""Limits of the edge process and the workers, checked from inside real ones."""

import asyncio
import ctypes
import json
import mmap
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fuzz.seeds import file_of, images
from tests.workers.contours import drawing, expected, files, pixels_of
from workers import confinement
from workers.channel import MAX_MESSAGE, socket_pair
from workers.edge_process import EdgeService, EdgeSetup, EdgeTask, FailedError, edge_layout, lacks_memory, prepare
from workers.engine.config import Canny, Sizing
from workers.engine.contract import BadImageError
from workers.engine.header import decoding_bytes, read_header
from workers.shared_memory import SlotLayout, SlotMemory

PATIENCE = 120.0  # seconds, before a test gives something up
ROOM = edge_layout(2**20, Sizing(short_side=128, long_side=256))
SIZE = (64, 64)
MIB = 2**20
libc = ctypes.CDLL(None, use_errno=True)


def in_a_process(target: Callable[..., None], setup: EdgeSetup | None = None) -> Any:
    """What a function sends that is run as the edge process."""
    memory = SlotMemory.create(ROOM)
    channel, theirs = socket_pair()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(setup or EdgeSetup(), theirs, memory))
    try:
        with theirs:
            process.start()
        channel.settimeout(PATIENCE)
        return json.loads(channel.recv(MAX_MESSAGE))
    finally:
        process.kill()
        process.join()
        process.close()
        channel.close()
        memory.close()


# -------------------------------------------------------------------------------------------------------- system calls


def checked(result: int) -> None:
    """Raise what a function of the C library says in errno."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "failed")


def read_memory_of(process: int) -> None:
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    here = Span(ctypes.cast(buffer, ctypes.c_void_p), 8)
    checked(libc.process_vm_readv(process, ctypes.byref(here), 1, ctypes.byref(here), 1, 0))


def fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def start_thread() -> None:
    thread = threading.Thread(target=bool)
    thread.start()
    thread.join()


def run_program() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)  # its SIGCHLD would stop a process that is traced by then


def attempts(memory: SlotMemory) -> dict[str, Callable[[], object]]:
    """What somebody would try who has taken over the process. None of it does harm where it is allowed."""
    parent = os.getppid()
    return {
        "open a file to write": lambda: os.open("/dev/null", os.O_WRONLY),
        "open a file to read": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read the environment of the parent": Path(f"/proc/{parent}/environ").read_bytes,
        "list a folder": lambda: os.listdir("/"),
        "make an internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "make a local socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "signal the parent": lambda: os.kill(parent, 0),
        "change the parent's limits": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
        "start a process": fork,
        "start a thread": start_thread,
        "run a program": run_program,
        "make executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
        "trace a process": lambda: checked(libc.ptrace(0, 0, 0, 0)),
        "read another process's memory": lambda: read_memory_of(os.getpid()),
        "shrink the shared memory": lambda: os.ftruncate(memory.descriptor, memory.layout.total),
        "make a file without a name": lambda: os.memfd_create("more"),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, RuntimeError) as error:
        return type(error).__name__
    return "done"


def try_all_confined(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process."""
    prepare(setup, memory)
    done = {name: outcome(attempt) for name, attempt in attempts(memory).items()}
    channel.send(json.dumps(done).encode())


def try_all_free(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process, but for what confines it."""
    done = {name: outcome(attempt) for name, attempt in attempts(memory).items()}
    channel.send(json.dumps(done).encode())
    signal.pause()


def test_the_edge_process_can_do_none_of_it() -> None:
    free, confined = in_a_process(try_all_free), in_a_process(try_all_confined)
    assert set(free.values()) == {"done"}  # else a test of what is denied shows nothing
    assert confined == dict.fromkeys(free, "PermissionError") | {"start a thread": "RuntimeError"}


def try_to_execute(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process."""
    prepare(setup, memory)
    channel.send(json.dumps(outcome(lambda: os.execv("/bin/true", ["true"]))).encode())


def test_it_cannot_become_another_program() -> None:
    assert in_a_process(try_to_execute) == "PermissionError"


def tell_limits(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process, without the library for the filter."""
    sys.modules["pyseccomp"] = None  # type: ignore[assignment]
    prepare(setup, memory)
    if os.geteuid() == 0:  # who may start as many processes as there can be
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    texts = [Path(f"/proc/self/{name}").read_text() for name in ("status", "limits")]
    channel.send(json.dumps([*texts, outcome(fork), outcome(start_thread)]).encode())


def test_without_the_library_it_runs_with_limits_alone_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    status, limits, *starts = in_a_process(tell_limits)
    assert starts == ["BlockingIOError", "RuntimeError"]
    assert "\nNoNewPrivs:\t1\n" in status
    assert "\nSeccomp:\t0\n" in status
    soft = {line[:26].strip(): line[26:46].strip() for line in limits.splitlines()}
    assert soft["Max core file size"] == "1"
    assert soft["Max open files"] == str(confinement.DESCRIPTORS)
    assert soft["Max processes"] == "0"
    size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    assert 2**30 < int(soft["Max address space"]) < size * 1024 + 2**30 + 128 * MIB
    assert capfd.readouterr().err.count("runs without a seccomp filter") == 1


# --------------------------------------------------------------------------------------------------------------- images


@contextmanager
def opened(room: SlotLayout = ROOM, **setup: Any) -> Iterator[Callable[[bytes], bytes]]:
    """An edge process to ask for edges. It is one process throughout."""
    with asyncio.Runner() as runner:

        async def start() -> EdgeService:
            return EdgeService(room, EdgeSetup(**setup))

        service, processes = runner.run(start()), set()

        def find(image: bytes) -> bytes:
            try:
                return runner.run(asyncio.wait_for(service.find(EdgeTask(image, SIZE, Canny())), PATIENCE))
            finally:
                processes.add(service.process)

        try:
            yield find
        finally:
            runner.run(service.close())
        assert len(processes - {None}) == 1


def result(find: Callable[[bytes], Any], image: bytes) -> Any:
    try:
        return find(image).tolist()
    except BadImageError as error:
        return str(error)


def mutated(image: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(image)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.3 else damaged)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
def test_images_of_every_kind_whole_and_damaged_are_answered_as_without_confinement() -> None:
    rng = random.Random(1)
    whole = [*files().values(), *images(), file_of(drawing(90, 60, "CMYK"), "JPEG")]
    with opened() as find:
        for image in whole + [mutated(each, rng) for each in whole for _ in range(10)]:
            here = result(lambda each: expected(each, SIZE, Canny()), image)
            confined = result(lambda each: pixels_of(find(each)), image)
            assert confined == here or ("too large" in here and "of memory; the limit is" in confined)


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_an_error_is_logged_with_its_traceback(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    cramped = SlotLayout(1, 2**20, 100)  # there is no room for the edges
    with opened(cramped, log_format=log_format) as find, pytest.raises(FailedError, match="ValueError"):
        find(file_of(drawing(90, 60), "PNG"))
    said = capfd.readouterr().err
    assert "The edge process failed on an image" in said
    assert "Traceback (most recent call last)" in said
    assert "in _answer" in said


# --------------------------------------------------------------------------------------------------------------- memory


def large(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    image = drawing(5000, 4000)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    return file_of(image if mode == "I;16" else image.convert(mode), kind, **options)


LARGE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: large("PNG", compress_level=1),
    "16 bits": lambda: large("PNG", "I;16", compress_level=1),
    "progressive JPEG": lambda: large("JPEG", progressive=True),
    "CMYK": lambda: large("JPEG", "CMYK", progressive=True),
    "WebP": lambda: large("WEBP", method=0),
    "lossless WebP with alpha": lambda: large("WEBP", "RGBA", lossless=True, method=0),
}


@pytest.mark.parametrize("kind", LARGE)
def test_an_image_that_takes_more_memory_than_allowed_is_refused_for_that(kind: str) -> None:
    small = file_of(drawing(90, 60), "PNG")
    with opened(edge_layout(16 * MIB, Sizing()), decoding_bytes=24 * MIB) as find:
        with pytest.raises(BadImageError, match=r"can take \d+ MiB of memory; the limit is 24 MiB"):
            find(LARGE[kind]())
        assert np.array_equal(pixels_of(find(small)), expected(small, SIZE, Canny()))


@pytest.mark.parametrize("kind", LARGE)
def test_an_image_that_takes_all_that_is_allowed_is_decoded(kind: str) -> None:
    image = LARGE[kind]()
    with opened(edge_layout(16 * MIB, Sizing()), decoding_bytes=decoding_bytes(read_header(image), SIZE)) as find:
        for _ in range(2):  # the first one leaves nothing behind
            assert np.array_equal(pixels_of(find(image)), expected(image, SIZE, Canny()))


def take_memory(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: Python, NumPy and OpenCV take more than there is, and then what there is."""
    prepare(setup, memory)
    too_much, enough = 2 * setup.decoding_bytes, setup.decoding_bytes // 2
    pixel = np.zeros((1, 1), np.uint8)
    takers: list[Callable[[int], object]] = [
        bytearray,
        lambda size: np.ones(size, np.uint8),
        lambda size: cv2.resize(pixel, (size // 1024, 1024), interpolation=cv2.INTER_NEAREST),
    ]
    said = []
    for take in takers:
        try:
            take(too_much)
        except Exception as error:  # noqa: BLE001
            said.append(lacks_memory(error))
        take(enough)
    channel.send(json.dumps(said).encode())


def test_the_limit_holds_for_all_who_allocate_and_is_recognized() -> None:
    assert in_a_process(take_memory, EdgeSetup(decoding_bytes=256 * MIB)) == [True, True, True]
