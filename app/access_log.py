"""The log line of each request. It holds nothing that the client sent, except the path."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.generator import GeneratedImage, Workload
from workers.logs import Record


@dataclass(frozen=True, slots=True)
class ConnectionErrorRecord(Record):
    """The log line of a connection that ended before a whole request had arrived."""

    status: int
    outcome: str
    reason: str
    client: str

    def __str__(self) -> str:
        return f"{self.status} {self.outcome}: {self.reason} Client {self.client}"

    @property
    def fields(self) -> dict[str, Any]:
        return {"status": self.status, "outcome": self.outcome, "reason": self.reason, "client": self.client}


@dataclass(frozen=True, slots=True)
class RequestRecord(Record):
    """The log line of a request. `began` is by time.perf_counter; `routed`: the path is one of ours.

    `reason` says why the request was refused, without quoting what the client sent.
    """

    request: str
    method: str
    path: str
    routed: bool
    status: int
    outcome: str
    client: str
    began: float
    seconds: float
    images: Sequence[GeneratedImage]
    workload: Workload | None = None
    reason: str = ""
    trace: str = ""

    def __str__(self) -> str:
        text = f"{self.request} {self.method} {self.path} {self.status} {self.outcome} {_ms(self.seconds)} ms"
        if self.client:
            text += f", client {self.client}"
        if self.workload is not None:
            text += f", {self.workload}"
        if self.reason:
            text += f": {self.reason}"
        for number, image in enumerate(self.images):
            which = f", image {number} by" if len(self.images) > 1 else ", by"
            stages = "".join(f" {stage} {_ms(seconds)}" for stage, seconds in image.stages.items())
            text += f"{which} {image.worker}:{stages}"
        return text

    @property
    def fields(self) -> dict[str, Any]:
        fields = {
            "request": self.request,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "client": self.client,
            "ms": _ms(self.seconds),
            "stages": [_fields(image) for image in self.images],
        }
        if self.workload is not None:
            fields |= asdict(self.workload)
        return fields | {name: value for name in ("reason", "trace") if (value := getattr(self, name))}


def _fields(image: GeneratedImage) -> dict[str, Any]:
    return {"worker": image.worker, **{stage: _ms(seconds) for stage, seconds in image.stages.items()}}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)
