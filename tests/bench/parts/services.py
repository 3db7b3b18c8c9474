"""The real service as a process, spoken to through HTTP: what a client waits for, and from start to full speed."""

import base64
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import torch

from tests.bench.parts.bench import CONFIGS, TEXT, Bench, Row, milliseconds, summary
from tests.service.running import ROOT, Service, png, until
from tests.workers.engine.demo import of_transformers
from workers.engine.config import EngineConfig
from workers.engine.execution import buckets

COMPILE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # variables that name folders
_CLIENTS = 8
_PATIENCE_S = 900.0  # for a worker to be ready, and for one answer
_COMPILE_S = 1500.0
_BETWEEN_S = 1.0  # two posts while networks are compiled: on a CPU, more would leave the compiler nothing
_STEADY = 3  # images in a row


def http(bench: Bench) -> Iterator[Row]:
    """Posts of one client after another's answer, and of eight at once; CUDA_VISIBLE_DEVICES set, and unset."""
    with weights(bench) as folder:
        visible, hidden = ("0", None) if bench.cuda else ("", None)
        overrides = _overrides(bench, folder) | {"ENGINE__SLOTS": _CLIENTS, "ENGINE__SPEED__COMPILE": "false"}
        with _Client.start(bench, visible, overrides) as client:
            yield f"CUDA_VISIBLE_DEVICES={visible}", {"devices": client.devices()}
            yield "one client", _one_after_another(bench, client)
            yield f"{_CLIENTS} clients", _at_once(bench, client)
        with _Client.start(bench, hidden, overrides) as client:
            client.post()
            yield "CUDA_VISIBLE_DEVICES unset", {"devices": client.devices()}
        if bench.cuda and not bench.quick:
            with _Client.start(bench, visible, overrides | {"ENGINE__SPEED__COMPILE": "true"}) as client:
                yield "compiled", {"until all was compiled, s": client.wait_for_compiling(bench, _CLIENTS)}
                yield "compiled, one client", _one_after_another(bench, client)
                yield f"compiled, {_CLIENTS} clients", _at_once(bench, client)


def startup(bench: Bench) -> Iterator[Row]:
    """From the start of the process to its port, the first image and full speed, without and with a compile cache.

    The weights were written just before: they are read from memory, not from a disk.
    """
    with weights(bench) as folder, tempfile.TemporaryDirectory() as cache:
        overrides = _overrides(bench, folder) | {"ENGINE__SLOTS": 1, "WORKERS__CACHE": cache}
        yield "not compiling", _started(bench, overrides | {"ENGINE__SPEED__COMPILE": "false"}, compiling=False)
        if bench.quick:
            return
        for name in ("compiling, empty cache", "compiling, cache of the last start"):
            yield name, _started(bench, overrides | {"ENGINE__SPEED__COMPILE": "true"}, compiling=True)


def _started(bench: Bench, overrides: dict[str, object], *, compiling: bool) -> dict[str, Any]:
    began = time.monotonic()
    with _Client.start(bench, "0" if bench.cuda else "", overrides) as client:
        result: dict[str, Any] = {
            "port bound, s": client.bound,
            "ready, s": client.ready,
            "first image, ms": milliseconds(client.post()),
            "first image, s after the start": round(time.monotonic() - began, 2),
        }
        while_compiling = list[float]()
        if compiling:
            client.wait_for_compiling(bench, 1, while_compiling)
            result["all compiled, s after the start"] = round(time.monotonic() - began, 2)
            result["images until then"] = summary(while_compiling) if while_compiling else None
        result["images then"] = summary([client.post() for _ in range(_STEADY)])
        return result


