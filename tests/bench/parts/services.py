"""The real service as a process, spoken to through HTTP: as shipped, under load, with other settings, at its start."""

import asyncio
import base64
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import httpx
import torch

from app.settings import SettingsError, load
from tests.bench.openloop import OpenLoop
from tests.bench.parts.bench import TEXT, Bench, NoTimeError, Row, SkippedError
from tests.bench.parts.stats import STARTS, in_turns, milliseconds, percentiles, summary, verdict
from tests.bench.report import CONCLUSIONS
from tests.service.running import ROOT, Service, png, result_pixels, surroundings, until
from workers.engine.config import EngineConfig
from workers.engine.execution import buckets
from workers.folders import COMPILER_CACHES

Change = Mapping[str, str]  # settings, as variables without CONTOUR_, and variables of libraries

# What is compared with the shipped configuration; a line adds one. What this machine lacks for one is the reason that
# its row then gives.
CHANGES: Mapping[str, Change] = {
    "convolutions timed (cudnn.benchmark)": {"ENGINE__SPEED__TIME_CONVOLUTIONS": "true"},
    "programmatic dependent launch": {"TORCHINDUCTOR_ENABLE_PDL": "1"},
    "without kernels of our own": {"ENGINE__SPEED__KERNELS": "false"},
    "fp8": {"ENGINE__QUANTISATION": "fp8"},
    "one stream": {"ENGINE__SPEED__BESIDE": "false"},
    "attention chosen by torch": {"ENGINE__SPEED__ATTENTION": "sdpa"},
    "convolutions by cuDNN alone": {"TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS": "ATEN"},
    "coordinate descent tuning": {"TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": "1"},
    "not compiled": {"ENGINE__SPEED__COMPILE": "false"},
    "not compiled, convolutions timed": {
        "ENGINE__SPEED__COMPILE": "false",
        "ENGINE__SPEED__TIME_CONVOLUTIONS": "true",
    },
    "ONNX Runtime, CUDA": {"ENGINE__RUNTIME": "onnxruntime"},
    "ONNX Runtime, TensorRT": {"ENGINE__RUNTIME": "onnxruntime", "ENGINE__ONNX_PROVIDER": "tensorrt"},
}
_SIZES = ((3, 3), (2, 3), (4, 4))  # in halves of the side: 768x768, 512x768 and 1024x1024
_LOADS = (0.5, 0.8, 0.95)  # of the throughput
_ARRIVALS = 5.0  # expected, at least
_PATIENCE_S = 900.0  # for a worker to be ready, and for one answer
_COMPILE_S = 1500.0
_BETWEEN_S = 1.0  # two posts while networks are compiled: on a CPU, more would leave the compiler nothing
_STEADY, _FEW = 3, 10  # images in a row
_LOG_LINES = 40  # of a service that fails: its worker says there why
_OUTCOMES = (": compiled networks ", "compile: failed", "compile: not taken over")  # in the service's log


def devices(bench: Bench) -> Iterator[Row]:
    """The service from start to an image, not compiled, with CUDA_VISIBLE_DEVICES set and unset."""
    for name, visible in (("set", _visible(bench)), ("unset", None)):
        yield f"CUDA_VISIBLE_DEVICES {name}", partial(_first_image, bench, visible)


def http(bench: Bench) -> Iterator[Row]:
    """What one client waits for, with the shipped settings but one slot, as so fewer networks are compiled."""
    with Client.start(bench) as client:
        compiling = client.wait_until_compiled()
        yield "start", lambda: client.started() | {"compiling": compiling}
        yield "one client", partial(_one_client, bench, client)


def under_load(bench: Bench) -> Iterator[Row]:
    """With the shipped slots: twice as many clients that wait for each other, and clients that come at random."""
    with Client.start(bench, {"ENGINE__SLOTS": str(bench.slots)}) as client:
        compiling = client.wait_until_compiled()
        yield "start", lambda: client.started() | {"compiling": compiling}
        yield "one client", partial(_one_client, bench, client)
        yield "closed loop", partial(_closed_loop, bench, client)
        for share in _LOADS:
            yield f"open loop, {share:.0%} of the throughput", partial(_open_loop, bench, client, share)


