"""The `scheduler` section of a configuration."""

from dataclasses import dataclass
from typing import Annotated

import msgspec


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The queue, and when a worker is given up. Times in seconds."""

    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """The most images that wait; of background work, half as many."""
    client_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """The part of the free queue, in places and in time, that one client may take; 1 turns that off."""
    lone_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    """The same while no other client waits: the rest is kept for whoever comes next."""
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 2
    """How many workers an image may crash before it is given up; one that was ended from outside counts for a fifth."""
    heartbeat_factor: Annotated[float, msgspec.Meta(ge=1, extra={"former": "silence_factor"})] = 8.0
    """A worker is killed when a step takes this many times as long as expected, and `heartbeat_floor` at least."""
    heartbeat_floor: Annotated[float, msgspec.Meta(gt=0, extra={"former": "silence_floor"})] = 20.0
    """The shortest silence for which a worker is killed."""
    load_timeout: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """A worker is killed when it is not ready this long after its start."""
    restart_backoff: Annotated[float, msgspec.Meta(ge=0, extra={"former": "restart_pause"})] = 0.5
    """The pause before a worker that finished nothing is started again; it doubles each time."""
    restart_backoff_max: Annotated[float, msgspec.Meta(ge=0, extra={"former": "restart_pause_max"})] = 30.0
    """The longest such pause."""
    quarantine_after: Annotated[int, msgspec.Meta(ge=1, extra={"former": "out_after"})] = 5
    """A worker that died so often without finishing an image is out of service; when all are, the service ends."""
    quarantine_pause: Annotated[float, msgspec.Meta(ge=0, extra={"former": "out_pause"})] = 300.0
    """How long it is out of service before it is tried again; being ready for as long wins back all tries."""
