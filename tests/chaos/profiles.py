"""Which service is run under faults, and how many of them it gets."""

from collections.abc import Mapping
from dataclasses import dataclass

DEADLINE_SECONDS = 30
DRAIN_SECONDS = 10

# Faults fall on the innocent here, every few seconds: by the usual limits some requests would be convicted of them, and
# some workers taken out of service.
_COMMON: dict[str, object] = {
    "WORKERS__CPU_WORKERS": 2,
    "WORKERS__THREADS": 1,
    "SCHEDULER__ATTEMPTS": 6,
    "SCHEDULER__QUARANTINE_AFTER": 1000,
    "SCHEDULER__MAX_QUEUE": 24,
    "SCHEDULER__CLIENT_SHARE": 1,  # all of them have the same address
    "SCHEDULER__RESTART_BACKOFF": 0.1,
    "SCHEDULER__RESTART_BACKOFF_MAX": 1.0,
    "SCHEDULER__LOAD_TIMEOUT": 60,
    "SERVER__DEADLINE": DEADLINE_SECONDS,
    "SERVER__DRAIN_SECONDS": DRAIN_SECONDS,
    "SERVER__MAX_BODY_BYTES": 2**20,
    "SERVER__MAX_IMAGE_BYTES": 2**19,
    "SERVER__MAX_BUFFERED_BYTES": 3
    * 2**25,  # an attacker takes half of it, and a flood of good requests fits in a quarter
    "SERVER__BODY_SECONDS": 6,
}


@dataclass(frozen=True)
class Profile:
    """A configuration with overrides, the engine's own faults, and how often what comes from outside.

    `pause_seconds` is the mean between two faults from outside, `flood` how many requests come at once to fill the
    queue, `stop_seconds` how long a worker is stopped: longer than the scheduler's patience.
    """

    config: str
    overrides: Mapping[str, object]
    faults: Mapping[str, object]
    late: float
    requests_per_second: float
    pause_seconds: float
    flood: int
    stop_seconds: float


_FAULTS = {  # chances in each call
    "PREPARE_MEMORY": 0.01,
    "STEP_MEMORY": 0.003,
    "FINISH_MEMORY": 0.01,
    "EXIT": 0.003,
    "HANG": 0.0015,
}

PROFILES: Mapping[str, Profile] = {
    # An image takes a third of a second; eight run at a time.
    "echo": Profile(
        config="echo",
        overrides={
            **_COMMON,
            "SCHEDULER__HEARTBEAT_FLOOR": 4.0,  # on a busy machine, 40 megapixels take 2 s before the first step
            "ENGINE__SLOTS": 4,
            "ENGINE__ECHO__STEPS": 8,
            "ENGINE__ECHO__STEP_SECONDS": 0.04,
        },
        faults=_FAULTS,
        late=0.05,
        requests_per_second=5.0,
        pause_seconds=4.0,
        flood=60,
        stop_seconds=8.0,
    ),
    # One image at a time in each worker, as an image's rounding depends on its batch, and bytes are compared.
    "demo": Profile(
        config="demo",
        overrides={
            **_COMMON,
            "SCHEDULER__HEARTBEAT_FLOOR": 4.0,
            "ENGINE__SLOTS": 1,
            "ENGINE__SAMPLER__STEPS": 4,
            "ENGINE__SIZE__SHORT_SIDE": 64,
            "ENGINE__SIZE__LONG_SIDE": 128,
            "SERVER__DEADLINE": 2 * DEADLINE_SECONDS,
        },
        faults=_FAULTS,
        late=0.05,
        requests_per_second=0.8,
        pause_seconds=12.0,
        flood=30,
        stop_seconds=8.0,
    ),
}
