"""`/healthz`: is the process there? `/readyz`: can it make a picture now, and what is each worker doing?"""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from scheduler.messages import WorkerView
from workers.engine.contract import Condition
from workers.pool import Pool


class Health:
    """Both answers. `placement` says why the workers run on the devices they run on."""

    def __init__(self, pool: Pool, placement: str) -> None:
        self._pool = pool
        self._placement = placement

    async def alive(self, request: Request) -> Response:
        """200 as long as the event loop turns."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """200 while a worker is ready and the service is not draining, else 503; the same body either way."""
        core = self._pool.core
        ready = core.ready and not core.draining
        body = {
            "ready": ready,
            "draining": core.draining,
            "placement": self._placement,
            "queued": core.queue_depth,
            "running": core.running,
            "workers": [self._worker(view) for view in core.workers()],
        }
        return Response(msgspec.json.encode(body), 200 if ready else 503, media_type="application/json")

    def _worker(self, view: WorkerView) -> dict[str, object]:
        device = self._pool.devices.get(view.id)
        condition = self._pool.conditions.get(view.id, Condition())
        return {
            "id": view.id,
            "state": view.state,
            "process": self._pool.processes.get(view.id),
            "device": device.name if device else None,
            "running": view.running,
            "slots": view.capacity,
            "restarts": view.restarts,
            "graphs": dict(condition.graphs),
            "fallbacks": dict(condition.fallbacks),
            "last_loss": view.reason or None,
        }
