"""A real worker process, driven through its socket, without a scheduler."""

import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest

from scheduler import messages as m
from scheduler.messages import Blame
from tests.service.running import alive, descendants, until
from tests.workers import telling
from tests.workers.engine import demo
from workers.channel import Device, Report, Run, StatusChanged, Stop, Trying, pack
from workers.devices import DeviceSpec
from workers.engine import kernel_probe
from workers.engine.config import Echo, EngineConfig, Speed
from workers.engine.contract import AS_CONFIGURED, EngineOptions, Task
from workers.engine.runtimes import openvino_files
from workers.engine.trials import COMPILING
from workers.process import Child, ProcessExit
from workers.shared_memory import SlotLayout, SlotMemory
from workers.worker import SHORTAGES
from workers.worker_main import WorkerSetup

ID = "cpu0"
PATIENCE = 120.0  # seconds, before a test gives a process up
SLOW = EngineConfig(kind="echo", slots=3, echo=Echo(steps=4, step_seconds=0.1))
Kind = TypeVar("Kind")
IMAGE = cv2.imencode(".png", np.full((64, 64, 3), 200, np.uint8))[1].tobytes()


def of_one_colour(value: int) -> bytes:
    return cv2.imencode(".png", np.full((64, 64, 3), value, np.uint8))[1].tobytes()


