"""The whole service over real HTTP: whatever one client sends, the next gets its image, and the loop goes on."""

import argparse
import base64
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import h11
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.polling import HealthPoller
from tests.fuzz.regressions import REGRESSIONS
from tests.fuzz.requests import Request, send
from tests.fuzz.strategies import FRIEND, KEY, requests
from tests.service.running import Service, file_of, result_pixels, until

EXAMPLES = 100  # between two looks at the clock
STALL_SECONDS = 3.0  # that /healthz may take: far more than it should, as machines that test are busy
IDLE_SECONDS = 20.0  # until a service has nothing in hand
PATIENCE = 180.0
ERROR_BYTES = 4096
DOCUMENTED = frozenset({200, 304, 400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 429, 431, 503, 504})
UNREAD = frozenset({400, 408, 431})  # whether a head that cannot be read is that of a HEAD is not known
SETTINGS = {
    "ENGINE__OUTPUT__FORMAT": "png",
    "SERVER__MAX_PIXELS": 4_000_000,
    "SERVER__HEADER_SECONDS": 0.5,  # an unfinished request is refused soon
    "SERVER__BODY_SECONDS": 2,
    "SERVER__KEEP_ALIVE_SECONDS": 0.2,
}
# Keys, proxies and origins are only looked at where there are some.
CLOSED = SETTINGS | {
    "SERVER__API_KEY": KEY,
    "SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
    "SERVER__ALLOWED_ORIGINS": json.dumps([FRIEND]),
    "SERVER__SHARED_PROGRESS": "true",
}


class ServiceTarget:
    """A running service that is sent requests. Each is followed by a good one, whose image must come back."""

    def __init__(self, settings: Mapping[str, object], last: Path) -> None:
        self._last = last
        self._number = 0
        self._service = Service("echo", **settings)
        self._poller = HealthPoller(self._service.url, pause=0.01)

    def __enter__(self) -> Self:
        self._service.wait_until_ready(workers=2).client.headers["X-API-Key"] = KEY
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poller.__exit__(kind, error, trace)
        self._service.__exit__(kind, error, trace)

    def __call__(self, request: Request) -> None:
        """Send it, and see that it is answered honestly and has done no harm."""
        wire = list(request.wire)
        self._last.write_bytes(b"".join(wire))
        self.check(request.method, wire)

    def check(self, method: str, wire: Iterable[bytes]) -> None:
        """The same of a request as it lies in a file."""
        began = time.monotonic()
        for status, headers, body in answers(send(self._service.url, wire, PATIENCE), method):
            assert status in DOCUMENTED, (status, body[:1000])
            if status >= 400:
                assert len(body) <= ERROR_BYTES, (status, len(body), body[:200])
                assert headers["content-type"].endswith("json"), headers
                assert method == "HEAD" or isinstance(json.loads(body), dict)
        self._check_harm(began)

    def _check_harm(self, began: float) -> None:
        self._number += 1
        image = np.full((64, 64, 3), self._number % 256, np.uint8)
        encoded = base64.b64encode(file_of(image)).decode()
        assert np.array_equal(result_pixels(self._service.generate(input_image_base64=encoded)), image)
        until(self._is_idle, IDLE_SECONDS)
        restarts = [worker["restarts"] for worker in self._service.readiness()["workers"]]
        assert restarts == [0, 0], f"workers were lost: {restarts}"
        wrong = [line for line in self._service.log if "Traceback" in line or " ERROR " in line]
        assert not wrong, "".join(self._service.log[-60:])
        stall = self._poller.worst(began)
        assert stall <= STALL_SECONDS, f"/healthz took {stall:.1f} s"
        self._service.log.clear()

    def _is_idle(self) -> bool:
        readiness = self._service.readiness()
        return bool(readiness["ready"]) and readiness["running"] == readiness["queued"] == 0


def answers(received: bytes, method: str) -> list[tuple[int, dict[str, str], bytes]]:
    """The responses in some bytes: status, headers, body. Raises h11.RemoteProtocolError for what is no HTTP."""
    found = []
    while received:
        status, headers, body, received = _first(received, method)
        if method == "HEAD" and status in UNREAD:
            body, received = received, b""
        found.append((status, headers, body))
    return found


def _first(received: bytes, method: str) -> tuple[int, dict[str, str], bytes, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(received)
    while isinstance(event := connection.next_event(), h11.InformationalResponse):
        pass
    if event is h11.NEED_DATA:
        connection.receive_data(b"")
        event = connection.next_event()
    assert isinstance(event, h11.Response), event
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
    status, pieces = event.status_code, []
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            connection.receive_data(b"")
        else:
            assert isinstance(event, h11.Data), event
            pieces.append(bytes(event.data))
    return status, headers, b"".join(pieces), connection.trailing_data[0]


def fuzz(options: argparse.Namespace) -> None:
    """All regressions, then as many examples or seconds as the options say, with two configurations in turn."""
    last = options.findings / "service-last"
    with ServiceTarget(SETTINGS, last) as plain, ServiceTarget(CLOSED, last) as closed:
        if options.replay is not None:
            data = options.replay.read_bytes()
            for target in (plain, closed):
                target.check(data.partition(b" ")[0].decode("latin-1"), [data])
            return
        _repeat_regressions(plain)
        ends, turn, done = time.monotonic() + options.seconds, options.seed, 0
        while time.monotonic() < ends and done < (options.examples or done + 1):
            count = min(EXAMPLES, options.examples or EXAMPLES)
            _examine((plain, closed)[turn % 2], turn, count)
            turn, done = turn + 1, done + count
    print(f"service: {done} examples, nothing found")


def _repeat_regressions(target: ServiceTarget) -> None:
    for name, build in REGRESSIONS.items():
        try:
            target(build())
        except Exception as error:
            error.add_note(f"It is the known attack {name!r}.")
            raise


def _examine(target: ServiceTarget, turn: int, count: int) -> None:
    @seed(turn)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # to shrink what has harmed a service would take minutes; it is in a file
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def examine(request: Request) -> None:
        target(request)

    examine()
