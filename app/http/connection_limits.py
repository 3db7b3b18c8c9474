"""Limits on connections: their number, and the time to send a request and to read its answer.

Uvicorn limits only how long a connection may be idle after an answer. It waits forever for a head, for a body, and
for a client that does not read its answer.
"""

import asyncio
from collections.abc import Callable
from functools import cached_property
from ipaddress import ip_address, ip_network

from app.errors import Error, Problem
from app.http.access import client_of
from app.http.connection import Connection
from app.settings import ServerConfig


class LimitedConnection(Connection):
    """A connection within the limits of a configuration: see `limited`."""

    limits: ServerConfig

    _in_head = False
    _sending: asyncio.TimerHandle | None = None  # the client has a head or a body to send until then
    _reading: asyncio.TimerHandle | None = None  # it has an answer to read until then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection over the limit at once."""
        super().connection_made(transport)
        if self._is_too_much():
            detail = "Close connections that are not needed, or try again later."
            self._refuse(Problem(Error.CONNECTIONS, detail, retry_after=1.0))
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Any byte stops uvicorn's timer of idle connections, even if no request begins with it."""
        super().data_received(data)
        if self._sending is None and self._is_idle() and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._sending is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Start the time limit of the body."""
        super().on_headers_complete()
        self._in_head = False
        self._expect(self.limits.body_seconds, self._body_is_late)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_sending()

    def pause_writing(self) -> None:
        """The client does not read: give it a limited time."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_sending()
        super().connection_lost(exc)
        self._stop_reading()

    def _is_too_much(self) -> bool:
        """A client may have as many connections as it leaves free; a trusted proxy stands for many clients."""
        free = self.limits.max_connections - len(self.connections)
        if free < 0 or self._is_trusted_proxy:
            return free < 0
        return sum(_client_of(each) == self.address for each in self.connections) > free + 1

    @cached_property
    def address(self) -> str:
        """The client by its own address. Headers of proxies are read later, and only from trusted ones."""
        return client_of(self.client[0]) if self.client else ""

    @property
    def _is_trusted_proxy(self) -> bool:
        if not (self.limits.trusted_proxies and self.client):
            return False
        peer = ip_address(self.client[0])
        return any(peer in ip_network(proxy) for proxy in self.limits.trusted_proxies)

    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _expect(self, seconds: float, late: Callable[[], None]) -> None:
        self._stop_sending()
        self._sending = self.loop.call_later(seconds, late)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect_head(self) -> None:
        self._expect(self.limits.header_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._sending = None
        if not self._is_idle():  # a pipelined request: the one before it has no answer yet
            self._expect_head()
        elif self._in_head:
            self._refuse(_late("line and headers", self.limits.header_seconds))
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        self._sending = None
        if self.flow.read_paused or self.pipeline:  # the client is not to blame: uvicorn has stopped reading
            self._expect(self.limits.body_seconds, self._body_is_late)
        elif self._running is None or self._running.response_started:
            self.transport.close()
        else:
            self._refuse(_late("body", self.limits.body_seconds))


def limited(config: ServerConfig, refused: Callable[[Problem, str], None]) -> type[LimitedConnection]:
    """A connection class with these limits, for uvicorn; `refused` is called with their problems."""

    class Limited(LimitedConnection):
        limits = config
        on_refusal = staticmethod(refused)
        max_head_bytes = config.max_header_bytes

    return Limited


def _client_of(connection: object) -> str:
    return connection.address if isinstance(connection, LimitedConnection) else ""


def _late(what: str, seconds: float) -> Problem:
    return Problem(Error.REQUEST_TIMEOUT, f"The request's {what} took more than {seconds:g} s to arrive.")
