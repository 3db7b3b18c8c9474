"""What is written down of a request when it has been answered. It holds nothing that the client sent but its path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.making import Picture
from workers.logs import Record


@dataclass(frozen=True, slots=True)
class Line(Record):
    """A request's line in the log. `began` is a moment of time.perf_counter; `routed`: its path is one of ours."""

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
    trace: str = ""

    def __str__(self) -> str:
        said = f"{self.request} {self.method} {self.path} {self.status} {self.outcome} {_ms(self.seconds)} ms"
        if self.client:
            said += f", client {self.client}"
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
        return told | {"trace": self.trace} if self.trace else told


def _fields(picture: Picture) -> dict[str, Any]:
    return {"worker": picture.worker, **{stage: _ms(seconds) for stage, seconds in picture.stages.items()}}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)
