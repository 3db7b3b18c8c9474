"""How long a service takes to answer `/healthz`, all the time: what stalls its event loop is seen here."""

import socket
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

POLL = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
ALIVE = b'{"status":"ok"}'
PATIENCE = 180.0  # seconds, after which a poll fails


class Poll(NamedTuple):
    """When a poll was sent (time.monotonic), and the seconds that its answer took."""

    sent: float
    seconds: float


class HealthPoller:
    """Polls over one connection of its own, in a thread, while it is entered."""

    def __init__(self, url: str, pause: float = 0.002) -> None:
        self.polls: list[Poll] = []
        self.failure: Exception | None = None
        self._url = urlsplit(url)
        self._pause = pause
        self._waiting_since = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join(PATIENCE)

    def worst(self, since: float, until: float | None = None) -> float:
        """Seconds of the slowest poll that was under way between two moments. Raises what ended the polling."""
        if self.failure is not None:
            raise self.failure
        under_way = time.monotonic() - self._waiting_since if self._waiting_since and until is None else 0.0
        recent = (poll for poll in reversed(self.polls) if until is None or poll.sent <= until)
        slowest = under_way
        for poll in recent:
            if poll.sent + poll.seconds < since:
                break
            slowest = max(slowest, poll.seconds)
        return slowest

    def _run(self) -> None:
        try:
            while not self._ends.is_set():  # a service may close an idle connection: then another is made
                with socket.create_connection((self._url.hostname, self._url.port), PATIENCE) as connection:
                    while not self._ends.wait(self._pause) and self._poll(connection):
                        pass
        except (OSError, AssertionError) as error:
            self.failure = error

    def _poll(self, connection: socket.socket) -> bool:
        """Ask once; false if the connection has been closed meanwhile."""
        self._waiting_since = sent = time.monotonic()
        connection.sendall(POLL)
        answer = b""
        while not answer.endswith(ALIVE):
            if not (more := connection.recv(2**16)):
                assert not answer, answer
                return False
            answer += more
        self.polls.append(Poll(sent, time.monotonic() - sent))
        self._waiting_since = 0.0
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return True
