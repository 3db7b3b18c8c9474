"""A real Ray cluster of two nodes on this machine, each with a core, and the service on it by a Serve config file."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.service.running import ROOT, descendants, good_request, until

PATIENCE = 120.0  # seconds, for a replica or an answer
STORE_BYTES = 100 * 2**20  # Ray's least is 75 MiB; nothing of ours goes there
NODE_ENV = ROOT / "example" / "ray" / "node.env"
DEMO = ROOT / "example" / "ray" / "demo.yaml"


def node_environment() -> dict[str, str]:
    """What example/ray/README.md has people set before `ray start`; one slow image takes 0.4 seconds."""
    lines = [line for line in NODE_ENV.read_text().splitlines() if line and not line.startswith("#")]
    return {
        **dict(line.split("=", 1) for line in lines),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
        "CONTOUR_ENGINE__ECHO__STEPS": "20",
        "CONTOUR_ENGINE__ECHO__STEP_SECONDS": "0.02",
        "CONTOUR_WORKERS__CPU_WORKERS": "1",
    }


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that the nodes' processes take over from this one."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class TwoNodes:
    """The cluster. Its only proxy is on the first node, which is not lost."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        first = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=first)
        self.second = self.add_node()
        ray.init(address=self._cluster.address, log_to_driver=False)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=PATIENCE)

    @property
    def address(self) -> str:
        """Where a driver connects."""
        return str(self._cluster.address)

    def add_node(self) -> Any:
        """A machine joins."""
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def lose(self, node: Any) -> None:
        """SIGKILL all of a node's processes."""
        self._cluster.remove_node(node, allow_graceful=False)

    def deploy(self, config: str, replicas: int) -> None:
        """`serve run` example/ray/demo.yaml with another model and number; return when its replicas serve."""
        document = yaml.safe_load(DEMO.read_text())
        document["proxy_location"] = "HeadOnly"
        document["http_options"]["port"] = self._port
        (application,) = document["applications"]
        application["import_path"] = "tests.ray.named:build"
        application["args"]["config"] = config
        application["deployments"][0] |= {"num_replicas": replicas, "health_check_period_s": 1}
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(document))
        serve = Path(sys.executable).with_name("serve")
        command = [serve, "run", "--non-blocking", "--app-dir", ROOT, "--address", self._cluster.address, path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        until(lambda: self.running() == replicas, PATIENCE)

    def running(self) -> int:
        """Replicas that serve, when nothing is on its way to another state."""
        from ray import serve

        applications = serve.status().applications
        if "contour" not in applications or applications["contour"].status != "RUNNING":
            return 0
        states = applications["contour"].deployments["Contour"].replica_states
        return int(states.get("RUNNING", 0)) if set(states) <= {"RUNNING"} else 0

    def ask(self, number: int) -> httpx.Response:
        """One image."""
        return self.client.post("/generation/", json=good_request(request_id=number))

    def worker(self) -> int:
        """The process of some replica's worker: the one that the replica spawned."""
        replica = server_of(self.client.get("/readyz"))
        return next(pid for pid in descendants(replica) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def end(self) -> None:
        """Leave nothing."""
        import ray
        from ray import serve

        self.client.close()
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


def server_of(answer: httpx.Response) -> int:
    """The process of the replica that answered."""
    return int(answer.headers["X-Replica"])
