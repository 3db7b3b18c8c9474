"""Every Prometheus metric of the service, declared in one place. All of them live in the front-end process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import Error
from scheduler import messages as m
from workers.nvml import Nvml, Reading
from workers.pool import Pool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Of connections: there was no whole request
OF_CONNECTIONS = (Error.MALFORMED_HTTP, Error.HEAD_TOO_LARGE, Error.REQUEST_TIMEOUT, Error.CONNECTIONS)
OF_EDGES = (
    Error.MALFORMED_JSON,
    Error.UNAUTHORIZED,
    Error.NOT_ACCEPTABLE,
    Error.TOO_LARGE,
    Error.MEDIA_TYPE,
    Error.INVALID_FIELD,
    Error.INVALID_PICTURE,
    Error.INTERNAL,
    Error.WORKER_CRASH,
    Error.BUSY,
    Error.DRAINING,
    Error.EXPIRED,
)
STAGES = ("queue", "prepare", "denoise", "decode", "encode")


class Metrics:
    """What is counted as it happens. `observe` is the pool's observer."""

    def __init__(self) -> None:
        # Else there is a gauge beside each counter and histogram, for a format that has other means for that.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = Counter(
            "contour_requests", "Requests answered, by outcome.", ["outcome"], registry=self.registry
        )
        self._refusals = Counter(
            "contour_connection_errors",
            "Connections closed with an error, as no whole request came.",
            ["reason"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "contour_request_seconds",
            "A request from its head to its answer: a picture, or something else.",
            ["answer"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "contour_stage_seconds", "Stages of a finished picture.", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self._steps = Counter(
            "contour_steps", "Denoising steps taken, each for a whole batch.", ["worker"], registry=self.registry
        )
        self._occupancy = Histogram(
            "contour_batch_occupancy",
            "Pictures in a step.",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32),
            registry=self.registry,
        )
        self._losses = Counter("contour_worker_losses", "Worker processes lost.", ["worker"], registry=self.registry)
        self._retries = Counter(
            "contour_retries", "Jobs started once more after a lost worker.", registry=self.registry
        )
        self._edges = Counter("contour_edges", "Requests for edges, by outcome.", ["outcome"], registry=self.registry)
        self._edges_seconds = Histogram(
            "contour_edges_seconds",
            "Edges from the request's head to the answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._started: set[m.JobId] = set()
        # A series exists before its first sample, so that rates start at 0.
        for stage in STAGES:
            self._stages.labels(stage)
        for outcome in ("done", "abandoned", *(error.slug for error in Error if error not in OF_CONNECTIONS)):
            self._requests.labels(outcome)
        for outcome in ("done", "abandoned", *(error.slug for error in OF_EDGES)):
            self._edges.labels(outcome)
        for error in OF_CONNECTIONS:
            self._refusals.labels(error.slug)
        for answer in ("picture", "other"):
            self._seconds.labels(answer)

    def request(self, outcome: str, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(outcome).inc()
        # Apart, as refusals take no time: the more there are, the better all answers together would look.
        self._seconds.labels("picture" if outcome == "done" else "other").observe(seconds)

    def edges(self, outcome: str, seconds: float) -> None:
        """A request for edges was answered."""
        self._edges.labels(outcome).inc()
        if outcome == "done":
            self._edges_seconds.observe(seconds)

    def lookup(self, outcome: str, seconds: float) -> None:
        """Something was looked up: there is nothing to time, and it counts only if it was refused."""
        if outcome != "done":
            self.refused(outcome)

    def refused(self, outcome: str) -> None:
        """The router refused a request: there is nothing to time."""
        self._requests.labels(outcome).inc()

    def connection(self, error: Error) -> None:
        """A connection was closed with an error."""
        self._refusals.labels(error.slug).inc()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """A picture was finished; its stages took so long."""
        for stage in STAGES:
            self._stages.labels(stage).observe(seconds[stage])

    def observe(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        """Count what the scheduler was told and what it said."""
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
    """What the scheduler's state is at the moment of the scrape."""

    pool: Pool

    def collect(self) -> Iterator[Metric]:
        """Read the state, on the event loop."""
        core = self.pool.core
        yield GaugeMetricFamily("contour_queue_depth", "Jobs waiting for a slot.", core.queue_depth)
        yield GaugeMetricFamily("contour_running", "Jobs in a slot of a worker.", core.running)
        yield GaugeMetricFamily("contour_ready", "1 while a picture can be made.", float(core.ready))
        yield GaugeMetricFamily("contour_draining", "1 while nothing new is taken.", float(core.draining))
        state = GaugeMetricFamily("contour_worker_state", "1 for the state a worker is in.", labels=["worker", "state"])
        slots = GaugeMetricFamily("contour_slots_in_use", "Shared-memory slots in use.", labels=["worker"])
        total = GaugeMetricFamily("contour_slots", "Shared-memory slots there are.", labels=["worker"])
        restarts = CounterMetricFamily("contour_worker_restarts", "Processes started again.", labels=["worker"])
        for view in core.workers():
            for each in m.WorkerState:
                state.add_metric([view.id, each], float(view.state is each))
            slots.add_metric([view.id], view.running)
            total.add_metric([view.id], view.capacity)
            restarts.add_metric([view.id], view.restarts)
        yield from (state, slots, total, restarts)


@dataclass(frozen=True, eq=False)
class EngineCollector(Collector):
    """How each worker's engine runs, as it said last; a worker that is lost, or has said nothing, is left out."""

    pool: Pool

    def collect(self) -> Iterator[Metric]:
        """Read the state, on the event loop."""
        kernels = GaugeMetricFamily(
            "contour_worker_attention_kernel",
            "1 for the kernel that was chosen for a shape: rows x heads, queries x keys x head size.",
            labels=["worker", "shape", "kernel"],
        )
        graphs = GaugeMetricFamily("contour_worker_graphs", "CUDA graphs captured.", labels=["worker", "kind"])
        held = GaugeMetricFamily("contour_worker_graph_bytes", "Device memory of CUDA graphs.", labels=["worker"])
        fallbacks = CounterMetricFamily(
            "contour_worker_fallbacks", "A slower way taken, as the faster one failed.", labels=["worker", "reason"]
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
    """What NVML says of each worker's device. A reading that a device does not support is left out."""

    pool: Pool
    nvml: Nvml
    _readings: list[tuple[str, str, Reading]] = field(default_factory=list)

    def read(self) -> None:
        """Ask NVML, in any thread; some milliseconds a device."""
        devices = [(worker, device.uuid) for worker, device in list(self.pool.devices.items())]
        self._readings = [(worker, uuid, self.nvml.read(uuid)) for worker, uuid in devices if uuid is not None]

    def collect(self) -> Iterator[Metric]:
        """What was read last."""
        labels = ["worker", "uuid"]
        gauges = {
            "utilization": GaugeMetricFamily("contour_device_utilization_ratio", "Time kernels ran.", labels=labels),
            "memory_used": GaugeMetricFamily(
                "contour_device_memory_used_bytes", "Device memory in use.", labels=labels
            ),
            "memory_total": GaugeMetricFamily("contour_device_memory_bytes", "Device memory there is.", labels=labels),
            "temperature": GaugeMetricFamily("contour_device_temperature_celsius", "Core temperature.", labels=labels),
            "power": GaugeMetricFamily("contour_device_power_watts", "Power drawn.", labels=labels),
        }
        throttled = GaugeMetricFamily(
            "contour_device_throttled", "1 for each reason that clocks are held down.", labels=[*labels, "reason"]
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


def _add(family: GaugeMetricFamily, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
