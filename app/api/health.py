"""`/healthz`: is the process running? `/readyz`: can it generate images now, and what is each worker doing?"""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from scheduler.messages import WorkerState, WorkerView
from workers.engine.contract import EngineStatus
from workers.pool import Pool


class Aliveness(msgspec.Struct, frozen=True):
    """The process is running."""

    status: Literal["ok"] = "ok"


class WorkerReadiness(msgspec.Struct, frozen=True):
    """The state of a worker. `last_loss` is why its last process ended, if one did."""

    id: str
    state: WorkerState
    device: str | None
    running: int
    slots: int
    restarts: int
    graphs: dict[str, int]
    fallbacks: dict[str, int]
    last_loss: str | None


class Readiness(msgspec.Struct, frozen=True):
    """The state of the service. `placement` says why the workers run on these devices; `runtime`, what runs the
    networks."""

    ready: bool
    draining: bool
    placement: str
    runtime: str
    queued: int
    running: int
    workers: list[WorkerReadiness]


class Health:
    """The two endpoints. `placement` and `runtime` are those of `Readiness`."""

    def __init__(self, pool: Pool, placement: str, runtime: str) -> None:
        self._pool = pool
        self._placement = placement
        self._runtime = runtime

    async def alive(self, request: Request) -> Response:
        """200 as long as the event loop runs."""
        return Response(msgspec.json.encode(Aliveness()), media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """200 while a worker is ready and the service is not draining, else 503; the same body either way."""
        core = self._pool.core
        ready = core.ready and not core.draining
        workers = [self._worker(view) for view in core.workers()]
        body = Readiness(ready, core.draining, self._placement, self._runtime, core.queue_depth, core.running, workers)
        return Response(msgspec.json.encode(body), 200 if ready else 503, media_type="application/json")

    def _worker(self, view: WorkerView) -> WorkerReadiness:
        device = self._pool.devices.get(view.id)
        status = self._pool.statuses.get(view.id, EngineStatus())
        return WorkerReadiness(
            id=view.id,
            state=view.state,
            device=device.name if device else None,
            running=view.running,
            slots=view.capacity,
            restarts=view.restarts,
            graphs=dict(status.graphs),
            fallbacks=dict(status.fallbacks),
            last_loss=view.reason or None,
        )
