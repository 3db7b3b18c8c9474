"""What became of each case: lowered and compiled in a process of its own, and kept until a source changes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.gpu_codegen import standins
from tests.gpu_codegen.cases import Case
from tests.gpu_codegen.cubins import Cubin, compile_all
from tests.gpu_codegen.flawed import FLAWED
from tests.gpu_codegen.program import Program
from tests.gpu_codegen.standins import MovedError

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "gpu_codegen"
TRITON = BUILD / "triton"
# What a result depends on: the engine's passes, and all that lowers them. The flawed networks are lowered each time.
_HERE = ("cubins", "gpus", "lowering", "passes", "standins")
_SOURCES = (
    "workers/engine/**/*.py",
    *(f"tests/gpu_codegen/{name}.py" for name in _HERE),
    "tests/workers/engine/fake_cuda.py",
    "tests/workers/engine/full_size.py",
    "requirements/cuda.txt",
)
MOVED = 3  # exit code of a process that had no place for a stand-in
_LOG_CHARS = 3000
_AT_ONCE = min(os.cpu_count() or 1, 4)  # each takes a core and 1 GB


class LoweringError(Exception):
    """A pass could not be lowered or compiled; the end of what its process said."""


@dataclass(frozen=True, eq=False, slots=True)
class Result:
    """A case's program, and its compiled kernels."""

    case: Case
    program: Program
    cubins: tuple[Cubin, ...]


def results(cases: Iterable[Case]) -> dict[Case, Future[Result]]:
    """The result of each case, or why there is none; as many at once as there are cores."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {case: pool.submit(result, case) for case in cases}


def result(case: Case) -> Result:
    """The result of a case, kept or new. Raises LoweringError and MovedError."""
    file = _kept() / f"{case.name}.json"
    if case.which in FLAWED or not file.exists():
        _run(case, file)
    read = json.loads(file.read_text())
    return Result(case, Program(read["code"]), tuple(Cubin(**each) for each in read["cubins"]))


def make(case: Case, file: Path) -> None:
    """Lower a case and compile its kernels, in this process, which must be used for nothing else."""
    standins.install(case.gpu)
    from tests.gpu_codegen.lowering import lower  # imports of the engine may look for a device

    code = lower(case)
    cubins = compile_all(Program(code).sources, case.gpu)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps({"code": code, "cubins": [asdict(each) for each in cubins]}))
    unfinished.rename(file)


def _run(case: Case, file: Path) -> None:
    if not TRITON.exists() and find_spec("triton") is None:
        raise LoweringError("make test-gpu-codegen installs Triton into build/, where it is missing")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TRITON))),
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "TRITON_CACHE_DIR": str(BUILD / "cubins"),  # by their own digest: most kernels of two batch sizes are one
        }
        command = [sys.executable, "-m", "tests.gpu_codegen", "make", case.name, str(file)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == MOVED:
        raise MovedError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise LoweringError(f"{case.name}: {done.stderr[-_LOG_CHARS:]}")


@cache
def _kept() -> Path:
    """The folder for results of the present sources. Those of others are deleted."""
    digest = sha256(f"{torch.__version__} {sys.version}".encode())
    for source in sorted(file for pattern in _SOURCES for file in ROOT.glob(pattern)):
        digest.update(source.read_bytes())
    folder = BUILD / "results" / digest.hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
