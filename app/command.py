"""The command line: settings, parts, signals, and a server around them."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import ceil
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from app.access import Access
from app.generation import Generation
from app.health import Health
from app.limits import limited
from app.metrics import DeviceCollector, EngineCollector, Metrics, PoolCollector
from app.openapi import Description
from app.server import create_app
from app.settings import Settings, SettingsError, load, read_keys
from scheduler.core import Scheduler
from workers.allocator import keep_freed_memory
from workers.devices import Gpu, Placement, choose_devices
from workers.engine.weights import absent
from workers.folders import prepare
from workers.logs import configure
from workers.pool import NothingServedError, Pool
from workers.process import Setup
from workers.slots import SlotLayout
from workers.telemetry import Nvml

log = logging.getLogger("contour")

UTF8_BYTES = 4  # that a character takes at most
MAX_DIGITS = (
    640  # of an integer in a request: as few as Python can be told, as the time to read them grows with their square
)
CLOSE_SECONDS = 10  # given to answers that are being written when everything else has ended


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal ends it; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = load(options.config, _environment(options))
    except SettingsError as error:
        return _refuse(str(error))
    if missing := absent(settings.engine):
        listed = "\n  ".join(missing)
        get = f"python -m workers.fetch {options.config}"
        return _refuse(f"These weights are not on this machine:\n  {listed}\nGet them with: {get}")
    try:
        prepare(settings.workers.cache)
    except (OSError, RuntimeError) as error:
        return _refuse(f"workers.cache is {settings.workers.cache}, which cannot be written to: {error}")
    configure(settings.server.log_level)
    sys.set_int_max_str_digits(MAX_DIGITS)
    keep_freed_memory()
    nvml = Nvml.open()
    try:
        return _serve(settings, nvml)
    finally:
        if nvml is not None:
            nvml.close()


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"), help="a YAML file, see configs/")
    parser.add_argument("--host", help="address to listen on; instead of the configuration's server.host")
    parser.add_argument("--port", help="port to listen on, 0 for any; instead of the configuration's server.port")
    return parser


def _environment(options: argparse.Namespace) -> Mapping[str, str]:
    """The environment with the flags on top, as they are the same kind of override."""
    flags = {"CONTOUR_SERVER__HOST": options.host, "CONTOUR_SERVER__PORT": options.port}
    return os.environ | {name: value for name, value in flags.items() if value is not None}


def _serve(settings: Settings, nvml: Nvml | None) -> int:
    placement = choose_devices(os.environ, nvml, settings.workers.cpu_workers)
    metrics = Metrics()
    pool = _pool(settings, placement, metrics)
    metrics.registry.register(PoolCollector(pool))
    metrics.registry.register(EngineCollector(pool))
    if nvml is not None:
        metrics.registry.register(DeviceCollector(pool, nvml))
    service = _Service(pool, settings, nvml)
    generation = Generation(pool, Access(read_keys(settings.server)), settings.server, settings.engine.size, metrics)
    health, description = Health(pool, placement.reason), Description(settings.server)
    app = create_app(generation, health, description, metrics.registry, service.lifespan)
    _announce(settings, placement)
    return service.run(app)


def _pool(settings: Settings, placement: Placement, metrics: Metrics) -> Pool:
    layout = SlotLayout(
        settings.engine.slots,
        settings.server.max_picture_bytes + UTF8_BYTES * settings.server.max_text_chars,
        settings.workers.output_bytes,
    )
    threads = settings.workers.threads_per_worker(len(os.sched_getaffinity(0)), len(placement.devices))
    core = Scheduler([device.id for device in placement.devices], settings.scheduler)
    return Pool(
        [
            Setup(device, settings.engine, threads, settings.server.log_level, settings.workers.cache)
            for device in placement.devices
        ],
        core,
        layout,
        metrics.observe,
    )


def _announce(settings: Settings, placement: Placement) -> None:
    engine = settings.engine
    if engine.kind == "echo":
        log.info("serves echo: pictures come back as they are")
    elif engine.model is not None:
        log.info(
            "serves %s: %s, %d steps, guidance %g, short side %d px",
            engine.model.path,
            engine.sampler.name,
            engine.sampler.steps,
            engine.guidance_scale,
            engine.size.short_side,
        )
    devices = ", ".join(device.id for device in placement.devices)
    level = logging.INFO if placement.devices[0].kind == "cuda" else logging.WARNING
    log.log(level, "workers %s: %s", devices, placement.reason)


class _Service:
    """The life of the process: bound, serving, draining, gone."""

    def __init__(self, pool: Pool, settings: Settings, nvml: Nvml | None) -> None:
        self._pool = pool
        self._settings = settings
        self._nvml = nvml
        self._server: _Server | None = None
        self._failed = False

    def run(self, app: Starlette) -> int:
        """Serve; 0 after a drain, 1 when nothing can be served any more."""
        config = uvicorn.Config(
            app,
            self._settings.server.host,
            self._settings.server.port,
            loop="uvloop",
            http=limited(self._settings.server),
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
        return int(self._failed or not self._server.started)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """The pool runs beside the server, whose port is bound before any model is loaded."""
        running = asyncio.create_task(self._pool.run())
        running.add_done_callback(self._ended)
        if self._nvml is not None:
            self._nvml.run(partial(self._alarm, asyncio.get_running_loop()))
        yield
        self._pool.drain(0.0)
        await asyncio.wait([running])

    def _ended(self, running: "asyncio.Task[None]") -> None:
        assert self._server is not None
        self._server.should_exit = True
        error = running.exception()
        self._failed = error is not None
        if isinstance(error, NothingServedError):
            log.error("nothing can be served any more: %s", error)
        elif error is not None:
            log.error("the pool has failed", exc_info=error)

    def _alarm(self, loop: asyncio.AbstractEventLoop, gpu: Gpu, xid: int) -> None:
        """In NVML's thread: a GPU has had an error."""
        if xid not in self._settings.workers.harmless_xids:
            uuids, reason = {gpu.uuid, *(gpu.instances or ())}, f"GPU {gpu.uuid} reports XID {xid}"
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._pool.fault, uuids, reason)

    def _stop(self, signals: int) -> None:
        """First signal: finish what was accepted. Second: answer everybody now."""
        seconds = self._settings.server.drain_seconds if signals == 1 else 0.0
        log.info("draining, for at most %g s", seconds)
        self._pool.drain(seconds)


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
