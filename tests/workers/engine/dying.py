"""A worker process with the small model, whose compiled networks are played by some that fail as a test asks."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.workers.engine.demo import CONFIG
from tests.workers.engine.recorder import FakeRecorder
from workers import worker_main
from workers.engine import compiling, execution, kernels
from workers.engine.compiling import TorchCompile
from workers.engine.config import Speed
from workers.engine.denoiser import Predict, StepInputs
from workers.engine.graphs import Recording, Work
from workers.engine.model import Model
from workers.engine.runtime import ModelFunctions
from workers.engine.streams import SideStream
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

FAULT = "CONTOUR_TEST_COMPILED"  # a variable: a name of FAULTS
GRAPHS = "CONTOUR_TEST_GRAPHS"  # another: where it is set, the process dies when it records a graph
KERNELS = "CONTOUR_TEST_KERNELS"  # another: where it is set, the process dies of kernels of ours
GATE = "CONTOUR_TEST_GATE"  # another: while this file is not there, compiling does not end
ENGINE = replace(CONFIG, slots=1, speed=Speed(compile=True))
Fault = Callable[[StepInputs, Predict], Tensor]


def _steps_here() -> bool:
    return threading.current_thread() is threading.main_thread()


def _of_a_request(inputs: StepInputs) -> bool:
    """Placeholders are not guided as the configuration says."""
    return float(inputs.guidance_scale.max()) == ENGINE.guidance_scale


def _raises(kind: type[BaseException], when: Callable[[StepInputs], bool]) -> Fault:
    def run(inputs: StepInputs, plain: Predict) -> Tensor:
        if when(inputs):
            raise kind("a fault of the compiler")
        return plain(inputs)

    return run


def _ends(how: Callable[[], object], when: Callable[[StepInputs], bool]) -> Fault:
    def run(inputs: StepInputs, plain: Predict) -> Tensor:
        if when(inputs):
            how()
        return plain(inputs)

    return run


def _computes(wrong: Callable[[Tensor], Tensor]) -> Fault:
    return lambda inputs, plain: wrong(plain(inputs))


class _Later:
    """From the nth step of requests on."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.steps = 0

    def __call__(self, inputs: StepInputs) -> bool:
        self.steps += _of_a_request(inputs)
        return self.steps >= self.n


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _compiling(inputs: StepInputs) -> bool:
    return not _steps_here()


def _proving(inputs: StepInputs) -> bool:
    return _steps_here()


FAULTS: dict[str, Callable[[], Fault]] = {
    "raises where it serves": lambda: _raises(RuntimeError, _proving),
    "asserts where it serves": lambda: _raises(AssertionError, _proving),
    "looks up what is missing where it serves": lambda: _raises(KeyError, _proving),
    "has no memory where it serves": lambda: _raises(torch.OutOfMemoryError, _proving),
    "asserts while compiling": lambda: _raises(AssertionError, _compiling),
    "has no memory while compiling": lambda: _raises(torch.OutOfMemoryError, _compiling),
    "leaves the compiler's thread": lambda: _raises(SystemExit, _compiling),
    "computes nothing": lambda: _computes(torch.zeros_like),
    "computes infinity": lambda: _computes(lambda noise: noise / 0),
    "mixes images up": lambda: _computes(lambda noise: noise.flip(-1)),
    "computes another shape": lambda: _computes(lambda noise: noise[..., :1]),
    "is a little wrong": lambda: _computes(lambda noise: noise * 1.1),
    "asserts at the first step of an image": lambda: _raises(AssertionError, _of_a_request),
    "asserts at a later step of an image": lambda: _raises(AssertionError, _Later(3)),
    "exits while compiling": lambda: _ends(lambda: os._exit(3), _compiling),
    "crashes while compiling": lambda: _ends(_crash, _compiling),
    "crashes where it serves": lambda: _ends(_crash, _proving),
    "crashes at the first step of an image": lambda: _ends(_crash, _of_a_request),
    "crashes after an image": lambda: _ends(_crash, _Later(ENGINE.sampler.steps + 1)),
    "never ends": lambda: _ends(lambda: _wait_for(Path(os.environ[GATE])), _compiling),
    "never ends where it serves": lambda: _ends(lambda: _wait_for(Path(os.environ[GATE])), _proving),
    "works": lambda: _computes(lambda noise: noise),
}


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def fault(name: str) -> Fault:
    """One of FAULTS, which has not failed yet."""
    return FAULTS[name]()


def with_fault(fault: Fault, plain: ModelFunctions) -> ModelFunctions:
    """What plays the compiled networks."""

    def predict(side_stream: SideStream) -> Predict:
        inner = plain.predict(side_stream)
        return lambda inputs: fault(inputs, inner)

    return ModelFunctions(predict, plain.decode)


class _Recorder(FakeRecorder):
    def record(self, work: Work, pool: object) -> Recording:
        _crash()
        raise AssertionError


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    functions = Model.functions

    def patched(model: Model, *arguments: Any) -> ModelFunctions:
        plain = functions(model, *arguments)
        if model.fused:
            plain = replace(plain, predict=with_fault(_ends(_crash, lambda inputs: True), plain).predict)
        return replace(plain, faster=TorchCompile(lambda: with_fault(fault(os.environ[FAULT]), plain), automatic=False))

    recorder = patch.object(execution, "recorder_for", lambda device: _Recorder() if GRAPHS in os.environ else None)
    equal_times = patch.object(compiling, "perf_counter", count().__next__)
    usable = patch.object(kernels, "usable", lambda device: KERNELS in os.environ)
    with patch.object(Model, "functions", patched), equal_times, recorder, usable:
        worker_main.main(setup, channel, memory)


# ----------------------------------------------------------------------------------------------- OpenVINO without torch

ALONE = replace(CONFIG, slots=1, runtime="openvino", dtype="float32")
PLAIN_FAULTS: dict[str, Fault] = {
    "raises at the first step": _raises(RuntimeError, lambda inputs: True),
    "crashes at the first step": _ends(_crash, lambda inputs: True),
    "raises at a step of an image": _raises(RuntimeError, _of_a_request),
}


def main_alone(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of a process whose networks are OpenVINO's, for any shape alone, and fail as a test asks."""
    from workers.engine.runtimes import openvino

    faulty = PLAIN_FAULTS[os.environ[FAULT]]

    class Step(openvino.PlainNetwork):
        def _infer(self, inputs: Any) -> Tensor:
            if len(inputs) == len(StepInputs.__dataclass_fields__):
                faulty(StepInputs(*inputs), lambda _: torch.empty(0))
            return super()._infer(inputs)

    with patch.object(openvino, "PlainNetwork", Step), patch.object(openvino.OpenVino, "_compiled", None):
        worker_main.main(setup, channel, memory)
