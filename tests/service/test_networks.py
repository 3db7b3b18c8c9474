"""Whose connections are whose: a network of IPv6 is one client, and only a trusted proxy stands for many."""

import json
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.service.raw import head
from tests.service.running import PATIENCE, ROOT, Service

CONNECTIONS = 40  # so one client may have 20
LIMITS = {"SERVER__MAX_CONNECTIONS": CONNECTIONS, "WORKERS__CPU_WORKERS": 1}


def refused(host: str, port: int, sources: list[str]) -> int:
    """Of connections from some addresses, each kept open: how many are told that there are too many."""
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, port), PATIENCE, (source, 0))) for source in sources
        ]
        for connection in held:
            connection.sendall(head(method="GET", path="/healthz").replace(b"Connection: close\r\n", b""))
        return sum(connection.recv(2**16).startswith(b"HTTP/1.1 503 ") for connection in held)


def in_a_network_of_its_own() -> None:
    """What `test_a_network_of_ipv6_is_one_client` runs where the loopback device can be given addresses."""
    here, others = [f"fd00::{n:x}" for n in range(1, 41)], [f"fd00:0:0:{n:x}::1" for n in range(1, 6)]
    for address in here + others:
        subprocess.run(["ip", "-6", "addr", "add", f"{address}/64", "dev", "lo", "nodad"], check=True)
    told = {}
    for name, sources in {"one network": here[:30], "with others": here[:18] + others}.items():
        with Service("echo", **LIMITS, SERVER__HOST=here[0]) as service:
            told[name] = refused(here[0], service.client.base_url.port or 0, sources)
    print(json.dumps(told))


def test_a_network_of_ipv6_is_one_client() -> None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("it needs unshare and ip, to give the loopback device addresses")
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run(
        [*alone, "ip", "-6", "addr", "add", "fd00::1/64", "dev", "lo"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine allows no network namespace with IPv6")
    script = f"from {__name__} import in_a_network_of_its_own as run; run()"
    done = subprocess.run(
        [*alone, sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"one network": 10, "with others": 0}


@pytest.mark.parametrize(("proxy", "too_many"), [("10.9.9.9", 10), ("127.0.0.5", 0)], ids=["another", "the peer"])
def test_only_a_trusted_peer_stands_for_many(proxy: str, too_many: int) -> None:
    with Service("echo", **LIMITS, SERVER__TRUSTED_PROXIES=f'["{proxy}"]') as service:
        assert refused("127.0.0.1", service.client.base_url.port or 0, ["127.0.0.5"] * 30) == too_many
