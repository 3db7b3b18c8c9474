"""A barrage of the most expensive requests that are taken costs bounded memory and time, and no worker."""

import base64
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fuzz.seeds import file_of, frames, gradient, png_chunk
from tests.service.memory import cpu_seconds, peak_bytes
from tests.service.running import Service, good_request

MIB = 2**20
SIDE = 3000
MAX_PIXELS = SIDE * SIDE
HANDS = 3  # threads of a worker that decode at the same time
CLIENTS = 3
# WebP is the worst: libwebp has two canvases of 4 bytes, Pillow a copy of one and its own image. Then RGB and BGR.
BYTES_A_PIXEL = 4 + 4 + 4 + 4 + 3 + 3
SLOTS = 2
SLOT = 48 * MIB  # of shared memory that a worker has touched: a request of 16 MiB and a result
FREED_AND_KEPT = 256 * MIB  # workers.machine


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    """One worker with two slots, so that it is known how much may be in hand at a time."""
    limits = {"SERVER__MAX_PIXELS": MAX_PIXELS, "WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": SLOTS}
    with Service("echo", **limits) as service:
        yield service.wait_until_ready()


def black_png(depth: int) -> bytes:
    """RGBA of SIDE x SIDE in some 100 KB."""
    packer = zlib.compressobj(1)
    row = bytes(1 + SIDE * 4 * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    head = struct.pack(">IIBBBBB", SIDE, SIDE, depth, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def wide_canvas() -> bytes:
    """An animated WebP of 200 bytes and SIDE x SIDE."""
    data = file_of(gradient(), "WEBP", **frames())
    side = (SIDE - 1).to_bytes(3, "little")
    return data[:24] + side + side + data[30:]


def sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True, exif=exif.tobytes())


def noise() -> bytes:
    """A PNG of nearly as many bytes as are taken."""
    pixels = np.random.default_rng(0).integers(0, 256, (2300, 2300, 3), np.uint8)
    return file_of(Image.fromarray(pixels), "PNG", compress_level=0)


def body(image: bytes) -> dict[str, object]:
    return good_request(input_image_base64=base64.b64encode(image).decode())


def post(service: Service, data: bytes) -> httpx.Response:
    return service.client.post("/generation/", content=data, headers={"Content-Type": "application/json"})


def test_the_largest_images_cost_a_worker_so_much_and_no_more(small: Service) -> None:
    (worker,) = (each["process"] for each in small.readiness()["workers"])
    before = peak_bytes(worker)
    images = [black_png(8), black_png(16), wide_canvas(), sideways(), noise()]
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda image: small.client.post("/generation/", json=body(image)), images * 2))
    assert {answer.status_code for answer in answers} == {200}
    grown = peak_bytes(worker) - before
    assert MAX_PIXELS * 3 < grown < min(SLOTS, HANDS) * MAX_PIXELS * BYTES_A_PIXEL + SLOTS * SLOT + FREED_AND_KEPT


def test_refused_bombs_cost_a_worker_nothing(small: Service) -> None:
    (worker,) = (each["process"] for each in small.readiness()["workers"])
    before = peak_bytes(worker)
    bomb = wide_canvas()
    bomb = bomb[:24] + (60_000 - 1).to_bytes(3, "little") * 2 + bomb[30:]
    assert {small.generate(input_image_base64=base64.b64encode(bomb).decode()).status_code for _ in range(50)} == {413}
    assert peak_bytes(worker) == before


HUGE = {
    "a prompt with one emoji": (b'{"text": "' + b"a" * (31 * MIB) + "🎈".encode() + b'"}', 422),
    "escapes": (b'{"text": "' + b"\\u00e9" * (5 * MIB) + b'"}', 400),
    "an image": (
        b'{"request_id": 1, "text": "", "random_seed": 1, "input_image_base64": "' + b"A" * (31 * MIB) + b'"}',
        413,
    ),
    "a million fields": (b"{" + b'"a": {},' * 4_000_000 + b'"b": 0}', 400),
    "a long list": (b'{"x": [' + b"[]," * (10 * MIB) + b"0]}", 400),
    "too much": (b" " * (33 * MIB), 413),
}
# A body is there twice while its pieces are joined. A prompt of ASCII and one emoji is decoded to 4 bytes a character.
BODY = 32 * MIB
BYTES_A_BYTE = 2 + 4 + 1


def test_the_largest_bodies_cost_the_server_so_much_and_no_more(small: Service) -> None:
    server = small.process.pid
    before = peak_bytes(server)
    with ThreadPoolExecutor(CLIENTS) as clients:
        for data, status in HUGE.values():
            posts = [clients.submit(post, small, data) for _ in range(CLIENTS)]
            assert {post.result().status_code for post in posts} == {status}
    assert peak_bytes(server) - before < CLIENTS * BODY * BYTES_A_BYTE + FREED_AND_KEPT
    assert [worker["restarts"] for worker in small.readiness()["workers"]] == [0]
    assert small.generate().status_code == 200


COSTLY = {
    "base64 that is not ASCII": b'{"request_id": 1, "text": "", "random_seed": 1, "input_image_base64": "\xc3\xa9'
    + b"A" * (31 * MIB)
    + b'"}',
    "45,000 integers of 640 digits": b"{" + (b'"request_id": ' + b"9" * 640 + b",") * 45_000 + b'"text": ""}',
    "integers of 4,300 digits": b"{" + (b'"request_id": ' + b"9" * 4300 + b",") * 7000 + b'"text": ""}',
}
SECONDS = 1.2  # of the event loop's time. A good body of this length takes 0.2; the first took 5 and the last 1.6


@pytest.mark.parametrize("data", COSTLY.values(), ids=COSTLY.keys())
def test_no_body_holds_up_the_others_for_long(small: Service, data: bytes) -> None:
    before = cpu_seconds(small.process.pid)
    assert post(small, data).status_code == 422
    assert cpu_seconds(small.process.pid) - before < SECONDS
