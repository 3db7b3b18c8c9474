"""No request keeps others waiting: `/healthz` is answered while each of the costliest is read and refused, or served.

`python -m tests.bench.stalls` measures all classes: tens of milliseconds. Here is seen only that none takes seconds, by
the best of several times, as a busy machine may stop any process for a while.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.bench.stalls import build, send_built
from tests.fuzz.polling import HealthPoller
from tests.service.running import Service, until

STALL_SECONDS = 1.0
TIMES = 5  # at most
COSTLIEST = (
    "SSE of 8 images",
    "base64 of spaces",
    "unknown field of 31 MB of escapes",
    "many commas and brackets",
    "txt2img: 31 MB of {}",
    "txt2img: script_name of 8 MB",
    "options: 31 MB of keys",
    "integer of 31 MB as a text",
    "JSON in chunks of 1",
    "form: punycode",
    "form: headers of 20 MB",
    "form: almost boundaries",
    "JPEG of segments",
    "Accept of 60 KB of ranges",
    "GET /docs/swagger-ui-bundle.js",
)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service("echo") as service:
        yield service.wait_until_ready(workers=2)


@pytest.fixture(scope="module")
def sender() -> Iterator[ProcessPoolExecutor]:
    """A process that sends, so that this one only polls."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize("name", COSTLIEST)
def test_others_are_answered_meanwhile(service: Service, sender: ProcessPoolExecutor, name: str) -> None:
    sender.submit(build, name).result()
    stalls: list[float] = []
    with HealthPoller(service.url) as poller:
        until(lambda: bool(poller.polls))  # an answer may be there before the poller has connected
        while len(stalls) < TIMES and min(stalls, default=STALL_SECONDS) >= STALL_SECONDS:
            began = time.monotonic()
            status = sender.submit(send_built, service.url, name).result()
            stalls.append(poller.worst(began))
            assert status in {200, 400, 406, 413, 422}
    assert min(stalls) < STALL_SECONDS, stalls
