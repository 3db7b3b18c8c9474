"""Slow modules that must not be imported at the start, checked in new processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import ROOT, Service, png

HEAVY = ("torch", "diffusers", "transformers")
COMPILER = "torch._inductor.codecache"  # what is behind torch.compile
WARM_UP = """
from pathlib import Path
from app.settings import load
from workers.engine import build

SMALL = {
    "CONTOUR_ENGINE__SIZE__SHORT_SIDE": "64",
    "CONTOUR_ENGINE__SLOTS": "1",
    "CONTOUR_ENGINE__RUNTIME": "torch",
}
build(load(Path("configs/demo.yaml"), SMALL).engine, "cpu").warm_up()
"""


def loaded(by: str, modules: tuple[str, ...]) -> set[str]:
    """Those of some modules that are there after a program has run."""
    program = f"{by}\nimport sys\nprint(*sys.modules, sep='\\n')"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # more threads only wait for one another on a busy machine
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return set(modules) & set(done.stdout.splitlines())


def test_the_front_end_needs_no_torch() -> None:
    with Service("echo") as service:
        assert service.wait_until_ready().generate().status_code == 200
        edges = service.client.post("/edges", content=png(64, 64), headers={"Content-Type": "image/png"})
        assert edges.status_code == 200
        libraries = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in libraries
    assert "cv2" not in libraries
    assert "msgspec" in libraries  # so one would be seen


def test_nor_does_a_worker_without_a_model() -> None:
    assert loaded("import workers.worker_main, workers.engine.echo", HEAVY) == set()


def test_nor_does_the_process_that_finds_edges_which_is_alone_in_reading_pixels() -> None:
    assert loaded("import workers.edge_process", (*HEAVY, "cv2", "PIL", "numpy")) == set()
    assert loaded("import workers.edge_process as edges; edges.import_all()", (*HEAVY, "cv2", "PIL")) == {"cv2", "PIL"}


@pytest.mark.slow
def test_a_worker_that_does_not_compile_is_ready_without_torchs_compiler() -> None:
    assert loaded(WARM_UP, (*HEAVY, COMPILER)) == set(HEAVY)


def test_workers_are_spawned_by_the_context_of_torch_multiprocessing() -> None:
    import torch.multiprocessing

    from workers import process

    assert process.SPAWN is torch.multiprocessing.get_context("spawn")
