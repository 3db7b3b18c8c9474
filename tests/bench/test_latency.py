"""The latency benchmark, run as it is run: what it measures is in its file, whatever becomes of the rest."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.bench.environment import gpu_state
from tests.bench.latency import run
from tests.bench.parts import Part
from tests.bench.parts.bench import Bench, Row
from tests.bench.parts.flops import count
from tests.bench.parts.work import table
from tests.bench.report import Report, lines
from tests.service.running import ROOT, until
from tests.workers.engine import full_size

LIMIT_SECONDS = 600
SMALL = ("--model", "demo", "--device", "cpu", "--side", "64", "--steps", "2", "--repeats", "2")


@contextmanager
def latency(out: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.bench.latency", *SMALL, "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def bench(**changes: Any) -> Bench:
    return replace(Bench("demo", "cpu", side=64, steps=2, repeats=2, patience=1.0), **changes)


def measured() -> Iterator[Row]:
    yield "one", {"median": 1.0, "min": 0.5, "max": 2.0, "n": 3}
    yield "two", 2


def test_the_script_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    with latency(out, "--parts", "peak,engine,agreement,eager,batches,joining,lcm,profile") as process:
        printed = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == 0
    content = read(out)
    parts = content["parts"]
    assert list(parts) == ["peak", "engine", "agreement", "eager", "batches", "joining", "lcm", "profile"]
    assert content["environment"]["torch"]
    assert content["asked"]["side"] == 64

    stages = parts["engine"]["kernels launched one by one"]
    for stage in ("prepare", "hint", "text", "step", "VAE", "encode", "in all, new prompt", "in all, back to back"):
        assert 0 < stages[stage]["min"] <= stages[stage]["median"] <= stages[stage]["max"]
    assert stages["step"]["share of peak"] > 0  # above 1 where the peak was measured beside other work
    assert parts["agreement"]["engine, at least 40 dB"] is True
    assert parts["agreement"]["engine, standard deviation of the images"] > 1
    assert parts["batches"]["8 together"]["images/s"] > 0
    assert parts["lcm"]["LoRA"]["layers"] > 100
    kernels = parts["profile"]["steps, graphs"]["kernels"]
    assert sum(kernel["share"] for kernel in kernels) == pytest.approx(1, abs=0.1)
    assert "in all, new prompt" in printed


def test_a_killed_run_leaves_what_it_has_measured(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    with latency(out, "--parts", "peak,batches", "--side", "128", "--steps", "20") as process:
        until(lambda: out.exists() and "1 together" in read(out)["parts"].get("batches", {}))
        process.kill()
    parts = read(out)["parts"]
    assert parts["peak"]["best, TFLOP/s"] > 0
    assert parts["batches"]["1 together"]["median"] > 0


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    def broken(bench: Bench) -> Iterator[Row]:
        yield "before", 1
        raise ValueError("no such kernel")

    report = Report(tmp_path / "out.json", {})
    parts = {"broken": Part(broken), "good": Part(lambda bench: measured())}
    assert run(report, parts, bench()) == 1
    rows = read(tmp_path / "out.json")["parts"]
    assert (rows["broken"]["before"], rows["broken"]["error"]) == (1, "ValueError: no such kernel")
    assert rows["good"]["two"] == 2


def test_skipped_measurements_are_reported(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.json", {})
    soon = bench(deadline=time.monotonic() + 20, quick=True)
    parts = {"short": Part(lambda bench: measured()), "long": Part(lambda bench: measured(), quick_seconds=60)}
    assert run(report, parts, soon) == 0
    rows = read(tmp_path / "out.json")["parts"]
    assert rows["short"]["two"] == 2
    assert rows["long"].keys() == {"skipped"}
    assert re.fullmatch(r"out of time: (1?\d|20) s were left", rows["long"]["skipped"])


def test_a_run_that_is_told_to_end_says_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    with latency(out, "--parts", "batches,peak", "--repeats", "1000") as process:
        until(lambda: out.exists() and "start" in read(out)["parts"].get("batches", {}))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 2
    parts = read(out)["parts"]
    assert parts["batches"]["cut off"] == "SIGTERM"
    assert parts["peak"] == {"skipped": "SIGTERM"}


def test_the_work_of_stable_diffusion_is_what_others_counted() -> None:
    flops = count(full_size.architecture(), side=512)
    assert [round(each / 1e9, 1) for each in (flops.unet, flops.controlnet, flops.vae, flops.text)] == [
        803.3,
        283.3,
        2514.5,
        13.3,
    ]
    assert flops.image(rows=2, steps=20) == pytest.approx(46.0e12, rel=1e-3)


def test_unknown_readings_of_nvml_are_left_out() -> None:
    class Unsupported(Exception):
        pass

    def refuse(handle: object) -> int:
        raise Unsupported

    library = MagicMock(NVMLError=Unsupported, nvmlDeviceGetEnforcedPowerLimit=refuse)
    library.nvmlSystemGetDriverVersion.return_value = "580.1"
    library.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=2**30)
    state = gpu_state("GPU-1", library)
    assert state is not None
    assert state["driver"] == "580.1"
    assert state["memory in use, GiB"] == 1
    assert "power limit, W" not in state
    library.nvmlInit.side_effect = Unsupported
    assert gpu_state("GPU-1", library) is None


def test_the_table_has_a_line_for_each_figure(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.json", {})
    run(report, {"good": Part(lambda bench: measured())}, bench())
    table = list(lines(report.content))
    assert table[0].strip() == "good"
    assert table[1].split() == ["one", "1.00", "ms", "[0.50", "..", "2.00]"]


def test_operators_do_not_count_their_kernels_twice() -> None:
    def event(key: str, device: str, microseconds: float) -> SimpleNamespace:
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(key=key, device_type=kind, self_device_time_total=microseconds, count=1)

    events = [event("aten::mm", "CPU", 900), event("gemm", "CUDA", 900), event("softmax", "CUDA", 100)]
    found = table(events, cuda=True)
    assert found["all, ms"] == 1
    assert [(row["kernel"], row["share"]) for row in found["kernels"]] == [("gemm", 0.9), ("softmax", 0.1)]
