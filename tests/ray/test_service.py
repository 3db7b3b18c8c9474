"""A replica's share of its node, and the files that are deployed."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from app.settings import load
from tests.ray.cluster import node_environment
from tests.service.running import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make test-ray"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


@pytest.mark.parametrize("name", ["demo.yaml", "gpu.yaml"])
def test_a_config_file_is_as_serve_wants_it_and_names_what_is_there(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from example.ray import service

    document = yaml.safe_load((ROOT / "example" / "ray" / name).read_text())
    (application,) = ServeDeploySchema(**document).applications
    assert application.import_path == "example.ray.service:build"
    assert callable(service.build)
    assert Path(ROOT / application.args["config"]).is_file()
    assert application.args["host"] == document["http_options"]["host"]
    assert [deployment.name for deployment in application.deployments] == [service.CONTOUR.name]


def test_a_replica_uses_the_gpus_that_ray_assigned_and_without_any_the_processor() -> None:
    from example.ray.service import environment

    inherited = {"HOME": "/", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert environment(["2", "5"], "127.0.0.1", inherited)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert environment([], "127.0.0.1", inherited)["CUDA_VISIBLE_DEVICES"] == ""


def test_a_replica_is_told_where_serves_proxies_listen_and_a_cluster_asks_for_a_token() -> None:
    from example.ray.service import environment

    settings = load(ROOT / "configs" / "demo.yaml", environment([], "0.0.0.0", {}))
    assert settings.server.host == "0.0.0.0"
    assert node_environment()["RAY_AUTH_MODE"] == "token"


def test_only_the_example_for_a_network_listens_beyond_loopback_and_it_asks_for_keys() -> None:
    demo, gpu = (yaml.safe_load((ROOT / "example" / "ray" / name).read_text()) for name in ("demo.yaml", "gpu.yaml"))
    assert demo["http_options"]["host"] == "127.0.0.1"
    assert gpu["http_options"]["host"] == "0.0.0.0"
    (deployment,) = gpu["applications"][0]["deployments"]
    variables = deployment["ray_actor_options"]["runtime_env"]["env_vars"]
    assert "CONTOUR_SERVER__API_KEY_FILE" in variables


def test_workers_share_the_cores_that_ray_assigned() -> None:
    from example.ray.service import cores

    assert cores({"CPU": 4.0, "GPU": 1.0}) == 4
    assert cores({"CPU": 0.5}) == 1


def test_an_argument_that_is_none_is_named() -> None:
    from example.ray.service import build

    with pytest.raises(ValueError, match="conifg"):
        build({"conifg": "configs/demo.yaml"})
