"""The overhead of the service beside the model: HTTP, scheduler and shared memory around an engine that does nothing.

    python -m tests.bench.overhead [--requests 2000]

One client first, for latency; then 16, for throughput. The image has 385 KiB each way and comes back unread. The
clients speak HTTP over bare sockets, so that little of what is measured is theirs; they share the service's cores.
"""

import argparse
import base64
import json
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from tests.bench.environment import environment
from tests.service.running import Service, file_of, good_request

IMAGE_BYTES = 384 * 1024
WARM_UP = 200  # requests that are not counted
CLIENTS = 16


def main() -> None:
    """Run both measurements and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    with Service("echo", ENGINE__ECHO__REENCODE="false") as service:
        service.wait_until_ready(workers=2)
        message = _message()
        alone = _measure(service.url, message, 1, options.requests)
        together = _measure(service.url, message, CLIENTS, options.requests)
    result = {"one client": alone, f"{CLIENTS} clients": together, "environment": environment()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _message() -> bytes:
    side = round((IMAGE_BYTES / 3) ** 0.5)
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)  # incompressible: the file is as large
    image = file_of(noise)
    body = json.dumps(good_request(input_image_base64=base64.b64encode(image).decode())).encode()
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join(("POST /generation/ HTTP/1.1", *fields, "", "")).encode() + body


def _measure(url: str, message: bytes, clients: int, requests: int) -> dict[str, float]:
    _run(url, message, clients, WARM_UP)
    began = time.perf_counter()
    seconds = _run(url, message, clients, requests)
    wall = time.perf_counter() - began
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "requests": len(seconds),
        "requests_per_second": round(len(seconds) / wall, 1),
        "p50_ms": round(cuts[49] * 1e3, 3),
        "p95_ms": round(cuts[94] * 1e3, 3),
        "p99_ms": round(cuts[98] * 1e3, 3),
    }


def _run(url: str, message: bytes, clients: int, requests: int) -> list[float]:
    with ThreadPoolExecutor(clients) as threads:
        each = threads.map(lambda _: _client(url, message, requests // clients), range(clients))
        return [seconds for client in each for seconds in client]


def _client(url: str, message: bytes, requests: int) -> list[float]:
    """One connection, one request after another; the seconds that each took."""
    address = urlsplit(url)
    room = bytearray(2 * len(message))
    seconds = []
    with socket.create_connection((address.hostname, address.port)) as connection:
        for _ in range(requests):
            began = time.perf_counter()
            connection.sendall(message)
            _receive(connection, memoryview(room))
            seconds.append(time.perf_counter() - began)
    return seconds


def _receive(connection: socket.socket, room: memoryview) -> None:
    """Read one response; its head comes whole with the first bytes, as servers send it so."""
    have = connection.recv_into(room)
    head, _, body = bytes(room[:have]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    left = length - len(body)
    while left:
        left -= connection.recv_into(room)


if __name__ == "__main__":
    main()
