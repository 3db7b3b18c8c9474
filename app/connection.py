"""One client's connection: uvicorn's protocol with bounds on what is kept, and with our errors.

Uvicorn keeps heads and trailers of any length, and as many pipelined requests as a client cares to send. It also loses
the body of a request that offers an upgrade, as Java's HTTP client does at first (RFC 9110 7.8: it may be ignored), and
of several requests on a connection that is lost, only the last is told.
"""

from collections.abc import Callable

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Error, Problem, respond

MAX_PIPELINED = 100  # requests that wait for the answer to the one before them


class Connection(HttpToolsProtocol):
    """Tell uvicorn of it with `http=Connection`."""

    max_head_bytes = 64 * 1024  # request line and headers; other servers take 8 to 64 KiB
    on_refusal: Callable[[Error], None] = staticmethod(lambda error: None)  # told of each error that closes one

    # Bytes read since a head began or ended or a piece of a body came: of a head, of a trailer, or between chunks.
    _unused = 0
    _refusal: Problem | None = None
    _running: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        self._unset_keepalive_if_required()
        self._unused += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._ignore_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or Problem(Error.BROKEN_HTTP, f"It cannot be read: {error}."))
        else:
            if self._unused > self.max_head_bytes:
                self._refuse(self._head_too_large())

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._unused = 0

    def on_headers_complete(self) -> None:
        """A head is complete. What is raised here comes back out of the parser as HttpParserError."""
        self._unused = 0
        if self._offers_upgrade():
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._refusal = self._head_too_large()
        elif len(self.pipeline) >= MAX_PIPELINED:
            detail = f"More than {MAX_PIPELINED} requests came before the first of them was answered."
            self._refusal = Problem(Error.BROKEN_HTTP, detail)
        if self._refusal is not None:
            raise self._refusal
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body came."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body is complete."""
        if not self._offers_upgrade():
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or we have closed."""
        self._abandon()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _abandon(self) -> None:
        """Tell the request that runs that nobody will read its answer."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request once more, as if it offered none."""
        if not self._offers_upgrade():
            return
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self.data_received(b"".join([line, *headers, b"\r\n", rest]))

    def _refuse(self, problem: Problem) -> None:
        """Answer with an error and close: where the next request begins is not known."""
        self.logger.debug("refused: %s", problem.detail)
        if self.transport.is_closing():
            return
        self.on_refusal(problem.error)
        self.flow.resume_reading()  # uvicorn must not ask for it when the transport is closed
        response = respond(problem)
        headers = [b"%b: %b\r\n" % header for header in (*response.raw_headers, (b"connection", b"close"))]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *headers, b"\r\n", response.body]))
        self.transport.close()
        self._abandon()

    def _head_too_large(self) -> Problem:
        detail = f"The request's line and headers take more than {self.max_head_bytes} bytes."
        return Problem(Error.HEAD_TOO_LARGE, detail)
