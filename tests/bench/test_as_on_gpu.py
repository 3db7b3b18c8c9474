"""Each part of the latency benchmark as it runs on a GPU, whose place the CPU takes: a borrowed one has no time for
mistakes that show at the first run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.latency import run
from tests.bench.parts import PARTS, bench, pipelines, services
from tests.bench.parts.bench import Bench
from tests.bench.report import COMPLETE, Report
from workers.engine import quantisation

CHANGES = {
    "one stream": {"ENGINE__SPEED__BESIDE": "false"},
    "programmatic dependent launch": {"TORCHINDUCTOR_ENABLE_PDL": "1"},
    "ONNX Runtime, CUDA": {"ENGINE__RUNTIME": "onnxruntime"},
}
DEVICE: Mapping[str, Any] = {  # what the parts ask torch.cuda, and the answers
    "synchronize": None,
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "memory_allocated": 2**30,
    "max_memory_allocated": 2**31,
    "max_memory_reserved": 2**31,
    "get_device_capability": (9, 0),
}
# The profiler has no kernels of a GPU to show here, nor ONNX Runtime its provider.
LACKING = {"kernels": {"steps", "VAE"}, "peers": {"stable-fast"}, "settings": {"ONNX Runtime, CUDA, start 1"}}


# As in the engine's tests; diffusers, compiled, warns of what torch is about to change.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them would wait for one another on a busy machine
    for name, answer in DEVICE.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(Bench, "cuda", True)
    monkeypatch.setitem(bench._SIDES, "cuda", (64,))
    monkeypatch.setattr(bench, "_WARM_AT_MOST_SECONDS", 0.1)
    monkeypatch.setattr(quantisation, "scaled_mm_on", lambda *_: quantisation.emulated)
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode, **options: compiled(self, backend="eager", **options)
    )
    monkeypatch.setattr(services.Client, "_wanted", 0)  # a CPU's workers compile nothing unless they are told to
    monkeypatch.setattr(services, "CHANGES", CHANGES)
    monkeypatch.setattr(services, "STARTS", 1)
    monkeypatch.setattr(services, "_LOADS", (0.5,))
    monkeypatch.setattr(pipelines, "_SEEDS", 1)
    yield Bench("demo", "cpu", side=64, steps=2, repeats=2, patience=0.2, folder=tmp_path)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_measures_all_that_it_measures_on_a_gpu(name: str, on_gpu: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    report = Report(out, {})
    assert run(report, {name: PARTS[name]}, replace(on_gpu, figures=report.content["parts"])) == 0, out.read_text()
    rows = json.loads(out.read_text())["parts"][name]
    assert COMPLETE in rows
    assert {row for row, value in rows.items() if isinstance(value, dict) and "skipped" in value} == LACKING.get(
        name, set()
    )
