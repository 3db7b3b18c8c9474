"""Rules, dashboard and compose file, checked against a real service that a real Prometheus scrapes."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.cli.serve import CLOSE_SECONDS
from app.settings import ServerConfig, load
from tests.service.running import PATIENCE, ROOT, Service, good_request, until
from workers.nvml import THROTTLE_REASONS
from workers.process import STOP_SECONDS

MONITORING = ROOT / "example" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "contour.json").read_text())
VARIABLES = {"$instance": ".*", "$__rate_interval": "10s"}
ABSENT = ("contour_device_", "contour_worker_graphs")  # where there is no GPU
RARE = ("contour_worker_fallbacks_total",)  # where nothing has failed

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus: apt-get install prometheus"
)


def queries() -> list[str]:
    """Of all panels, with Grafana's variables filled in."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    for variable, value in VARIABLES.items():
        found = [query.replace(variable, value) for query in found]
    return found


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:contour|process)_\w+", query))


def autoscaling() -> str:
    """The query by which pods are added."""
    scaled = yaml.safe_load((ROOT / "example/kubernetes/components/autoscaling/scaledobject.yaml").read_text())
    (trigger,) = scaled["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def selected() -> set[tuple[str, str, str]]:
    """Each metric, label and value that dashboard and rules select by; alternatives apart."""
    text = "\n".join([*queries(), (MONITORING / "rules.yml").read_text()])
    return {
        (metric, label, value)
        for metric, matchers in re.findall(r"\b(contour_\w+)\{([^}]*)\}", text)
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers)
        for value in values.split("|")
    }


class Prometheus:
    """A real Prometheus, with the project's rules, that scrapes one service every second."""

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "rules.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = (f"--web.listen-address={address}", f"--storage.tsdb.path={folder}/data", "--log.level=error")
        self.process = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml", *flags])
        self.client = httpx.Client(base_url=f"http://{address}", timeout=PATIENCE)

    def query(self, expression: str) -> list[Any]:
        """The samples that an expression has now."""
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    def knows(self, expression: str) -> bool:
        return bool(self.query(expression))

    def ready(self) -> bool:
        """Until then it listens not at all, or answers queries with a 503 that is not JSON."""
        try:
            return self.client.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen images, a refusal and a lost connection, and has scraped often enough for rates."""
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), service.url.removeprefix("http://"))
        try:
            service.wait_until_ready()
            until(prometheus.ready)
            until(lambda: prometheus.knows("contour_ready == 1"))
            for _ in range(5):
                assert service.client.post("/generation/", json=good_request()).status_code == 200
            assert service.generate(text=7).status_code == 422
            until(lambda: prometheus.knows('rate(contour_requests_total{outcome="done"}[10s]) > 0'))
            until(lambda: prometheus.knows("contour:images:rate5m > 0"))
            yield prometheus
        finally:
            prometheus.end()


@needs_promtool
def test_the_rules_are_right_and_each_alert_fires_when_all_is_amiss_only() -> None:
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    rules = [
        rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]
    ]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    tested = set(re.findall(r'alertname="(\w+)"', (MONITORING / "rules_test.yml").read_text()))
    assert alerts.keys() == tested
    assert all(rule["annotations"].keys() == {"summary", "description", "runbook"} for rule in alerts.values())


@needs_prometheus
@pytest.mark.parametrize("query", queries())
def test_each_query_of_the_dashboard_finds_something(scraped: Prometheus, query: str) -> None:
    found = scraped.query(query)  # fails where it is no expression
    if not any(name.startswith((*ABSENT, *RARE)) for name in names(query)):
        assert found


@needs_prometheus
def test_the_recorded_rules_find_something(scraped: Prometheus) -> None:
    text = (MONITORING / "rules.yml").read_text()
    for name in re.findall(r"record: (\S+)", text):
        until(lambda name=name: scraped.knows(name))  # type: ignore[misc]


@needs_prometheus
def test_each_label_that_is_selected_by_is_one_that_the_service_sets(scraped: Prometheus) -> None:
    asked = {each for each in selected() if not each[0].startswith(ABSENT)}
    states = {("contour_requests_total", "outcome", "quota-exceeded"), ("contour_worker_state", "state", "quarantined")}
    assert states <= asked
    unknown = {(metric, label, value) for metric, label, value in asked if not is_set(scraped, metric, label, value)}
    assert not {each for each in unknown if each[0] not in RARE}


def is_set(prometheus: Prometheus, metric: str, label: str, value: str) -> bool:
    return prometheus.knows(f'{metric}{{{label}=~"{value}"}}')


def test_each_reason_that_a_gpu_is_held_down_for_is_one_that_is_read() -> None:
    asked = {value for metric, label, value in selected() if (metric, label) == ("contour_device_throttled", "reason")}
    assert asked
    for pattern in asked:
        assert any(re.fullmatch(pattern, reason) for reason in THROTTLE_REASONS), pattern


@needs_prometheus
def test_the_autoscalers_query_is_one_number(scraped: Prometheus) -> None:
    until(lambda: [float(sample["value"][1]) for sample in scraped.query(autoscaling())] == [0])


def test_queries_for_a_gpu_use_existing_metrics() -> None:
    text = (ROOT / "app" / "metrics.py").read_text()
    rules = (MONITORING / "rules.yml").read_text()
    asked = {name for query in [*queries(), rules] for name in names(query) if name.startswith((*ABSENT, *RARE))}
    assert len(asked) >= 8
    assert not {name for name in asked if f'"{name.removesuffix("_total")}"' not in text}


def test_the_compose_file_lets_a_drain_end() -> None:
    service = yaml.safe_load((MONITORING / "docker-compose.yml").read_text())["services"]["contour"]
    assert not [name for name in service.get("environment", ()) if "DRAIN" in name]  # so it is the default
    patience = float(service["stop_grace_period"].removesuffix("s"))
    assert patience > ServerConfig().drain_seconds + CLOSE_SECONDS + STOP_SECONDS


COMPOSE = yaml.safe_load((MONITORING / "docker-compose.yml").read_text())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_of_the_compose_file_is_confined_and_reached_from_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "build" in service or re.search(r":v?[\d.]+@sha256:[0-9a-f]{64}$", service["image"])


def test_the_service_of_the_compose_file_writes_to_bounded_places_and_knows_its_name() -> None:
    service = COMPOSE["services"]["contour"]
    assert service["read_only"]
    assert all("size=" in mount for mount in service["tmpfs"])
    settings = load(ROOT / "configs" / "demo.yaml", service["environment"])
    assert settings.server.allowed_hosts == ["contour"]  # as Prometheus calls it


def test_the_compose_file_mounts_what_there_is() -> None:
    compose = yaml.safe_load((MONITORING / "docker-compose.yml").read_text())
    services = compose["services"]
    mounts = [mount.split(":")[0] for each in services.values() for mount in each.get("volumes", ())]
    assert all(
        (MONITORING / mount).exists() if mount.startswith(".") else mount in compose["volumes"] for mount in mounts
    )
    assert (MONITORING / services["contour"]["build"]["context"] / "Dockerfile").exists()
    scrape = yaml.safe_load(compose["configs"]["scrape"]["content"])
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": ["contour:8000"]}]
    gpu = yaml.safe_load((MONITORING / "docker-compose.gpu.yml").read_text())["services"]
    assert gpu.keys() <= services.keys()


def test_the_dashboard_asks_the_data_source_that_grafana_is_given() -> None:
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
