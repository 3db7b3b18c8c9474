"""All Prometheus metrics of the service. They live in the front-end process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.errors import Error
from scheduler import messages as m
from workers.nvml import Nvml, Reading
from workers.pool import Pool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Errors of a connection on which no whole request came
OF_CONNECTIONS = (Error.MALFORMED_HTTP, Error.HEAD_TOO_LARGE, Error.REQUEST_TIMEOUT, Error.CONNECTIONS)
OF_EDGES = (
    Error.MALFORMED_JSON,
    Error.UNAUTHORIZED,
    Error.NOT_ACCEPTABLE,
    Error.TOO_LARGE,
    Error.MEDIA_TYPE,
    Error.INVALID_FIELD,
    Error.INVALID_IMAGE,
    Error.INTERNAL,
    Error.WORKER_CRASH,
    Error.BUSY,
    Error.DRAINING,
    Error.EXPIRED,
)
STAGES = ("queue", "prepare", "denoise", "decode", "encode")


class Metrics:
    """The counters and histograms. `observe` is the pool's observer."""

    def __init__(self, runtime: str, dtype: str = "") -> None:
        # Without this there is a gauge beside each counter and histogram: its creation time, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        about = "The versions of the service and of torch, and the runtime with its number format."
        build = Info("contour_build", about, registry=self.registry)
        build.info({"version": __version__, "torch": _torch_version(), "runtime": runtime, "dtype": dtype})
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=SECONDS)
        self._requests = counter("contour_requests", "Requests answered, by outcome.", ["outcome"])
        self._refusals = counter(
            "contour_connection_errors", "Connections closed with an error before a whole request came.", ["reason"]
        )
        seconds = histogram(
            "contour_request_duration_seconds",
            "Time from the arrival of a request's headers to its answer: an image, or anything else.",
            ["answer"],
        )
        stages = histogram("contour_stage_seconds", "Time that each stage of a finished image took.", ["stage"])
        self._steps = counter("contour_steps", "Denoising steps taken, each for a whole batch.", ["worker"])
        self._occupancy = histogram(
            "contour_batch_occupancy", "Images in a step.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32)
        )
        self._losses = counter("contour_worker_losses", "Worker processes that ended.", ["worker"])
        self._retries = counter("contour_retries", "Jobs started again after their worker ended.")
        self._edges = counter("contour_edges", "Requests for edges, by outcome.", ["outcome"])
        self._edges_seconds = histogram(
            "contour_edges_seconds", "Time from the arrival of the headers of a request for edges to its answer."
        )
        self._started: set[m.JobId] = set()
        # A series exists before its first sample, so that rates start at 0. Looking it up takes as long as the sample.
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._seconds = {answer: seconds.labels(answer) for answer in ("image", "other")}
        for outcome in ("done", "abandoned", *(error.slug for error in Error if error not in OF_CONNECTIONS)):
            self._requests.labels(outcome)
        for outcome in ("done", "abandoned", *(error.slug for error in OF_EDGES)):
            self._edges.labels(outcome)
        for error in OF_CONNECTIONS:
            self._refusals.labels(error.slug)

    def request(self, outcome: str, seconds: float) -> None:
        self._requests.labels(outcome).inc()
        # Separately, as refusals take no time: they would make the service look faster.
        self._seconds["image" if outcome == "done" else "other"].observe(seconds)

    def edges(self, outcome: str, seconds: float) -> None:
        self._edges.labels(outcome).inc()
        if outcome == "done":
            self._edges_seconds.observe(seconds)

    def lookup(self, outcome: str, seconds: float) -> None:
        """A request that only reads something counts only if it was refused."""
        if outcome != "done":
            self.refused(outcome)

    def refused(self, outcome: str) -> None:
        """Count a request that was refused before its endpoint; there is nothing to time."""
        self._requests.labels(outcome).inc()

    def connection(self, error: Error) -> None:
        self._refusals.labels(error.slug).inc()

    def stages(self, seconds: Mapping[str, float]) -> None:
        for stage, series in self._stages.items():
            series.observe(seconds[stage])

    def observe(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        """Count the scheduler's events and commands."""
        match event:
            case m.Stepped(worker, done):
                self._steps.labels(worker).inc()
                self._occupancy.observe(len(done))
            case m.WorkerExited(worker):
                self._losses.labels(worker).inc()
            case _:
                pass
        for command in commands:
            self._count(command)

    def _count(self, command: m.Command) -> None:
        match command:
            case m.Spawn(worker):
                self._steps.labels(worker)
                self._losses.labels(worker)
            case m.Start(job):
                if job in self._started:
                    self._retries.inc()
                self._started.add(job)
            case m.Reply(job):
                self._started.discard(job)
            case _:
                pass


@dataclass(frozen=True, eq=False)
class PoolCollector(Collector):
    """The scheduler's state at the moment of the scrape."""

    pool: Pool

    def collect(self) -> Iterator[Metric]:
        core = self.pool.core
        yield GaugeMetricFamily("contour_queue_depth", "Jobs waiting for a slot.", core.queue_depth)
        yield GaugeMetricFamily("contour_jobs_running", "Jobs in a slot of a worker.", core.running)
        yield GaugeMetricFamily("contour_ready", "1 while an image can be generated.", float(core.ready))
        yield GaugeMetricFamily("contour_draining", "1 while no new requests are accepted.", float(core.draining))
        state = GaugeMetricFamily("contour_worker_state", "1 for the state a worker is in.", labels=["worker", "state"])
        slots = GaugeMetricFamily("contour_slots_in_use", "Shared-memory slots in use.", labels=["worker"])
        total = GaugeMetricFamily("contour_slots", "Shared-memory slots.", labels=["worker"])
        restarts = CounterMetricFamily("contour_worker_restarts", "Worker processes started again.", labels=["worker"])
        for view in core.workers():
            for each in m.WorkerState:
                state.add_metric([view.id, each], float(view.state is each))
            slots.add_metric([view.id], view.running)
            total.add_metric([view.id], view.capacity)
            restarts.add_metric([view.id], view.restarts)
        yield from (state, slots, total, restarts)


@dataclass(frozen=True, eq=False)
class EngineCollector(Collector):
    """The last report of each worker's engine. Workers that ended, or have not reported yet, are left out."""

    pool: Pool

    def collect(self) -> Iterator[Metric]:
        kernels = GaugeMetricFamily(
            "contour_worker_attention_kernel",
            "1 for the kernel chosen for a shape: rows x heads, queries x keys x head size.",
            labels=["worker", "shape", "kernel"],
        )
        graphs = GaugeMetricFamily("contour_worker_graphs", "CUDA graphs captured.", labels=["worker", "kind"])
        held = GaugeMetricFamily("contour_worker_graph_bytes", "Device memory of CUDA graphs.", labels=["worker"])
        fallbacks = CounterMetricFamily(
            "contour_worker_fallbacks",
            "Fallbacks to a slower implementation after the faster one failed.",
            labels=["worker", "reason"],
        )
        for worker, status in list(self.pool.statuses.items()):
            for shape, kernel in status.attention:
                kernels.add_metric([worker, shape, kernel], 1.0)
            for kind, number in status.graphs:
                graphs.add_metric([worker, kind], number)
            held.add_metric([worker], status.graph_bytes)
            for reason, number in status.fallbacks:
                fallbacks.add_metric([worker, reason], number)
        yield from (kernels, graphs, held, fallbacks)


@dataclass(eq=False)
class DeviceCollector(Collector):
    """NVML's readings of each worker's device. Those that a device does not support are left out."""

    pool: Pool
    nvml: Nvml
    _readings: list[tuple[str, str, Reading]] = field(default_factory=list)

    def read(self) -> None:
        """Read NVML, in any thread. It takes some milliseconds per device."""
        devices = [(worker, device.uuid) for worker, device in list(self.pool.devices.items())]
        self._readings = [(worker, uuid, self.nvml.read(uuid)) for worker, uuid in devices if uuid is not None]

    def collect(self) -> Iterator[Metric]:
        labels = ["worker", "uuid"]
        gauges = {
            "utilization": GaugeMetricFamily(
                "contour_device_utilization_ratio", "Share of time in which kernels ran.", labels=labels
            ),
            "memory_used": GaugeMetricFamily(
                "contour_device_memory_used_bytes", "Device memory in use.", labels=labels
            ),
            "memory_total": GaugeMetricFamily("contour_device_memory_bytes", "Device memory.", labels=labels),
            "temperature": GaugeMetricFamily("contour_device_temperature_celsius", "Core temperature.", labels=labels),
            "power": GaugeMetricFamily("contour_device_power_watts", "Power drawn.", labels=labels),
        }
        throttled = GaugeMetricFamily(
            "contour_device_throttled", "1 for each reason why clocks are throttled.", labels=[*labels, "reason"]
        )
        for worker, uuid, reading in self._readings:
            for name, family in gauges.items():
                _add(family, [worker, uuid], getattr(reading, name))
            for reason in reading.throttle_reasons or ():
                throttled.add_metric([worker, uuid, reason], 1.0)
        yield from gauges.values()
        yield throttled
        xids = CounterMetricFamily("contour_device_xid_errors", "XID errors since the start.", labels=["uuid", "xid"])
        for (uuid, xid), number in self.nvml.xids().items():
            xids.add_metric([uuid, str(xid)], number)
        yield xids


def _torch_version() -> str:
    """Read from the package's metadata: the front end does not import torch."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _add(family: GaugeMetricFamily, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