def of_kind(reports: Iterator[Report], kind: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    return (report for report in reports if isinstance(report, kind))


class Worker:
    """A child with its memory, and the verbs of a test."""

    def __init__(self, engine: EngineConfig, output_bytes: int = 2**20) -> None:
        self.memory = SlotMemory.create(SlotLayout(engine.slots, 2**20, output_bytes))
        setup = WorkerSetup(DeviceSpec(ID, "cpu", None), engine, threads=1)
        self.reaped = False
        self.child = Child(multiprocessing.get_context("spawn"), setup, self.memory)

    def run(self, slot: int, generation: int, image: bytes = IMAGE, options: EngineOptions = AS_CONFIGURED) -> None:
        params = pack(Task(image, "", 1, options))
        self.memory.input(slot)[: len(image) + len(params)] = image + params
        assert self.child.send(Run(slot, generation, len(image), len(params)))

    def hear(self) -> Iterator[Report]:
        while select.select([self.child.channel], [], [], PATIENCE)[0]:
            reports = list(self.child.reports())
            if not reports:
                return
            yield from reports

    def until(self, kind: type[Kind]) -> Kind:
        return next(report for report in self.hear() if isinstance(report, kind))

    def end(self) -> ProcessExit:
        assert select.select([self.child.sentinel], [], [], PATIENCE)[0]
        list(self.child.reports())
        self.reaped = True
        return self.child.reap()

    def ended(self) -> str:
        return self.end().reason


def of_the_small_model(**changes: Any) -> EngineConfig:
    return replace(demo.CONFIG, dtype="float32", slots=4, **changes)


COMPILING_BY = {
    "torch": of_the_small_model(runtime="torch", speed=Speed(compile=True)),
    "OpenVINO, which converts first": of_the_small_model(runtime="openvino"),
    "OpenVINO": of_the_small_model(runtime="openvino"),
}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILING_BY)
def test_a_worker_that_is_told_to_stop_while_it_compiles_exits_by_itself_and_leaves_nothing(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's thread is then in the middle of a library's C++, which aborts where Python would end it."""
    monkeypatch.setenv(kernel_probe.CACHE, str(tmp_path / "inductor"))
    monkeypatch.setenv(openvino_files.CACHE, str(tmp_path))
    engine = COMPILING_BY[compiler]
    if compiler == "OpenVINO":
        openvino_files.convert(engine, openvino_files.folder_for(engine))
    worker, converts = Worker(engine), compiler == "OpenVINO, which converts first"
    ready, trying = False, tuple[str, ...]()
    for report in worker.hear():
        ready |= isinstance(report, m.WorkerReady)
        trying = report.names if isinstance(report, Trying) else trying
        if ready and (converts or COMPILING in trying):
            break
    if converts:
        until(lambda: bool(descendants(worker.child.pid)))
    family = descendants(worker.child.pid)
    worker.child.send(Stop())
    assert worker.ended() == "ended with exit code 0"
    until(lambda: not any(map(alive, family)))


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(SLOW)
    worker.until(m.WorkerReady)
    yield worker
    worker.child.send(Stop())
    assert worker.ended() == "ended with exit code 0"


def test_it_tells_what_a_step_costs_when_it_is_ready() -> None:
    worker = Worker(SLOW)
    heard = worker.hear()
    assert next(heard) == Device("CPU", None)
    ready = next(heard)
    assert isinstance(ready, m.WorkerReady)
    assert (ready.worker, ready.costs.steps, len(ready.costs.step_seconds)) == (ID, 4, 3)
    worker.child.kill()
    assert worker.end() == ProcessExit("killed by SIGKILL", outside=False)


@pytest.mark.parametrize(("sig", "outside"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_a_kill_from_outside_is_told_from_a_crash(sig: signal.Signals, outside: bool) -> None:
    worker = Worker(SLOW)
    os.kill(worker.child.pid, sig)
    assert worker.end() == ProcessExit(f"killed by {sig.name}", outside)


def test_images_share_steps_and_each_is_finished_once(worker: Worker) -> None:
    worker.run(0, 1)
    worker.run(2, 2)
    reports = []
    for report in worker.hear():
        reports.append(report)
        if sum(isinstance(each, m.Finished) for each in reports) == 2:
            break
    finished = [report for report in reports if isinstance(report, m.Finished)]
    assert {(each.slot, each.generation) for each in finished} == {(0, 1), (2, 2)}
    assert any(len(each.done) == 2 for each in reports if isinstance(each, m.Stepped))
    for each in finished:
        pixels = cv2.imdecode(np.frombuffer(worker.memory.output(each.slot)[: each.image.byte_count], np.uint8), 1)
        assert pixels is not None
        assert pixels.shape == (64, 64, 3)


def test_a_file_that_is_not_an_image_is_refused_and_the_next_is_made(worker: Worker) -> None:
    worker.run(1, 7, b"not an image")
    failed = worker.until(m.Failed)
    assert (failed.slot, failed.generation, failed.blame) == (1, 7, Blame.IMAGE)
    worker.run(1, 8)
    finished = worker.until(m.Finished)
    assert finished.generation == 8


def test_a_dropped_image_frees_its_slot_before_its_last_step(worker: Worker) -> None:
    worker.run(0, 1, options=EngineOptions(steps=1000))
    worker.until(m.Stepped)
    worker.child.send(m.Cancel(ID, 0, 1))
    rest = []
    for report in worker.hear():
        rest.append(report)
        if isinstance(report, m.Released):
            break
    assert rest[-1] == m.Released(ID, 0, 1)
    assert len(rest) < 100  # the step that was running, and those until the drop was sent


def test_a_drop_for_an_old_generation_drops_nothing(worker: Worker) -> None:
    worker.run(0, 5)
    worker.child.send(m.Cancel(ID, 0, 4))
    finished = worker.until(m.Finished)
    assert finished.generation == 5


def test_a_result_that_does_not_fit_its_slot_is_an_error_that_says_what_to_raise() -> None:
    worker = Worker(replace(SLOW, echo=Echo(steps=1)), output_bytes=100)
    worker.until(m.WorkerReady)
    worker.run(0, 1)
    failed = worker.until(m.Failed)
    assert failed.blame is Blame.SERVICE
    assert "raise workers.output_bytes" in failed.reason
    worker.child.kill()
    worker.ended()


def test_an_engine_with_nothing_to_tell_is_not_reported_on(worker: Worker) -> None:
    worker.run(0, 1)
    reports = []
    for report in worker.hear():
        reports.append(report)
        if isinstance(report, m.Finished):
            break
    assert not any(isinstance(report, StatusChanged) for report in reports)


@pytest.fixture
def teller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose engine has something to tell and decodes beside its steps."""
    monkeypatch.setattr("workers.worker_main.main", telling.main)
    worker = Worker(SLOW)
    yield worker
    if not worker.reaped:
        worker.child.kill()
        worker.ended()


def test_how_the_engine_runs_is_told_before_it_is_ready_and_when_that_changes(teller: Worker) -> None:
    heard = teller.hear()
    assert next(heard) == StatusChanged(telling.status(graphs=0, fallbacks=0))
    assert next(heard) == Device("CPU", None)
    ready = next(heard)
    assert isinstance(ready, m.WorkerReady)
    measured = next(heard)  # although it had nothing to do
    assert isinstance(measured, m.Measured)
    assert measured.costs.step_seconds == tuple(each / 2 for each in ready.costs.step_seconds)
    assert next(heard) == StatusChanged(telling.status(graphs=1, fallbacks=0))
    teller.run(0, 1)
    reports = []
    for report in heard:
        reports.append(report)
        if isinstance(report, m.Finished):
            break
    changes = [report for report in reports if isinstance(report, StatusChanged)]
    assert changes == [StatusChanged(telling.status(graphs=1, fallbacks=1))]


def test_an_idle_worker_measures_itself_again_and_reports_it(teller: Worker) -> None:
    heard = teller.hear()
    ready = next(report for report in heard if isinstance(report, m.WorkerReady))
    # Graph and measurement make it three times as fast as it was when it started.
    expected = tuple(each / 3 for each in ready.costs.step_seconds)
    assert any(isinstance(report, m.Measured) and report.costs.step_seconds == expected for report in heard)


def test_an_image_is_decoded_beside_the_steps_of_others_and_its_stages_add_up(teller: Worker) -> None:
    heard = teller.hear()
    teller.run(0, 1)
    reports = []
    for report in heard:
        reports.append(report)
        if report == m.Stepped(ID, ((0, 3),), (4,)):
            teller.run(1, 2)
        if isinstance(report, m.Finished):
            break
    finished = reports[-1]
    assert isinstance(finished, m.Finished)
    assert finished.slot == 0
    last_step = next(n for n, report in enumerate(reports) if isinstance(report, m.Stepped) and (0, 4) in report.done)
    assert any(isinstance(report, m.Stepped) for report in reports[last_step + 1 :])
    assert telling.DECODE_SECONDS <= finished.image.decode < telling.DECODE_SECONDS + finished.image.denoise
    assert finished.image.encode < telling.DECODE_SECONDS


def test_a_device_that_fails_while_it_decodes_ends_the_process_with_its_reason(teller: Worker) -> None:
    teller.run(1, 7, of_one_colour(telling.BLACK))
    assert teller.ended() == "RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("where", telling.LACKS_MEMORY)
def test_an_image_without_memory_for_it_is_reported_and_the_next_one_made(teller: Worker, where: str) -> None:
    teller.run(1, 7, of_one_colour(telling.LACKS_MEMORY[where]))
    failed = teller.until(m.Failed)
    assert (failed.slot, failed.generation, failed.blame) == (1, 7, Blame.MEMORY)
    assert f"no memory to {where}" in failed.reason
    teller.run(1, 8)
    finished = teller.until(m.Finished)
    assert finished.generation == 8


def test_a_step_without_memory_gives_all_its_images_back(teller: Worker) -> None:
    teller.run(0, 1)
    teller.until(m.Stepped)
    teller.run(1, 2, of_one_colour(telling.LACKS_MEMORY["step"]))
    failed = list(islice(of_kind(teller.hear(), m.Failed), 2))
    assert {(each.slot, each.generation, each.blame) for each in failed} == {(0, 1, Blame.MEMORY), (1, 2, Blame.MEMORY)}


def test_a_process_that_lacks_memory_again_and_again_ends(teller: Worker) -> None:
    for generation in range(SHORTAGES):
        teller.run(0, generation, of_one_colour(telling.LACKS_MEMORY["finish"]))
        teller.until(m.Failed)
    teller.run(0, SHORTAGES, of_one_colour(telling.LACKS_MEMORY["finish"]))
    assert teller.ended() == "OutOfMemoryError: no memory to finish"


def test_it_can_get_no_more_privileges_and_dumps_no_core(worker: Worker) -> None:
    process = Path(f"/proc/{worker.child.pid}")
    assert "\nNoNewPrivs:\t1\n" in (process / "status").read_text()
    # Of one byte: with none at all, the kernel would still pipe it to a program.
    assert re.search(r"^Max core file size +1 +1 ", (process / "limits").read_text(), re.MULTILINE)


def test_an_image_that_waits_for_its_memory_can_be_dropped_and_keeps_no_other_waiting(teller: Worker) -> None:
    heard = teller.hear()
    teller.run(0, 1, of_one_colour(telling.WAITS))
    teller.child.send(m.Cancel(ID, 0, 1))
    teller.run(1, 2)
    ends = list(islice(of_kind(heard, (m.Released, m.Finished)), 2))
    assert m.Released(ID, 0, 1) in ends
    assert [each.slot for each in ends if isinstance(each, m.Finished)] == [1]
    teller.run(0, 3)
    assert next(of_kind(heard, m.Finished)).generation == 3


def test_an_error_whose_text_cannot_be_encoded_frees_its_slot(teller: Worker) -> None:
    teller.run(1, 7, of_one_colour(telling.UNENCODABLE))
    failed = teller.until(m.Failed)
    assert failed == m.Failed(ID, 1, 7, "RuntimeError: no such file: ?", Blame.SERVICE)
    teller.run(1, 8)
    teller.until(m.Finished)


def test_a_slot_that_holds_no_task_is_free_again(worker: Worker) -> None:
    worker.memory.input(1)[:10] = b"not a task"
    assert worker.child.send(Run(1, 7, 0, 10))
    failed = worker.until(m.Failed)
    assert (failed.slot, failed.generation, failed.blame) == (1, 7, Blame.SERVICE)
    worker.run(1, 8)
    worker.until(m.Finished)


def test_an_order_that_is_none_ends_the_process_with_the_reason() -> None:
    worker = Worker(SLOW)
    worker.until(m.WorkerReady)
    worker.child.channel.send(b"\xc1")
    assert worker.ended().startswith("DecodeError: ")


def test_it_does_not_heed_the_signals_of_a_terminal(worker: Worker) -> None:
    os.kill(worker.child.pid, signal.SIGINT)
    os.kill(worker.child.pid, signal.SIGTERM)
    worker.run(0, 1)
    worker.until(m.Finished)


def test_it_ends_when_the_pool_closes_the_socket() -> None:
    worker = Worker(SLOW)
    worker.until(m.WorkerReady)
    worker.child.channel.close()
    assert select.select([worker.child.sentinel], [], [], PATIENCE)[0]
    assert worker.child.reap().reason == "ended with exit code 1"


def test_it_ends_when_the_pool_closes_the_socket_with_reports_unread() -> None:
    worker = Worker(SLOW)
    worker.until(m.WorkerReady)
    worker.run(0, 1)
    assert select.select([worker.child.channel], [], [], PATIENCE)[0]
    time.sleep(1.0)  # it is idle again, so nothing but the socket can tell it
    worker.child.channel.close()
    assert select.select([worker.child.sentinel], [], [], PATIENCE)[0]
    assert worker.child.reap().reason == "ended with exit code 1"


def test_an_engine_that_cannot_be_built_ends_the_process_with_its_reason() -> None:
    worker = Worker(EngineConfig(kind="diffusion"))
    assert worker.ended().startswith("the configuration's engine.model is missing")


def test_the_compiler_starts_no_more_processes_than_a_worker_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, sys
from workers import worker_main
from workers.devices import DeviceSpec
from workers.engine.config import EngineConfig
worker_main.available_cores = lambda: 12
setup = worker_main.WorkerSetup(DeviceSpec("cpu0", "cpu", None), EngineConfig(), 1, workers=int(sys.argv[1]))
worker_main._set_environment(setup)
print(os.environ["TORCHINDUCTOR_COMPILE_THREADS"], sys.getswitchinterval())
"""

    def told(workers: int) -> str:
        command = [sys.executable, "-c", script, str(workers)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert [told(workers) for workers in (1, 5, 100)] == ["12 0.0005", "2 0.0005", "1 0.0005"]
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    assert told(1) == "7 0.0005"
