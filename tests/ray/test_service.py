"""A replica's share of its node, and the files that are deployed."""

import importlib.util
from pathlib import Path

import pytest
import yaml

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
    assert [deployment.name for deployment in application.deployments] == [service.CONTOUR.name]


def test_a_replica_uses_the_gpus_that_ray_assigned_and_without_any_the_processor() -> None:
    from example.ray.service import environment

    assert environment(["2", "5"], {"HOME": "/", "CUDA_VISIBLE_DEVICES": "0,1,2,3"})["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert environment([], {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})["CUDA_VISIBLE_DEVICES"] == ""


def test_workers_share_the_cores_that_ray_assigned() -> None:
    from example.ray.service import cores

    assert cores({"CPU": 4.0, "GPU": 1.0}) == 4
    assert cores({"CPU": 0.5}) == 1


def test_an_argument_that_is_none_is_named() -> None:
    from example.ray.service import build

    with pytest.raises(ValueError, match="conifg"):
        build({"conifg": "configs/demo.yaml"})
