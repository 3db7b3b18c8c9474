"""Drivers and the CUDA that torch was built for."""

from pathlib import Path

import pytest

from app.application import Application
from app.settings import load
from tests.workers.test_nvml import FakeLibrary
from workers.nvml import Nvml, driver_fault


def nvml(cuda: int, *unsupported: str) -> Nvml:
    library = FakeLibrary(*unsupported)
    library.cuda = cuda
    return Nvml(library)


@pytest.mark.parametrize(
    ("cuda", "built"),
    [(13000, "13.0"), (13000, "13.2"), (13010, "13.0"), (13000, "12.8"), (12020, "12.9"), (12020, "11.8")],
)
def test_a_driver_runs_its_own_major_version_of_cuda_and_those_before(cuda: int, built: str) -> None:
    assert driver_fault(nvml(cuda), built) is None


def test_an_older_driver_is_told_with_what_to_do() -> None:
    assert str(driver_fault(nvml(12020), "13.0")) == (
        "The NVIDIA driver (575.51) supports CUDA up to 12.2, but the installed torch was built for CUDA 13.0: "
        "install driver 580.65 or newer, or a torch built for CUDA 12"
    )


def test_so_is_one_whose_successor_is_not_known_yet() -> None:
    assert "install a newer driver, or a torch built for CUDA 13" in str(driver_fault(nvml(13010), "14.1"))


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert driver_fault(None, "13.0") is None
    assert driver_fault(nvml(12020, "nvmlSystemGetCudaDriverVersion_v2"), "13.0") is None
    assert driver_fault(nvml(12020)) is None  # this torch needs no driver, unless it has CUDA of its own major version


def test_its_version_may_be_unknown() -> None:
    assert "The NVIDIA driver (of an unknown version) supports" in str(
        driver_fault(nvml(12020, "nvmlSystemGetDriverVersion"), "13.0")
    )


@pytest.mark.parametrize(("built", "told"), [("13.0", True), ("12.8", False)])
def test_it_is_told_before_workers_start(
    built: str, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("devices", "nvml"):
        monkeypatch.setattr(f"workers.{module}.torch_cuda", lambda: built)
    settings = load(Path(__file__).parents[2] / "configs" / "demo.yaml", {})
    Application(settings, {}, nvml(12020), 1)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(message.startswith("The NVIDIA driver (575.51) supports CUDA up to 12.2") for message in errors) is told
