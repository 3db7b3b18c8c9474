"""The real service as a process, for tests: started, spoken to over sockets, killed."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import cv2
import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

ROOT = Path(__file__).parents[2]
CACHE = "TEST_CACHE"  # a variable: the folder that services have for a cache, if tests/conftest.py has made one
# Overrides of every service. The log for people, as it is they who read it when a test fails.
USUAL: dict[str, object] = {"SERVER__LOG_FORMAT": "human"}
PATIENCE = 180.0  # seconds, before a test gives something up: all is several times slower on a busy machine


class Service:
    """`python -m app` with a configuration and overrides, on a free port. `with` leaves nothing of it behind.

    `devices` is CUDA_VISIBLE_DEVICES: empty by default, which means CPU; None unsets it.
    """

    module = "app"

    def __init__(self, config: str, devices: str | None = "", /, **overrides: object) -> None:
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, "--config", f"configs/{config}.yaml", "--port", "0"],
            cwd=ROOT,
            env=surroundings(devices, **USUAL | overrides),
            stderr=subprocess.PIPE,
            encoding="utf-8",  # whatever the locale, which libraries change: unread, the log would stop the service
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            until(lambda: self._address() is not None or self.process.poll() is not None)
        except BaseException:  # also an interrupt: without a `with` yet, nobody else would end it
            self._end()
            raise
        if self._address() is None:
            self._end()
            raise AssertionError("".join(self.log))
        self.url = self._address() or ""
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._end()
        if error is not None:
            print("".join(self.log))  # for pytest, which shows it with the failure

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def wait_until_ready(self, workers: int = 1) -> "Service":
        """Return when so many workers are ready."""
        until(lambda: sum(worker["state"] == "ready" for worker in self.readiness()["workers"]) >= workers)
        return self

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz, whatever its status; and of each worker the id of its `process`, which it keeps back."""
        body: dict[str, Any] = self.client.get("/readyz").json()
        processes = named(self.descendants())
        for worker in body["workers"]:
            worker["process"] = processes.get(f"contour {worker['id']}"[:15])
        return body

    def generate(self, **fields: object) -> httpx.Response:
        """POST a good request, with some fields of it replaced."""
        return self.client.post("/generation/", json=good_request(**fields))

    def metrics(self) -> Mapping[str, Any]:
        """Families by name, as prometheus-client's own parser reads them."""
        text = self.client.get("/metrics").text
        return {family.name: family for family in text_string_to_metric_families(text)}

    def sample(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name whose labels include those given."""
        families = self.metrics().values()
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(float(sample.value) for sample in samples if labels.items() <= sample.labels.items())

    def descendants(self) -> set[int]:
        """Process ids of all processes that the service started, and that they started."""
        return descendants(self.process.pid)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Signal the server, wait until it has ended and its log is read; return its exit code."""
        self.process.send_signal(sig)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _address(self) -> str | None:
        found = re.search(r"Listening on (http://[\w.:\[\]]+)", "".join(self.log))
        return found and found.group(1)


def surroundings(devices: str | None = "", /, **overrides: object) -> dict[str, str]:
    """The environment of a process of ours: its devices, and settings that override a configuration's.

    Of the settings in the environment of the tests, it has only the cache of this run.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONTOUR_")}
    if CACHE in os.environ:
        environment["CONTOUR_WORKERS__CACHE"] = os.environ[CACHE]
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return environment | {f"CONTOUR_{name}": str(value) for name, value in overrides.items()}


def named(processes: Iterable[int]) -> dict[str, int]:
    """Process ids by the names that `ps` shows."""
    found = {}
    for process in processes:
        with suppress(OSError):  # it has ended meanwhile
            found[Path(f"/proc/{process}/comm").read_text().strip()] = process
    return found


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        time.sleep(0.02)


def good_request(**fields: object) -> dict[str, object]:
    """The body of a request that is answered with an image."""
    body = {"request_id": 7, "text": "a red circle on a blue background", "random_seed": 1234}
    return body | {"input_image_base64": encoded(png(64, 64))} | fields


def png(width: int, height: int) -> bytes:
    """An image of a bright square on a dark ground, as a file."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = 220
    return file_of(pixels)


def file_of(pixels: Pixels) -> bytes:
    """RGB pixels [height, width, 3] as a PNG."""
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def encoded(file: bytes) -> str:
    """A file in base64."""
    return base64.b64encode(file).decode()


def result_pixels(response: httpx.Response) -> Pixels:
    """The image in an answer, RGB [height, width, 3]."""
    assert response.status_code == 200, response.text
    return pixels_of(base64.b64decode(response.json()["output_image_base64"], validate=True))


def pixels_of(file: bytes) -> Pixels:
    """RGB [height, width, 3]."""
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return pixels.astype(np.uint8)


def descendants(root: int) -> set[int]:
    """All living processes below one, by /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {root}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
