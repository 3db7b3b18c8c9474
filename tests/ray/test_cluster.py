"""The service on a real Ray cluster of two nodes: its requests spread, and outlive replicas and nodes.

Ray is no part of the development environment: `make test-ray` makes one that has it.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.ray.cluster import PATIENCE, TwoNodes, environment, node_environment, server_of
from tests.service.running import alive, result_pixels, until

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make test-ray"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with environment(node_environment()):
        nodes = TwoNodes(tmp_path_factory.mktemp("serve"))
        try:
            yield nodes
        finally:
            nodes.end()


@pytest.fixture
def echoes(cluster: TwoNodes) -> TwoNodes:
    """Two replicas, one a node, that give back what they get."""
    cluster.deploy("configs/echo.yaml", 2)
    return cluster


def in_hand(cluster: TwoNodes, clients: ThreadPoolExecutor) -> "list[Future[httpx.Response]]":
    """Requests that both replicas are busy with."""
    waiting = [clients.submit(cluster.ask, number) for number in range(16)]
    time.sleep(0.2)  # of 0.4 that they take
    return waiting


def all_served(waiting: "list[Future[httpx.Response]]") -> None:
    answers = [each.result(PATIENCE) for each in waiting]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert [answer.json()["request_id"] for answer in answers] == list(range(len(answers)))


def servers(cluster: TwoNodes) -> set[int]:
    """Who answers now."""
    with ThreadPoolExecutor(8) as clients:
        return {server_of(answer) for answer in clients.map(cluster.ask, range(16)) if answer.status_code == 200}


def test_the_small_model_serves_on_it(cluster: TwoNodes) -> None:
    cluster.deploy("configs/demo.yaml", 1)
    answer = cluster.ask(1)
    assert result_pixels(answer).shape == (256, 256, 3)
    (worker,) = cluster.client.get("/readyz").json()["workers"]
    assert worker["device"] == "CPU"  # Ray gave it no GPU


def test_without_a_token_nothing_can_be_run(cluster: TwoNodes) -> None:
    with environment({"RAY_AUTH_TOKEN": "0" * 64}):
        command = [sys.executable, "-c", f"import ray; ray.init({cluster.address!r}, log_to_driver=False)"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode != 0
    assert "InvalidAuthToken" in done.stderr


def test_a_worker_does_not_get_the_clusters_token(echoes: TwoNodes) -> None:
    environ = Path(f"/proc/{echoes.worker()}/environ").read_bytes()
    assert b"CONTOUR_WORKERS__CPU_WORKERS=1" in environ
    assert b"RAY_AUTH_TOKEN" not in environ


def test_another_name_in_the_host_header_is_refused(echoes: TwoNodes) -> None:
    assert echoes.client.get("/healthz", headers={"Host": "rebound.example"}).status_code == 403


def test_requests_spread_over_both_nodes(echoes: TwoNodes) -> None:
    with ThreadPoolExecutor(16) as clients:
        waiting = [clients.submit(echoes.ask, number) for number in range(40)]
        all_served(waiting)
    assert len({server_of(each.result()) for each in waiting}) == 2


def test_a_replica_that_is_killed_takes_its_workers_along_and_is_replaced_and_clients_get_their_images(
    echoes: TwoNodes,
) -> None:
    before, worker = servers(echoes), echoes.worker()
    with ThreadPoolExecutor(16) as clients:
        waiting = in_hand(echoes, clients)
        os.kill(parent(worker), signal.SIGKILL)
        all_served(waiting)
    until(lambda: not alive(worker))
    until(lambda: echoes.running() == 2 and len(servers(echoes)) == 2, PATIENCE)
    assert len(servers(echoes) - before) == 1


def test_a_node_that_is_lost_costs_no_client_its_image_and_another_takes_its_place(echoes: TwoNodes) -> None:
    before = servers(echoes)
    with ThreadPoolExecutor(16) as clients:
        waiting = in_hand(echoes, clients)
        echoes.lose(echoes.second)
        all_served(waiting)
    assert len(servers(echoes) & before) == 1  # of one node there is enough to serve
    echoes.second = echoes.add_node()
    until(lambda: echoes.running() == 2 and len(servers(echoes) - before) == 1, PATIENCE)


def test_replicas_that_are_no_longer_wanted_finish_what_they_have(echoes: TwoNodes) -> None:
    stop = threading.Event()

    def ask() -> set[int]:
        found = set()
        while not stop.is_set():
            found.add(echoes.ask(1).status_code)
        return found

    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(ask) for _ in range(8)]
        echoes.deploy("configs/echo.yaml", 1)
        stop.set()
        assert set().union(*(each.result(PATIENCE) for each in asking)) == {200}
    assert len(servers(echoes)) == 1


def parent(process: int) -> int:
    """Of a worker: its replica."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
