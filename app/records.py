"""What is written down of a request when it has been answered. It holds nothing that the client sent but its path."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.making import Asked, Picture
from workers.logs import Record


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """A connection's line in the log, where no whole request came."""

    status: int
    outcome: str
    reason: str
    client: str

    def __str__(self) -> str:
        return f"{self.status} {self.outcome}: {self.reason} Client {self.client}"

    @property
    def fields(self) -> dict[str, Any]:
        """The same by name."""
        return {"status": self.status, "outcome": self.outcome, "reason": self.reason, "client": self.client}


@dataclass(frozen=True, slots=True)
class Line(Record):
    """A request's line in the log. `began` is a moment of time.perf_counter; `routed`: its path is one of ours.

    `reason`: why it was refused, without what the client sent.
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
    pictures: Sequence[Picture]
    asked: Asked | None = None
    reason: str = ""
    trace: str = ""

    def __str__(self) -> str:
        said = f"{self.request} {self.method} {self.path} {self.status} {self.outcome} {_ms(self.seconds)} ms"
        if self.client:
            said += f", client {self.client}"
        if self.asked is not None:
            said += f", {self.asked}"
        if self.reason:
            said += f": {self.reason}"
        for number, picture in enumerate(self.pictures):
            which = f", picture {number} by" if len(self.pictures) > 1 else ", by"
            stages = "".join(f" {stage} {_ms(seconds)}" for stage, seconds in picture.stages.items())
            said += f"{which} {picture.worker}:{stages}"
        return said

    @property
    def fields(self) -> dict[str, Any]:
        """The same by name, in milliseconds."""
        told = {
            "request": self.request,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "client": self.client,
            "ms": _ms(self.seconds),
            "pictures": [_fields(picture) for picture in self.pictures],
        }
        if self.asked is not None:
            told |= asdict(self.asked)
        return told | {name: value for name in ("reason", "trace") if (value := getattr(self, name))}


def _fields(picture: Picture) -> dict[str, Any]:
    return {"worker": picture.worker, **{stage: _ms(seconds) for stage, seconds in picture.stages.items()}}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)
