"""The group norm's Triton kernels, in processes that have Triton (`make test-gpu-codegen`), without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workers.engine.kernels.on_triton import compiled, interpreted

ROOT = Path(__file__).parents[4]
TRITON = ROOT / "build" / "gpu_codegen" / "triton"
TOLERANCE = {"float16": 3e-4, "bfloat16": 4e-3, "float32": 1e-5}  # a rounding; and 100 times one, at a mean of 100

pytestmark = pytest.mark.skipif("TEST_GPU_CODEGEN" not in os.environ, reason="needs Triton: make test-gpu-codegen")


def run(what: str, cases: int, **environment: str) -> list[dict[str, Any]]:
    paths = os.pathsep.join(map(str, (ROOT, TRITON)))
    given = os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(TRITON.parent / "cubins"), **environment}
    command = [sys.executable, "-W", "ignore", "-m", "tests.workers.engine.kernels.on_triton", what]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == cases
    return found


def test_the_kernels_compute_what_torch_does_in_float64() -> None:
    for line in run("interpret", len(interpreted()), TRITON_INTERPRET="1"):
        assert all(error <= TOLERANCE[line["case"]["dtype"]] for error in line["found"]), line  # NaN is not, either


@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_kernels_compile_and_keep_to_their_registers(arch: str) -> None:
    for line in run(arch, len(compiled())):
        assert line["found"]
        assert all(kernel["local"] == 0 for kernel in line["found"]), line
