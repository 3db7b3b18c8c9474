"""`/metrics`: the metrics of `app.metrics`, as Prometheus reads them."""

import asyncio
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from app.metrics import DeviceCollector


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """Answers with all metrics. `devices` is None where there is no NVML."""

    registry: CollectorRegistry
    devices: DeviceCollector | None

    async def respond(self, request: Request) -> Response:
        if self.devices is not None:
            # In a thread: NVML takes milliseconds per device, and requests must not wait for it.
            await asyncio.to_thread(self.devices.read)
        # On the event loop: it reads the scheduler's state, which nothing else may change meanwhile.
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