def sizes(bench: Bench) -> Iterator[Row]:
    """One client's images of other sizes, each configured and so compiled for."""
    for halves in _SIZES:
        width, height = (each * bench.side // 2 for each in halves)
        change = {
            "ENGINE__SIZE__SHORT_SIDE": str(min(width, height)),
            "ENGINE__SIZE__LONG_SIDE": str(max(width, height)),
            "ENGINE__SPEED__SIZES": f"[[{width}, {height}]]",
        }
        yield f"{width}x{height}", partial(_size, bench, change, width, height)


def settings(bench: Bench) -> Iterator[Row]:
    """Each change beside the shipped settings, in turns; all changes once, then all again with new processes."""
    for start in range(1, STARTS + 1):
        for name, change in CHANGES.items():
            if start == 1 or "skipped" not in _rows(bench).get(f"{name}, start 1", {}):
                yield f"{name}, start {start}", partial(_compared, bench, change)
        yield f"{CONCLUSIONS} after {start}", partial(verdicts, bench, start)


def startup(bench: Bench) -> Iterator[Row]:
    """From the start of the process to its port, the first image and full speed, without and with a compile cache.

    The weights were written just before: they are read from memory, not from a disk.
    """
    yield "not compiling", partial(_started, bench, {"ENGINE__SPEED__COMPILE": "false"})
    with tempfile.TemporaryDirectory(dir=bench.folder) as cache:
        caches = {"WORKERS__CACHE": cache} | {name: f"{cache}/{kind}" for name, kind in COMPILER_CACHES.items()}
        for name in ("compiling, empty cache", "compiling, cache of the last start"):
            if bench.cuda:
                yield name, partial(_started, bench, caches)


@dataclass(frozen=True, eq=False)
class Client:
    """One service that is ready, and what it takes to speak to it. `bound` and `ready` in seconds after its start."""

    bench: Bench
    service: Service
    engine: EngineConfig
    http: httpx.Client
    body: dict[str, object]
    seeds: "itertools.count[int]"
    bound: float
    ready: float

    @classmethod
    @contextmanager
    def start(
        cls, bench: Bench, change: Change | None = None, visible: str | None = "", size: tuple[int, int] | None = None
    ) -> Iterator["Client"]:
        """Start a service. `visible`: CUDA_VISIBLE_DEVICES; the default is the device that is measured."""
        visible = _visible(bench) if visible == "" else visible
        change = _settings(bench) | dict(change or {})
        overrides = {name: value for name, value in change.items() if "__" in name}
        engine = configured(bench, overrides)
        began = time.monotonic()
        variables = {name: value for name, value in change.items() if name not in overrides}
        with patch.dict(os.environ, variables), Service(bench.shipped, visible, **overrides) as service:
            bound = time.monotonic() - began
            with _explained(service):
                until(lambda: _lost(service) or bool(service.readiness()["ready"]), _PATIENCE_S)
                if _lost(service):
                    raise RuntimeError("the worker was lost at its start")
            ready = time.monotonic() - began
            image = base64.b64encode(png(*(size or (bench.side, bench.side)))).decode()
            body = {"request_id": 1, "text": TEXT, "input_image_base64": image}
            with httpx.Client(base_url=service.url, timeout=_PATIENCE_S) as http:
                yield cls(bench, service, engine, http, body, itertools.count(), round(bound, 2), round(ready, 2))

    def request(self) -> dict[str, object]:
        """The body of a request for a new image of a new prompt."""
        number = next(self.seeds)
        return self.body | {"random_seed": number, "text": f"{TEXT}, {number}"}

    def ask(self) -> httpx.Response:
        """Have an image made."""
        with _explained(self.service):
            answer = self.http.post("/generation/", json=self.request())
            if answer.status_code != 200:
                raise RuntimeError(f"the service answered {answer.status_code}: {answer.text}")
        return answer

    def post(self) -> float:
        """The seconds that an image takes from request to answer."""
        began = time.perf_counter()
        self.ask()
        return time.perf_counter() - began

    def started(self) -> dict[str, Any]:
        """How long the start took, on which devices it is, and what is in use there by now."""
        devices = [str(worker["device"]) for worker in self._workers]
        times = {"slots": self.engine.slots, "port bound, s": self.bound, "ready, s": self.ready}
        return {"devices": devices} | times | self.in_use()

    def in_use(self) -> dict[str, Any]:
        """Which graphs and compiled networks run by now, and what has failed."""
        return {name: self._workers[0][name] for name in ("graphs", "fallbacks")}

    def wait_until_compiled(self) -> dict[str, Any]:
        """Make images until all that should be compiled is in use, or given up. Raises NoTimeError."""
        began, seconds, patience = time.monotonic(), list[float](), min(self.bench.left, _COMPILE_S)
        while len(outcomes := self._outcomes()) < self._wanted:
            if _lost(self.service):
                with _explained(self.service):
                    raise RuntimeError("the worker was lost while it compiled")
            if time.monotonic() - began > patience:
                raise NoTimeError(f"{len(outcomes)} of {self._wanted} parts were compiled")
            seconds.append(self.post())
            time.sleep(_BETWEEN_S)
        result = {"s": round(time.monotonic() - began, 2), "log": outcomes}
        return result | ({"images meanwhile": summary(seconds)} if seconds else {})

    @property
    def _workers(self) -> list[dict[str, Any]]:
        return [worker for worker in self.service.readiness()["workers"] if worker["state"] == "ready"]

    @property
    def _wanted(self) -> int:
        """Parts that are compiled: for each configured size the buckets, and the VAE."""
        speed = self.engine.speed
        if self.engine.runtime_on(cuda=self.bench.cuda) != "torch" or speed.compile is False or not self.bench.cuda:
            return 0
        return max(1, len(speed.sizes)) * (len(buckets(self.engine.slots, exact=not speed.graphs)) + 1)

    def _outcomes(self) -> list[str]:
        """The lines of the log that say what became of a part."""
        return [line.strip() for line in self.service.log if any(words in line for words in _OUTCOMES)]


def configured(bench: Bench, overrides: Mapping[str, str]) -> EngineConfig:
    """The engine's section with these settings. Raises SkippedError where this version has no such setting."""
    variables = {f"CONTOUR_{name}": value for name, value in overrides.items()}
    try:
        return load(ROOT / "configs" / f"{bench.shipped}.yaml", variables).engine
    except SettingsError as error:
        raise SkippedError(f"it cannot be configured: {error}") from error


def verdicts(bench: Bench, last: int) -> dict[str, Any]:
    """What the starts up to the last one say of each change."""
    starts = {name: [_rows(bench).get(f"{name}, start {n}", {}) for n in range(1, last + 1)] for name in CHANGES}
    ratios = {name: [row["ratio"] for row in found if "ratio" in row] for name, found in starts.items()}
    return {name: verdict(found) for name, found in ratios.items() if found}


def _rows(bench: Bench) -> Mapping[str, Any]:
    return bench.figures.get("settings", {})


def _first_image(bench: Bench, visible: str | None) -> dict[str, Any]:
    with Client.start(bench, {"ENGINE__SPEED__COMPILE": "false"}, visible) as client:
        shape = result_pixels(client.ask()).shape
        if shape != (bench.side, bench.side, 3):
            raise RuntimeError(f"the image is {shape}")
        bench.run_until_steady(client.post)
        images = summary(bench.repeat(client.post, _FEW))
        return client.started() | {"image": f"{shape[1]}x{shape[0]}", "images then": images}


def _one_client(bench: Bench, client: Client) -> dict[str, Any]:
    """Posts of one client, each after the last one's answer."""
    client.post()
    bench.run_until_steady(client.post)
    seconds = bench.repeat(client.post)
    return bench.rated_image(summary(seconds)) | percentiles(seconds)


def _closed_loop(bench: Bench, client: Client) -> dict[str, Any]:
    """Each client posts as soon as it has its answer."""
    clients = 2 * bench.slots

    def posts(_: int) -> list[float]:
        return bench.repeat(client.post)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: client.post(), range(clients)))  # other buckets' first images
        began = time.monotonic()
        seconds = [each for one in pool.map(posts, range(clients)) for each in one]
    rate = len(seconds) / (time.monotonic() - began)
    return summary(seconds) | percentiles(seconds) | {"clients": clients, "images/s": round(rate, 3)}


