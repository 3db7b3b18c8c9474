"""/readyz on a worker's engine, with a fake pool; the rest is tested on the running service."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

from app.api.health import Health
from scheduler.core import Scheduler
from scheduler.limits import Limits
from workers.channel import Device
from workers.engine.contract import EngineStatus


def test_graphs_and_fallbacks_of_each_worker_are_shown() -> None:
    pool = SimpleNamespace(
        core=Scheduler(["gpu0", "gpu1"], Limits()),
        devices={"gpu0": Device("NVIDIA H100", "GPU-1")},
        processes={"gpu0": 7},
        statuses={"gpu0": EngineStatus(graphs=(("step", 4),), fallbacks=(("no compiler", 1),))},
    )
    answer = asyncio.run(Health(cast(Any, pool), "all devices", "torch").ready(cast(Any, None)))
    first, second = json.loads(bytes(answer.body))["workers"]
    assert (first["graphs"], first["fallbacks"]) == ({"step": 4}, {"no compiler": 1})
    assert (second["graphs"], second["fallbacks"]) == ({}, {})
