"""The real model on two workers: each gets work, both make the same image, and the death of one changes nothing."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from example.demo_model.scenes import flat_scenes
from tests.demo.test_quality import CALM, post
from tests.service.running import Service, until


def test_whichever_worker_makes_it_the_image_is_the_same() -> None:
    scene = flat_scenes(1, seed=5)[0]
    with Service("demo", WORKERS__CPU_WORKERS=2, **CALM) as service, ThreadPoolExecutor(2) as clients:
        service.wait_until_ready(workers=2)
        one, other = (answer.json() for answer in clients.map(lambda _: post(service, scene, seed=9), range(2)))
        assert one == other
        assert service.sample("contour_steps_total", worker="cpu0") == 20
        assert service.sample("contour_steps_total", worker="cpu1") == 20

        answer = clients.submit(post, service, scene, seed=9)
        until(lambda: service.sample("contour_steps_total") > 40)  # it is under way
        busy = [worker for worker in service.readiness()["workers"] if worker["running"]]
        os.kill(busy[0]["process"], signal.SIGKILL)
        assert answer.result().json() == one
        assert service.sample("contour_retries_total") == 1
