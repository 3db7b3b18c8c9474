"""Kernels that are not torch's own, tried in real processes. The kernel is played by a package on the disk."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.engine import kernel_probe
from workers.engine.kernel_probe import CACHE

CPU = torch.device("cpu")
GOOD = """
from torch.nn.functional import scaled_dot_product_attention as sdpa
def memory_efficient_attention_forward(q, k, v):
    return sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
"""
RUN = "def memory_efficient_attention_forward(q, k, v): "
OTHERS = {
    "crashes": ("import os; os.kill(os.getpid(), 11)", "it crashed the process that tried it, by signal 11"),
    "exits": ("import os; os._exit(3)", "it crashed the process that tried it, with exit code 3"),
    "cannot be imported": ("raise OSError('undefined symbol: _ZN2at')", "OSError: undefined symbol: _ZN2at"),
    "refuses": (RUN + "assert False, 'sm_90 only'", "AssertionError: sm_90 only"),
    "computes nonsense": (RUN + "return q * 0", "WrongResultError: it is off by "),
    "prints": ("print('hello')" + GOOD, ""),
    "works": (GOOD, ""),
}
Install = Callable[..., None]

pytestmark = pytest.mark.slow  # each test starts a process that imports torch


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an xformers with some code in the place where Python looks first."""
    folder = tmp_path / "packages"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))

    def write(code: str, version: str = "1.0") -> None:
        for old in folder.glob("*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        facts = folder / f"xformers-{version}.dist-info"
        for each in (folder / "xformers", facts):
            each.mkdir(parents=True, exist_ok=True)
        (folder / "xformers" / "__init__.py").touch()
        (folder / "xformers" / "ops.py").write_text(code)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xformers\nVersion: {version}\n")

    return write


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started."""
    commands: list[Any] = []
    run = subprocess.run

    def noted(command: Any, **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted)
    return commands


@pytest.mark.parametrize("kind", OTHERS)
def test_a_kernel_that_does_what_it_likes_to_its_process_costs_nothing_but_itself(
    kind: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    code, reason = OTHERS[kind]
    install(code)
    found = kernel_probe.flaw_of("xformers", CPU)
    assert found.startswith(reason) if reason else found == ""


def test_one_that_hangs_is_not_waited_for_nor_remembered(
    install: Install, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_probe, "TIMEOUT_S", 1.0)
    install("import time; time.sleep(600)")
    for _ in range(2):
        assert kernel_probe.flaw_of("xformers", CPU) == "the process that tried it did not finish within 1 s"
    assert len(asked) == 2


@pytest.mark.parametrize("kind", ["exits", "works"])
def test_a_probes_result_is_kept_until_the_package_changes(
    kind: str, install: Install, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    code, reason = OTHERS[kind]
    install(code)
    for _ in range(2):
        assert kernel_probe.flaw_of("xformers", CPU) == reason
    assert len(asked) == 1
    install(GOOD, "1.1")
    assert kernel_probe.flaw_of("xformers", CPU) == ""
    assert len(asked) == 2


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 9)",
        RUN + "import torch; raise torch.OutOfMemoryError('CUDA out of memory')",
        RUN + "import torch; raise torch.AcceleratorError('CUDA error: device(s) is/are busy or unavailable')",
    ],
)
def test_a_result_that_may_change_is_not_kept(
    code: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    install(code)
    assert kernel_probe.flaw_of("xformers", CPU)
    install(GOOD)
    assert kernel_probe.flaw_of("xformers", CPU) == ""


@pytest.mark.parametrize("content", [b"[1]", b""])
def test_a_file_that_is_broken_is_written_anew(
    content: bytes, install: Install, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    install("raise ImportError('not here')")
    kernel_probe.flaw_of("xformers", CPU)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(content)
    for _ in range(2):
        assert kernel_probe.flaw_of("xformers", CPU) == "ImportError: not here"
    assert len(asked) == 2
