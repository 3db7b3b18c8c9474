"""The command line: settings, signals, and a server around the application."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from types import FrameType

import uvicorn

from app.application import Application
from app.limits import limited
from app.settings import Settings
from app.start import StartError, prepared
from workers.cores import available_cores
from workers.secrets import forget_secrets
from workers.telemetry import Nvml

log = logging.getLogger("contour")

CLOSE_SECONDS = 10  # given to answers that are being written when everything else has ended


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal ends it; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = prepared(options.config, os.environ, _flags(options))
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    nvml = Nvml.open()
    try:
        service = _Service(settings, nvml)
        forget_secrets(os.environ)  # all that reads them has done so by now, and no worker is started yet
        return service.run()
    except StartError as error:
        print(str(error).replace("CONFIG", str(options.config)), file=sys.stderr)
        return 2
    finally:
        if nvml is not None:
            nvml.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve. The word `serve` may stand first; other commands have a --help of their own.",
        epilog="other commands: generate (pictures without a server), doctor (what this machine has, and lacks)",
    )
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"), help="a YAML file, see configs/")
    parser.add_argument("--host", help="address to listen on; instead of the configuration's server.host")
    parser.add_argument("--port", help="port to listen on, 0 for any; instead of the configuration's server.port")
    return parser


def _flags(options: argparse.Namespace) -> Mapping[str, str]:
    """Flags by the keys that they override."""
    flags = {"server.host": options.host, "server.port": options.port}
    return {key: value for key, value in flags.items() if value is not None}


class _Service:
    """The life of the process: bound, serving, draining, gone."""

    def __init__(self, settings: Settings, nvml: Nvml | None) -> None:
        self._settings = settings
        self._application = Application(settings, os.environ, nvml, available_cores(), self._ended)
        self._server: _Server | None = None

    def run(self) -> int:
        """Serve; 0 after a drain, 1 when nothing can be served any more."""
        config = uvicorn.Config(
            self._application.asgi,
            self._settings.server.host,
            self._settings.server.port,
            loop="uvloop",
            http=limited(self._settings.server, self._application.metrics.connection),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(self._settings.server.trusted_proxies),
            forwarded_allow_ips=self._settings.server.trusted_proxies,
            timeout_keep_alive=ceil(self._settings.server.keep_alive_seconds),
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        self._server = _Server(config, self._stop)
        self._server.run()
        return int(self._application.failure is not None or not self._server.started)

    def _ended(self) -> None:
        assert self._server is not None
        self._server.should_exit = True

    def _stop(self, signals: int) -> None:
        """First signal: finish what was accepted. Second: answer everybody now."""
        seconds = self._settings.server.drain_seconds if signals == 1 else 0.0
        log.info("draining, for at most %g s", seconds)
        self._application.pool.drain(seconds)


class _Server(uvicorn.Server):
    """Uvicorn, but a signal drains before anything closes: clients are told, balancers look away, work is finished."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                log.info("listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the main thread, between any two instructions of it: only passes the news on to the loop."""
        self._signals += 1
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._on_signal, self._signals)
