"""`python -m app serve`: settings, signals, and a server around the application."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from types import FrameType

import uvicorn

from app import __version__
from app.application import Application
from app.errors import Error, Problem
from app.http.connection import Connection, limited
from app.http.listening import BACKLOG, ListenError, bracketed, listen, url
from app.settings import Settings
from app.startup import StartError, prepared
from workers.confinement import forget_secrets
from workers.console import WRONG, Parser, add_configuration
from workers.logs import counted
from workers.machine import available_cores
from workers.nvml import Nvml

log = logging.getLogger("contour")

CLOSE_SECONDS = 10.0  # for bodies and answers in progress, when everything else has ended
CUT_CLOSE_SECONDS, CUT_SECONDS = 0.3, 1.0  # the same after a second signal, and until the process ends at the latest
CANCEL_SECONDS = 5  # after connections were closed, until uvicorn cancels what still runs, with a traceback
DEAF_SIGNALS = 2  # a stuck event loop ignores so many; the next one ends the process
SIGNALLED = 128  # an exit code: this plus the signal's number


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = prepared(options.config, os.environ, _flags(options))
        listeners = listen(settings.server.host, settings.server.port)
    except StartError as error:
        print(error, file=sys.stderr)
        return WRONG
    except ListenError as error:
        print(f"{error} {error.remedy[0].upper()}{error.remedy[1:]}.", file=sys.stderr)
        return WRONG
    nvml = Nvml.open()
    try:
        service = _Service(settings, nvml, listeners)
        forget_secrets(os.environ)  # after everything has read them, and before a worker starts
        return service.run()
    except StartError as error:
        print(str(error).replace("CONFIG", str(options.config)), file=sys.stderr)
        return WRONG
    finally:
        if nvml is not None:
            nvml.close()


def _parser() -> Parser:
    parser = Parser(
        "app",
        description="Serve a configuration over HTTP. The word `serve` may be left out.",
        epilog="other commands, each with its own --help: generate (images without a server), "
        "doctor (check this machine), config (the settings in effect)",
    )
    add_configuration(parser)
    parser.add_argument("--host", help="address to listen on; overrides server.host")
    parser.add_argument("--port", help="port to listen on, 0 for any free one; overrides server.port")
    parser.add_argument("--version", action="version", version=f"Contour {__version__}")
    return parser


def _flags(options: argparse.Namespace) -> Mapping[str, str]:
    """Flags by the keys that they override."""
    flags = {"server.host": options.host, "server.port": options.port}
    return {key: value for key, value in flags.items() if value is not None}


class _Service:
    """The life of the process: listen, serve, drain, exit."""

    def __init__(self, settings: Settings, nvml: Nvml | None, listeners: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._application = Application(settings, os.environ, nvml, available_cores(), self._ended, self._ready)
        self._server: _Server | None = None
        self._cut_by: int | None = None  # the signal that ended it before all requests were finished

    def run(self) -> int:
        """Serve. Return 0 after a drain, 1 if all workers failed, 128 plus a signal's number if cut short."""
        config = uvicorn.Config(
            self._application.asgi,
            loop="uvloop",
            http=limited(self._settings.server, self._application.lifecycle.on_connection_error),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # app.http.prefix reads them
            timeout_keep_alive=ceil(self._settings.server.keep_alive_seconds),
            timeout_graceful_shutdown=int(CLOSE_SECONDS) + CANCEL_SECONDS,
            backlog=BACKLOG,
        )
        self._server = _Server(config, self._stop)
        self._server.run(list(self._listeners))
        if self._cut_by is not None:
            return SIGNALLED + self._cut_by
        return int(self._application.failure is not None or not self._server.started)

    def _ready(self) -> None:
        log.info("Ready: %s", url(self._listeners[0]))

    def _ended(self) -> None:
        assert self._server is not None
        self._server.should_exit = True

    def _stop(self, signals: int, number: int) -> None:
        """First signal: finish what was accepted. Second: answer everybody now, and kill the workers."""
        if signals == 1:
            self._drain(number)
        elif signals == 2:
            self._cut(number)

    def _drain(self, number: int) -> None:
        requests, seconds = self._application.lifecycle.open_requests, self._settings.server.drain_seconds
        again = "press Ctrl+C" if number == signal.SIGINT else f"send {signal.Signals(number).name}"
        if requests:
            what = counted(requests, "request")
            log.info("Finishing %s, for at most %g s; %s again to stop at once", what, seconds, again)
        else:
            log.info("Stopping; %s again to stop at once", again)
        self._application.pool.drain(seconds)

    def _cut(self, number: int) -> None:
        assert self._server is not None
        self._cut_by = number
        log.warning("Stopping at once; unfinished requests: %d", self._application.lifecycle.open_requests)
        self._server.close_connections(CUT_CLOSE_SECONDS)
        self._application.pool.drain(0.0)  # this answers everybody
        self._application.pool.kill()
        # In case anything still blocks. The kernel ends the other processes with this one; shared memory has no name.
        asyncio.get_running_loop().call_later(CUT_SECONDS, os._exit, SIGNALLED + number)


class _Server(uvicorn.Server):
    """Uvicorn, but a signal drains first: load balancers turn away, and accepted work is finished."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int, int], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self._signals = 0  # that the loop has seen
        self._unheard = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            log.info("Listening on http://%s:%d", bracketed(host), port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give open connections time to finish."""
        self.close_connections(CLOSE_SECONDS)
        await super().shutdown(sockets)

    def close_connections(self, seconds: float) -> None:
        """Close the connections that are still open after `seconds`."""
        asyncio.get_running_loop().call_later(seconds, self._close_connections)

    def _close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.end(Problem(Error.DRAINING, "The service stopped before this request had fully arrived."))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs in the main thread, between any two instructions, so it only passes the signal on to the loop.

        Signals count as one until the loop has seen the first: `timeout` signals a process and then its group.
        """
        self._unheard += 1
        if self._loop is None:
            self.should_exit = True
        elif self._unheard == 1:
            self._loop.call_soon_threadsafe(self._hear, sig)
        elif self._unheard > DEAF_SIGNALS:
            os._exit(SIGNALLED + sig)  # the loop is stuck

    def _hear(self, sig: int) -> None:
        self._unheard = 0
        self._signals += 1
        self._on_signal(self._signals, sig)
