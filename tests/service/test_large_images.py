"""Images that are small files and take seconds to decode: one client's delay no other's."""

import struct
import threading
import zlib

import pytest

from tests.service.raw import answers, head, read
from tests.service.running import Service, until
from tests.service.test_buffers import connect_from

SIDE = 5000
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
ATTACKERS = 6


def slow_png() -> bytes:
    """25 megapixels of interlaced RGBA with 16 bits, in 200 KB: more than a second to decode."""
    rows = bytearray()
    for x, y, dx, dy in PASSES:
        rows += bytes((1 + 8 * ((SIDE - x + dx - 1) // dx)) * ((SIDE - y + dy - 1) // dy))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 1), b"IDAT": zlib.compress(rows), b"IEND": b""}
    framed = [
        struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.slow
def test_large_images_of_one_client_delay_no_other(demo: Service) -> None:
    image, stop, served = slow_png(), threading.Event(), list[int]()

    def attack() -> None:
        while not stop.is_set():
            with connect_from(demo, "127.0.0.2") as connection:
                length, kind = f"Content-Length: {len(image)}", "Content-Type: image/png"
                connection.sendall(head(kind, length, path="/generation/?text=x&steps=1") + image)
                served.extend(answer.status for answer in answers(read(connection)))

    threads = [threading.Thread(target=attack) for _ in range(ATTACKERS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: 200 in served)
        meanwhile = []
        for _ in range(6):
            before = served.count(200)
            assert demo.generate(steps=1).status_code == 200
            meanwhile.append(served.count(200) - before)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(served) <= {200, 429, 503}
    # The one that is decoded as ours comes, and another that has been and waits for its steps; it was several.
    assert max(meanwhile) <= 3, meanwhile
