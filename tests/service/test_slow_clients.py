"""Clients that are slow, or close half of their connection: they get what is theirs, and hold nobody up."""

import asyncio
import base64
import json
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.service.asking import Cut, Manner, ask, message
from tests.service.raw import answers, connect, head, read
from tests.service.running import Service, file_of, good_request, png, until

SLOW = {"ENGINE__ECHO__STEPS": 100, "ENGINE__ECHO__STEP_SECONDS": 0.1}  # an image takes ten seconds
SMALL = 8 * 1024  # bytes; the kernel takes in little more for a client that does not read
SIDE = 1200  # pixels of noise: some 4 MB, more than all buffers on the way


def large_image() -> bytes:
    return file_of(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def body(image: bytes) -> bytes:
    return json.dumps(good_request(input_image_base64=base64.b64encode(image).decode())).encode()


def test_a_client_that_reads_slowly_gets_its_image_and_holds_nobody_up() -> None:
    image = large_image()
    head, content = message(body(image))
    with Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__SLOTS=1, ENGINE__ECHO__REENCODE="false") as service:
        service.wait_until_ready()
        address = urlsplit(service.url)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            slow.connect((address.hostname, address.port))
            slow.sendall(head + content)
            until(lambda: service.sample("contour_requests_total", outcome="done") == 1)
            for _ in range(5):
                assert service.generate().status_code == 200
            answer = b"".join(iter(lambda: slow.recv(2**16), b""))
    response = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert base64.b64decode(response["output_image_base64"]) == image


def test_a_client_that_sends_slowly_takes_no_slot_until_it_has_sent_all(echo: Service) -> None:
    cut = body(png(640, 480)[:1000])  # its header is whole: only a worker sees what is wrong
    with connect(echo) as slow:
        slow.sendall(head(f"Content-Length: {len(cut)}") + cut[:-1])
        assert [echo.generate().status_code for _ in range(5)] == [200] * 5
        assert echo.sample("contour_jobs_running") == 0
        slow.sendall(cut[-1:])
        assert answers(read(slow))[0].status == 422


def test_a_client_that_closes_its_half_is_one_that_left_and_its_slot_is_free() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__SLOTS=1, **SLOW) as service:
        service.wait_until_ready()
        with pytest.raises(Cut):
            asyncio.run(ask(service.url, *message(json.dumps(good_request()).encode()), Manner.HALF_CLOSED))
        until(lambda: service.sample("contour_requests_total", outcome="abandoned") == 1)
        until(lambda: not any(worker["running"] for worker in service.readiness()["workers"]))
        assert service.client.get("/readyz").status_code == 200