@dataclass(frozen=True, eq=False)
class _Client:
    """One service that is ready, and what it takes to speak to it. `bound` and `ready` in seconds after its start."""

    service: Service
    http: httpx.Client
    body: dict[str, object]
    seeds: "itertools.count[int]"
    bound: float
    ready: float

    @classmethod
    @contextmanager
    def start(cls, bench: Bench, devices: str | None, overrides: dict[str, object]) -> Iterator["_Client"]:
        began = time.monotonic()
        with _own_caches(), Service(CONFIGS[bench.model], devices, **overrides) as service:
            bound = time.monotonic() - began
            until(lambda: bool(service.readiness()["ready"]) or _lost(service), min(bench.left, _PATIENCE_S))
            ready = time.monotonic() - began
            if _lost(service):
                raise RuntimeError(f"the worker was lost at its start: {service.readiness()['workers']}")
            image = base64.b64encode(png(bench.side, bench.side)).decode()
            body = {"request_id": 1, "text": TEXT, "input_image_base64": image}
            with httpx.Client(base_url=service.url, timeout=_PATIENCE_S) as http:
                yield cls(service, http, body, itertools.count(), round(bound, 2), round(ready, 2))

    def post(self) -> float:
        """Have an image made, of a new prompt; the seconds from request to answer."""
        number = next(self.seeds)
        body = self.body | {"random_seed": number, "text": f"{TEXT}, {number}"}
        began = time.perf_counter()
        answer = self.http.post("/generation/", json=body)
        seconds = time.perf_counter() - began
        if answer.status_code != 200:
            raise RuntimeError(f"the service answered {answer.status_code}: {answer.text}")
        return seconds

    def devices(self) -> list[str]:
        """The devices of the workers that are ready."""
        workers = self.service.readiness()["workers"]
        return [str(worker["device"]) for worker in workers if worker["state"] == "ready"]

    def wait_for_compiling(self, bench: Bench, slots: int, seconds: list[float] | None = None) -> float:
        """Seconds until all is compiled. Images are made meanwhile; a list takes their seconds."""
        began = time.monotonic()
        patience = min(bench.left, _COMPILE_S)
        wanted = len(buckets(slots, exact=not bench.cuda)) + 1  # and the VAE
        while (compiled := self._logged(" compiled in ")) < wanted:
            if self._logged("compile: failed"):
                raise RuntimeError("compiling failed: " + next(line for line in self.service.log if "failed" in line))
            if time.monotonic() - began > patience:
                raise TimeoutError(f"{compiled} of {wanted} parts were compiled in {patience:.0f} s")
            spent = self.post()
            if seconds is not None:
                seconds.append(spent)
            time.sleep(_BETWEEN_S)
        return round(time.monotonic() - began, 2)

    def _logged(self, words: str) -> int:
        return sum(words in line for line in self.service.log)


def _one_after_another(bench: Bench, client: _Client) -> dict[str, Any]:
    client.post()
    began = time.monotonic()
    seconds = [client.post()]
    while len(seconds) < 2 * bench.repeats and time.monotonic() - began < bench.patience:
        seconds.append(client.post())
    p95 = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return bench.rated(summary(seconds), bench.image_flops) | {"p95": milliseconds(p95)}


def _at_once(bench: Bench, client: _Client) -> dict[str, Any]:
    """Each of the clients posts as soon as it has its answer."""

    def posts(_: int) -> list[float]:
        seconds = [client.post()]
        while time.monotonic() - began < bench.patience and len(seconds) < bench.repeats:
            seconds.append(client.post())
        return seconds

    began = time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        seconds = [each for one in clients.map(posts, range(_CLIENTS)) for each in one]
    return summary(seconds) | {"images/s": round(len(seconds) / (time.monotonic() - began), 3)}


@contextmanager
def weights(bench: Bench) -> Iterator[Path]:
    """The model's weights in a folder, as a configuration names it."""
    if bench.model == "demo":
        yield ROOT / "configs" / "demo"
        return
    parts = bench.fresh_parts()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("unet", "controlnet", "vae", "text_encoder"):
            getattr(parts, name).save_pretrained(Path(folder) / name)
        of_transformers(parts.tokenizer).save_pretrained(Path(folder) / "tokenizer")
        scheduler = Path(folder) / "scheduler"
        scheduler.mkdir()
        (scheduler / "scheduler_config.json").write_text(json.dumps(parts.scheduler))
        del parts
        bench.tidy()
        yield Path(folder)


def _overrides(bench: Bench, folder: Path) -> dict[str, object]:
    """What a shipped configuration needs to make the benchmark's images with the weights in a folder."""
    config: EngineConfig = bench.config
    return {
        "ENGINE__MODEL__PATH": folder,
        "ENGINE__CONTROLNET__PATH": folder / "controlnet",
        "ENGINE__SAMPLER__STEPS": bench.steps,
        "ENGINE__SIZE__SHORT_SIDE": config.size.short_side,
        "ENGINE__SIZE__LONG_SIDE": config.size.long_side,
        "WORKERS__THREADS": torch.get_num_threads(),
    }


@contextmanager
def _own_caches() -> Iterator[None]:
    """Let a worker keep what it compiles where its configuration says, over which these variables would go."""
    with patch.dict(os.environ):
        for name in COMPILE_CACHES:
            os.environ.pop(name, None)
        yield


def _lost(service: Service) -> bool:
    """Whether a worker died, or the service itself: then it will not be ready as it should."""
    return service.process.poll() is not None or any(worker["restarts"] for worker in service.readiness()["workers"])
