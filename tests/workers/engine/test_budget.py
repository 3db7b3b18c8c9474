"""The memory for decoding: the bound of `decoding_bytes`, and the budget that images wait for."""

import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.service.running import until
from tests.workers.engine import demo
from tests.workers.engine.images import KINDS, exif, measure, webp_of_many_codes
from workers.engine import codec
from workers.engine.budget import DecodeBudget
from workers.engine.config import EngineConfig, Sizing
from workers.engine.contract import BadImageError, Task
from workers.engine.echo import EchoEngine
from workers.engine.header import (
    Format,
    Header,
    decoding_bytes,
    default_max_pixels,
    output_size,
    read_header,
    table_bytes,
)

MIB = 2**20
IMAGE = Header("PNG", 1000, 1000)
NEEDED = decoding_bytes(IMAGE, (512, 512))
SMALL, LARGE = Header("PNG", 64, 64), Header("PNG", 5000, 5000)  # of a budget of 256 MiB


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_than_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(KINDS[kind](2400, 1600, exif(6)))
    header = read_header(path.read_bytes())
    sizes = [(header.width, header.height), output_size(header.width, header.height, Sizing())]
    for size in sizes if header.format == "JPEG" else sizes[:1]:  # others are decoded whole, whatever is wanted
        bound = decoding_bytes(header, size) + path.stat().st_size
        assert 0 < measure(path, size).bytes <= bound  # without tables: an ordinary file has few


def test_a_small_file_of_many_pixels_takes_no_more_than_is_said(tmp_path: Path) -> None:
    """Lossless WebP of one colour, on its side: once 632 MB."""
    path = tmp_path / "image"
    path.write_bytes(small_webp(6324))
    header = read_header(path.read_bytes())
    assert path.stat().st_size < 2000
    peak = measure(path, (512, 512)).bytes
    assert peak <= decoding_bytes(header, (512, 512))
    assert peak < 350 * MIB


FOUR_AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tests.workers.engine import demo
from workers.engine.contract import Task

def kib(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])

engine = demo.engine(replace(demo.CONFIG, decode_bytes=600 * 2**20))
task = Task(Path(sys.argv[1]).read_bytes(), "", 0)
engine.prepare(demo.task())
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
with ThreadPoolExecutor(4) as threads:
    assert len({prepared.edges.shape for prepared in threads.map(engine.prepare, [task] * 4)}) == 1
