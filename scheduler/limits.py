"""The `scheduler` section of a configuration."""

from dataclasses import dataclass
from typing import Annotated

import msgspec


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the queue, and the supervision of workers. Times in seconds."""

    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """The most images that may wait; half as many for background work."""
    client_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """The part of the free queue, in places and in time, that one client may use; 1 is no limit."""
    lone_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    """The same while no other client waits. The rest is kept for the next client."""
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 2
    """How many workers an image may crash before it fails; one that was killed from outside counts as a fifth."""
    heartbeat_factor: Annotated[float, msgspec.Meta(ge=1, extra={"former": "silence_factor"})] = 8.0
    """A worker is killed when a step takes this many times as long as one of a full batch should, but at least
    `heartbeat_floor`."""
    heartbeat_floor: Annotated[float, msgspec.Meta(gt=0, extra={"former": "silence_floor"})] = 20.0
    """The shortest time without a heartbeat after which a worker is killed."""
    load_timeout: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """A worker is killed if it is not ready this long after its start."""
    restart_backoff: Annotated[float, msgspec.Meta(ge=0, extra={"former": "restart_pause"})] = 0.5
    """The pause before a worker that finished no image is restarted; it doubles each time."""
    restart_backoff_max: Annotated[float, msgspec.Meta(ge=0, extra={"former": "restart_pause_max"})] = 30.0
    """The longest such pause."""
    quarantine_after: Annotated[int, msgspec.Meta(ge=1, extra={"former": "out_after"})] = 5
    """A worker that exits so often without finishing an image is quarantined; when all are, the service ends."""
    quarantine_pause: Annotated[float, msgspec.Meta(ge=0, extra={"former": "out_pause"})] = 300.0
    """How long a worker is quarantined before it is tried again. Once it has been ready for as
    long, its exits are counted from zero."""