def _open_loop(bench: Bench, client: Client, share: float) -> dict[str, Any]:
    """Poisson arrivals at a share of the throughput that the closed loop found."""
    rate = share * bench.figures["load"]["closed loop"]["images/s"]
    loop = OpenLoop(client.service.url, _PATIENCE_S, request=client.request)
    outcomes = asyncio.run(loop.run(rate, max(bench.patience, _ARRIVALS / rate), lambda seconds: None))
    seconds = [outcome.seconds for outcome in outcomes if outcome.status == 200]
    counts = {"requests/s": round(rate, 3), "refused or lost": len(outcomes) - len(seconds)}
    return summary(seconds) | percentiles(seconds) | counts


def _size(bench: Bench, change: Change, width: int, height: int) -> dict[str, Any]:
    with Client.start(bench, change, size=(width, height)) as client:
        compiling = client.wait_until_compiled()
        bench.run_until_steady(client.post)
        return summary(bench.repeat(client.post)) | {"compiling": compiling} | client.in_use()


def _compared(bench: Bench, change: Change) -> dict[str, Any]:
    _prepare(bench, change)
    with Client.start(bench) as shipped, Client.start(bench, change) as changed:
        for client in (shipped, changed):
            client.wait_until_compiled()
        for client in (shipped, changed):
            client.post()
            bench.run_until_steady(client.post)
        found = in_turns(shipped.post, changed.post, max(1, bench.repeats // 3))
        return found | {"in use": {"ours": shipped.in_use(), "theirs": changed.in_use()}}


def _prepare(bench: Bench, change: Change) -> None:
    """Make what a change needs. Raises SkippedError where this machine lacks something."""
    if "TORCHINDUCTOR_ENABLE_PDL" in change and (
        not bench.cuda or torch.cuda.get_device_capability(bench.device) < (9, 0)
    ):
        raise SkippedError("it takes a GPU of compute capability 9.0")
    if change.get("ENGINE__RUNTIME") == "onnxruntime":
        _export(bench, "TensorrtExecutionProvider" if "ENGINE__ONNX_PROVIDER" in change else "CUDAExecutionProvider")


def _export(bench: Bench, provider: str) -> None:
    if find_spec("onnxruntime") is None:
        raise SkippedError("ONNX Runtime is not installed")
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise SkippedError(f"this ONNX Runtime has no {provider}")
    command = [sys.executable, "-m", "workers.convert", f"configs/{bench.shipped}.yaml", "--to", "onnx"]
    variables = surroundings(_visible(bench), **_settings(bench))
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SkippedError(f"no ONNX files: {done.stderr.strip()}")


def _started(bench: Bench, change: Change) -> dict[str, Any]:
    began = time.monotonic()
    with Client.start(bench, change) as client:
        first = milliseconds(client.post())
        result = client.started() | {"first image, ms": first, "at, s": round(time.monotonic() - began, 2)}
        compiling = client.wait_until_compiled()
        result |= {"compiling": compiling, "at full speed, s": round(time.monotonic() - began, 2)}
        return result | {"images then": summary([client.post() for _ in range(_STEADY)])}


def _settings(bench: Bench) -> dict[str, str]:
    """What a shipped configuration needs to make the benchmark's images, and to write in its folder alone."""
    settings = {
        "ENGINE__MODEL__PATH": str(bench.weights),
        "ENGINE__CONTROLNET__PATH": str(bench.weights / "controlnet"),
        "ENGINE__SAMPLER__STEPS": str(bench.steps),
        "ENGINE__SIZE__SHORT_SIDE": str(bench.config.size.short_side),
        "ENGINE__SIZE__LONG_SIDE": str(bench.config.size.long_side),
        "ENGINE__SLOTS": "1",
        "ENGINE__ONNX": str(bench.folder / "onnx"),
        "WORKERS__CACHE": str(bench.folder / "cache"),
        "WORKERS__THREADS": str(torch.get_num_threads()),
    }
    return settings if bench.cuda else settings | {"ENGINE__RUNTIME": "torch"}


def _visible(bench: Bench) -> str:
    return str(torch.device(bench.device).index or 0) if bench.cuda else ""


@contextmanager
def _explained(service: Service) -> Iterator[None]:
    """Add the end of the service's log to an error. Raises RuntimeError."""
    try:
        yield
    except Exception as error:
        log = "".join(service.log[-_LOG_LINES:])
        raise RuntimeError(f"{type(error).__name__}: {error}; the end of the service's log:\n{log}") from error


def _lost(service: Service) -> bool:
    """Whether a worker died, or the service itself: then it will not be ready as it should."""
    return service.process.poll() is not None or any(worker["restarts"] for worker in service.readiness()["workers"])
