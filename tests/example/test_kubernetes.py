"""The manifests, as kustomize renders them: against the published schemas, and against what the service really has."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.cli.serve import CLOSE_SECONDS
from app.settings import load
from tests.service.running import ROOT, Service
from workers.process import STOP_SECONDS

KUBERNETES = ROOT / "example" / "kubernetes"
OVERLAYS = ("cpu-demo", "gpu")
CUSTOM = {"ScaledObject", "PodMonitor"}  # of KEDA and the Prometheus Operator: not among Kubernetes' own schemas
SCHEMAS = "1.33"


def kustomize_is_known() -> bool:
    """A kubectl that does not tell its kustomize's version, such as 1.20 of Debian 12, knows no components."""
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=False)
    return "kustomizeVersion" in done.stdout


pytestmark = pytest.mark.skipif(not kustomize_is_known(), reason="needs kubectl 1.24 or newer, for its kustomize")


def render(folder: Path) -> dict[str, Any]:
    """Documents by kind."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> dict[str, Any]:
    return render(KUBERNETES / "overlays" / request.param)


def pod(rendered: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(rendered: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(rendered)["containers"]
    assert isinstance(found, dict)
    return found


def test_all_is_as_the_published_schemas_want_it(rendered: dict[str, Any]) -> None:
    checked = {kind: document for kind, document in rendered.items() if kind not in CUSTOM}
    assert len(checked) >= 5
    for document in checked.values():
        kubernetes_validate.validate(document, SCHEMAS, strict=True)


def test_the_schemas_would_notice_a_wrong_key(rendered: dict[str, Any]) -> None:
    wrong = rendered["Deployment"] | {"spec": rendered["Deployment"]["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMAS, strict=True)


def test_probes_and_ports_are_answered_by_the_real_service(rendered: dict[str, Any]) -> None:
    described = container(rendered)
    probes = [described[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        service.wait_until_ready()
        assert [service.client.get(probe["path"]).status_code for probe in probes] == [200, 200, 200]
        assert service.client.get("/metrics").status_code == 200
    ports = {port["name"]: port["containerPort"] for port in described["ports"]}
    assert {probe["port"] for probe in probes} == ports.keys() == {"http"}
    assert ports["http"] == load(ROOT / "configs" / "demo.yaml", {}).server.port
    assert rendered["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_its_settings_are_settings_and_a_pod_has_time_for_its_drain(rendered: dict[str, Any]) -> None:
    settings = load(ROOT / "configs" / "demo.yaml", rendered["ConfigMap"]["data"])  # a wrong key or value raises
    before = float(container(rendered)["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = settings.server.drain_seconds + CLOSE_SECONDS + STOP_SECONDS
    assert pod(rendered)["terminationGracePeriodSeconds"] > before + drain
    assert container(rendered)["envFrom"] == [{"configMapRef": {"name": rendered["ConfigMap"]["metadata"]["name"]}}]
    patience = container(rendered)["startupProbe"]
    assert patience["periodSeconds"] * patience["failureThreshold"] >= settings.scheduler.load_timeout


def test_it_runs_as_the_images_user_and_writes_to_volumes_only(rendered: dict[str, Any]) -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert f"USER {pod(rendered)['securityContext']['runAsUser']}" in image
    assert container(rendered)["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"] for mount in container(rendered)["volumeMounts"] if not mount.get("readOnly")}
    assert {"/var/cache/contour", "/tmp"} == mounts
    assert "VOLUME /var/cache/contour" in image


def test_it_meets_the_restricted_standard_and_knows_no_token_of_the_cluster(rendered: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    context = pod(rendered)["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0 < context["runAsGroup"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(rendered)["securityContext"]["allowPrivilegeEscalation"] is False
    assert container(rendered)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod(rendered)["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod(rendered)["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}


def test_nothing_that_it_takes_of_its_node_is_without_a_limit(rendered: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod(rendered)["volumes"] if "emptyDir" in volume}
    assert all("sizeLimit" in volume for volume in volumes.values())
    assert "tmp" in volumes
    assert {"memory", "ephemeral-storage"} <= container(rendered)["resources"]["limits"].keys()


def test_only_who_has_a_label_and_prometheus_may_connect_and_nothing_goes_out(rendered: dict[str, Any]) -> None:
    policy = rendered["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    selectors = [selector for peer in rule["from"] for selector in peer.values()]
    assert len(rule["from"]) == 3
    assert all(selector["matchLabels"] for selector in selectors)  # an empty selector is everybody


def test_everything_selects_the_same_pods(rendered: dict[str, Any]) -> None:
    labels = rendered["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "contour"
    assert rendered["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert rendered["Service"]["spec"]["selector"].items() <= labels.items()
    assert rendered["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert rendered["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_autoscaler_asks_for_metrics_that_there_are() -> None:
    rendered = render(KUBERNETES / "overlays" / "gpu")
    scaled = rendered["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == rendered["Deployment"]["metadata"]["name"]
    assert "replicas" not in rendered["Deployment"]["spec"]  # else each apply would undo what the autoscaler did
    (trigger,) = scaled["triggers"]
    asked = set(re.findall(r"contour_\w+", trigger["metadata"]["query"]))
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        assert asked <= service.metrics().keys()
    assert len(asked) == 3


def test_the_scraped_port_serves_metrics() -> None:
    rendered = render(KUBERNETES / "overlays" / "gpu")
    monitor = rendered["PodMonitor"]["spec"]
    labels = rendered["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container(rendered)["ports"]}
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        assert "contour_ready" in service.client.get(endpoint["path"]).text
    (job,) = yaml.safe_load((ROOT / "example/monitoring/prometheus.yml").read_text())["scrape_configs"]
    assert labels[monitor["jobLabel"]] == job["job_name"]  # the alerts select by it


def test_the_small_model_needs_nothing_but_kubernetes() -> None:
    assert not CUSTOM & render(KUBERNETES / "overlays" / "cpu-demo").keys()


def test_only_the_gpu_overlay_asks_for_a_gpu() -> None:
    limits = {name: container(render(KUBERNETES / "overlays" / name))["resources"]["limits"] for name in OVERLAYS}
    assert "nvidia.com/gpu" not in limits["cpu-demo"]
    assert limits["gpu"]["nvidia.com/gpu"] == 1


def test_api_keys_come_from_a_secret(rendered: dict[str, Any], tmp_path: Path) -> None:
    (variable,) = container(rendered)["env"]
    volume = next(volume for volume in pod(rendered)["volumes"] if volume["name"] == "api-keys")
    keys = tmp_path / "keys"
    keys.write_text("one-key-2cf24dba5fb0a30e\n")
    keys.chmod(volume["secret"]["defaultMode"])  # the service refuses a file that others may write to
    load(ROOT / "configs" / "demo.yaml", {variable["name"]: str(keys)})
    mounts = {mount["name"]: mount["mountPath"] for mount in container(rendered)["volumeMounts"]}
    assert variable["value"].startswith(mounts["api-keys"])


def test_the_settings_that_are_suggested_can_be_used(rendered: dict[str, Any]) -> None:
    suggested = re.findall(r"^# (CONTOUR_\w+)=(.+)$", (KUBERNETES / "base" / "settings.env").read_text(), re.MULTILINE)
    server = load(ROOT / "configs" / "demo.yaml", dict(suggested)).server
    assert rendered["Service"]["metadata"]["name"] in server.allowed_hosts
    assert server.trusted_proxies
