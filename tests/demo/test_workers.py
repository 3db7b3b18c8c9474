"""The real model on two workers: each gets work, both make the same image, and the death of one changes nothing."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from example.demo_model.scenes import flat_scenes
from tests.demo.test_quality import CALM, post
from tests.service.running import Service, until


def test_whichever_worker_makes_it_the_image_is_the_same() -> None:
    scene = flat_scenes(1, seed=5)[0]
    with Service("demo", WORKERS__CPU_WORKERS=2, ENGINE__SLOTS=1, **CALM) as service, ThreadPoolExecutor(4) as clients:
        service.wait_until_ready(workers=2)
        made = list[Any]()

        def both_have_worked() -> bool:
            """More images at once than a worker has slots, until both had some: how many each gets is measured."""
            made.extend(clients.map(lambda _: post(service, scene, seed=9).json(), range(4)))
            return all(service.sample("contour_steps_total", worker=worker) for worker in ("cpu0", "cpu1"))

        until(both_have_worked)
        one = made[0]
        assert all(each == one for each in made)

        before = service.sample("contour_steps_total")
        answer = clients.submit(post, service, scene, seed=9)
        until(lambda: service.sample("contour_steps_total") > before)  # it is under way
        busy = [worker for worker in service.readiness()["workers"] if worker["running"]]
        os.kill(busy[0]["process"], signal.SIGKILL)
        assert answer.result().json() == one
        assert service.sample("contour_retries_total") == 1