print(1024 * (kib("VmHWM") - before))
"""


@pytest.mark.slow
def test_four_large_images_at_once_stay_within_the_budget(tmp_path: Path) -> None:
    """Once 2.5 GB."""
    path = tmp_path / "image"
    path.write_bytes(small_webp(6324))
    arguments = [sys.executable, "-c", FOUR_AT_ONCE, str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) <= 600 * MIB


def test_a_webp_of_many_codes_takes_no_more_than_is_said(tmp_path: Path) -> None:
    """295 KB, one megapixel, and 360 MB of tables."""
    path = tmp_path / "image"
    path.write_bytes(webp_of_many_codes(1024))
    header = read_header(path.read_bytes())
    peak = measure(path, (512, 512)).bytes
    assert decoding_bytes(header, (512, 512)) < peak <= decoding_bytes(header, (512, 512)) + table_bytes(header)


def test_webp_with_many_codes_counts_as_large() -> None:
    lossless, lossy = read_header(webp_of_many_codes(1024)), Header("WebP", 1024, 1024)
    assert runs_beside(LARGE, lossy)
    assert not runs_beside(LARGE, lossless, seconds=0.5)


@pytest.mark.parametrize("block", [b"VP8L", b"ALPH", b"ANMF"])
def test_lossless_pixels_are_found_wherever_they_are(block: bytes) -> None:
    chunks = struct.pack("<4sII", b"VP8X", 10, 0) + bytes(6) + struct.pack("<4sI", block, 100) + bytes(100)
    assert read_header(struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WEBP") + chunks).lossless == 100


def small_webp(side: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), (200, 10, 10)).save(file, "WEBP", lossless=True, exif=exif(6))
    return file.getvalue()


@given(
    st.sampled_from(get_args(Format)),
    st.integers(256 * MIB, 4096 * MIB),  # as `auto` has it; with less, a flat panorama may be refused later
    st.integers(1, 65_535),
    st.floats(0.5, 1),
    st.sampled_from([1, 6]),
)
def test_images_that_the_front_end_accepts_can_be_decoded(
    kind: Format, decode_bytes: int, width: int, share: float, orientation: int
) -> None:
    height = min(65_535, int(default_max_pixels(decode_bytes) * share) // width)
    if height > 0 and max(width, height) <= 32 * min(width, height):  # longer shapes are refused
        header = Header(kind, width, height, orientation)
        assert decoding_bytes(header, output_size(width, height, Sizing())) <= decode_bytes
        if min(width, height) >= 2048:  # else what does not go by pixels counts, too
            assert decoding_bytes(header, (width, height)) <= decode_bytes


@pytest.mark.parametrize(
    ("memory", "budget"), [(2**30, 256), (4 * 2**30, 512), (8 * 2**30, 1024), (2**40, 1024), (2**28, 256)]
)
def test_the_budget_follows_from_the_memory_there_is(memory: int, budget: int) -> None:
    assert EngineConfig().decode_budget(memory) == budget * MIB
    assert EngineConfig(decode_bytes=100 * MIB).decode_budget(memory) == 100 * MIB


def test_the_default_limit_of_pixels_follows_from_the_budget() -> None:
    assert default_max_pixels(2**30) == 40_000_000
    assert default_max_pixels(256 * MIB) == 256 * MIB // 13


def test_images_over_the_budget_are_refused_with_advice() -> None:
    budget = DecodeBudget(NEEDED - 1)
    says = r"PNG image of 1000 x 1000 pixels can take 14 MiB of memory; the limit is 14 MiB\. Send .*: 512 x 512"
    with pytest.raises(BadImageError, match=says), budget.spend_on(IMAGE, (512, 512)):
        pass
    with budget.spend_on(Header("PNG", 900, 900), (512, 512)):
        pass


def runs_beside(one: Header, other: Header, seconds: float = 60) -> bool:
    """Whether an image is decoded while another one is, within so many seconds."""
    budget, begun = DecodeBudget(256 * MIB), threading.Event()

    def decode() -> None:
        with budget.spend_on(other, (64, 64)):
            begun.set()

    with ThreadPoolExecutor(1) as threads:
        with budget.spend_on(one, (64, 64)):
            threads.submit(decode)
            beside = begun.wait(seconds)
        assert begun.wait(60)
    return beside


def test_large_images_are_decoded_one_at_a_time_and_small_ones_beside_them() -> None:
    assert not runs_beside(LARGE, LARGE, seconds=0.5)
    assert runs_beside(LARGE, SMALL)
    assert runs_beside(SMALL, LARGE)
    assert runs_beside(SMALL, SMALL)


def test_small_images_wait_in_order_for_what_is_theirs() -> None:
    budget, order = DecodeBudget(256 * MIB), list[int]()

    def decode(number: int) -> None:
        with budget.spend_on(IMAGE, (512, 512)):
            order.append(number)

    held = 64 * MIB // NEEDED  # as many as there is room for
    with ThreadPoolExecutor(4) as threads, ExitStack() as stack:
        for _ in range(held):
            stack.enter_context(budget.spend_on(IMAGE, (512, 512)))
        waiting = []
        for number in range(4):
            waiting.append(threads.submit(decode, number))
            until(lambda: len(budget._small._waiting) == len(waiting))  # so that they come in this order
        assert order == []
        stack.close()
        for each in waiting:
            each.result(timeout=60)
    assert order == [0, 1, 2, 3]


def test_never_more_than_their_part_is_spent_on_small_images() -> None:
    budget, lock, spent, most = DecodeBudget(128 * MIB), threading.Lock(), 0, 0

    def decode(side: int) -> None:
        nonlocal spent, most
        header = Header("PNG", side, side)
        with budget.spend_on(header, (64, 64)):
            with lock:
                spent += decoding_bytes(header, (64, 64))
                most = max(most, spent)
            time.sleep(0.001)
            with lock:
                spent -= decoding_bytes(header, (64, 64))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, [200 + 7 * n % 800 for n in range(400)]))
    assert NEEDED < most <= 32 * MIB


def test_a_failed_decoding_returns_its_share() -> None:
    budget = DecodeBudget(256 * MIB)
    for header in [SMALL, LARGE] * 20:
        with pytest.raises(ZeroDivisionError), budget.spend_on(header, (64, 64)):
            raise ZeroDivisionError


def test_engines_decode_within_their_budget() -> None:
    """Both refuse what is beyond; the echo engine only if it decodes at all."""
    data = codec.encode_grey(codec.decode(demo.image(3000, 3000))[:, :, 0])
    tight = EngineConfig(kind="echo", decode_bytes=32 * MIB)
    with pytest.raises(BadImageError, match="the limit is 32 MiB"):
        EchoEngine(tight).prepare(Task(data, "", 0))
    engine = demo.engine(replace(demo.CONFIG, decode_bytes=32 * MIB))
    with pytest.raises(BadImageError, match=r"the limit is 32 MiB\..*: 64 x 64 pixels are used"):
        engine.prepare(Task(data, "", 0))
    assert engine.prepare(demo.task()).edges.shape == (64, 64)
