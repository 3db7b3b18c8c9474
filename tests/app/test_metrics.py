"""GPU readings in /metrics, with a fake GPU; the rest is tested on the running service."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import MetricsEndpoint
from app.errors import Error
from app.metrics import DeviceCollector, EngineCollector, Metrics
from scheduler import messages as m
from workers.channel import Device
from workers.engine.contract import EngineStatus
from workers.nvml import Reading

READING = Reading(
    utilization=0.83, memory_used=5 * 2**30, memory_total=80 * 2**30, temperature=61.0, throttle_reasons=("hw_thermal",)
)


class OneGpu:
    """NVML with one GPU that does not tell its power."""

    def read(self, uuid: str) -> Reading:
        assert uuid == "GPU-1"
        return READING

    def xids(self) -> dict[tuple[str, int], int]:
        return {("GPU-1", 79): 2}


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def test_each_workers_gpu_is_shown_and_what_it_does_not_tell_is_left_out() -> None:
    pool = SimpleNamespace(devices={"gpu0": Device("NVIDIA H100", "GPU-1"), "cpu0": Device("CPU", None)})
    registry = CollectorRegistry()
    devices = DeviceCollector(cast(Any, pool), cast(Any, OneGpu()))
    registry.register(devices)
    assert not [name for name, labels in samples(registry) if ("worker", "gpu0") in labels]  # nothing is read meanwhile
    devices.read()
    labels = (("uuid", "GPU-1"), ("worker", "gpu0"))
    assert samples(registry) == {
        ("contour_device_utilization_ratio", labels): 0.83,
        ("contour_device_memory_used_bytes", labels): 5 * 2**30,
        ("contour_device_memory_bytes", labels): 80 * 2**30,
        ("contour_device_temperature_celsius", labels): 61.0,
        ("contour_device_throttled", (("reason", "hw_thermal"), *labels)): 1.0,
        ("contour_device_xid_errors_total", (("uuid", "GPU-1"), ("xid", "79"))): 2.0,
    }


def test_how_each_engine_runs_is_shown() -> None:
    statuses = {
        "gpu0": EngineStatus((("2x8 64x77x160", "flash"),), (("step", 4),), 2**30, (("no compiler", 2),)),
        "gpu1": EngineStatus(),
    }
    registry = CollectorRegistry()
    registry.register(EngineCollector(cast(Any, SimpleNamespace(statuses=statuses))))
    worker = ("worker", "gpu0")
    assert samples(registry) == {
        ("contour_worker_attention_kernel", (("kernel", "flash"), ("shape", "2x8 64x77x160"), worker)): 1.0,
        ("contour_worker_graphs", (("kind", "step"), worker)): 4.0,
        ("contour_worker_graph_bytes", (worker,)): 2.0**30,
        ("contour_worker_graph_bytes", (("worker", "gpu1"),)): 0.0,
        ("contour_worker_fallbacks_total", (("reason", "no compiler"), worker)): 2.0,
    }


def test_every_outcome_has_a_series_before_it_happens() -> None:
    found = samples(Metrics("echo").registry)
    outcomes = {labels[0][1] for name, labels in found if name == "contour_requests_total"}
    of_images = {"done", "abandoned", "busy", "expired", "draining", "worker-crash", "internal", "invalid-image"}
    assert outcomes >= of_images
    assert Error.NOT_FOUND.slug in outcomes
    assert Error.MALFORMED_HTTP.slug not in outcomes
    of_edges = {labels[0][1] for name, labels in found if name == "contour_edges_total"}
    assert of_edges >= of_images
    assert of_edges < outcomes
    reasons = {labels[0][1] for name, labels in found if name == "contour_connection_errors_total"}
    assert reasons == {"malformed-http", "head-too-large", "request-timeout", "too-many-connections"}


def test_a_workers_counters_are_there_before_its_first_step_and_its_first_loss() -> None:
    metrics = Metrics("echo")
    metrics.observe(m.Opened(), [m.Spawn("gpu0"), m.Spawn("gpu1")])
    found = samples(metrics.registry)
    for worker in ("gpu0", "gpu1"):
        assert found["contour_steps_total", (("worker", worker),)] == 0
        assert found["contour_worker_losses_total", (("worker", worker),)] == 0


def test_images_are_timed_apart_from_refusals() -> None:
    metrics = Metrics("echo")
    metrics.request("done", 2.0)
    for outcome in ("busy", "invalid-image", "abandoned"):
        metrics.request(outcome, 0.001)
    found = samples(metrics.registry)
    assert found["contour_request_duration_seconds_count", (("answer", "image"),)] == 1
    assert found["contour_request_duration_seconds_sum", (("answer", "image"),)] == 2.0
    assert found["contour_request_duration_seconds_count", (("answer", "other"),)] == 3


def test_a_scrape_is_not_doubled_by_when_each_series_began() -> None:
    assert not [name for name, _ in samples(Metrics("echo").registry) if name.endswith("_created")]


def test_a_job_that_is_started_again_is_a_retry() -> None:
    metrics = Metrics("echo")
    metrics.observe(m.Tick(), [m.Start(1, "gpu0", 0, 1), m.Start(2, "gpu0", 1, 2)])
    metrics.observe(m.WorkerExited("gpu0", "gone"), [m.Start(1, "gpu1", 0, 3), m.Reply(2, m.WorkerCrash(2))])
    metrics.observe(m.Tick(), [m.Reply(1, m.Abandoned())])
    found = samples(metrics.registry)
    assert found["contour_retries_total", ()] == 1
    assert found["contour_worker_losses_total", (("worker", "gpu0"),)] == 1


async def test_state_is_read_where_it_changes_and_devices_are_read_elsewhere() -> None:
    threads = dict[str, int]()

    class Collector:
        def collect(self) -> Iterator[Metric]:
            threads["state"] = threading.get_ident()
            return iter(())

        def read(self) -> None:
            threads["devices"] = threading.get_ident()

    collector, registry = Collector(), CollectorRegistry()
    registry.register(cast(Any, collector))
    await MetricsEndpoint(registry, cast(Any, collector)).respond(cast(Any, None))
    assert threads["state"] == threading.get_ident() != threads["devices"]
