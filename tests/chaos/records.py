"""The records of a run: requests, faults, and measurements."""

from collections.abc import Mapping
from dataclasses import dataclass, field

FOREVER = float("inf")


@dataclass(slots=True)
class Record:
    """A request, as its client saw it. Times in seconds since the start of the run.

    `outcome` is how it ended for the client; `counted` is what the server must have counted it as, None where only the
    server knows. `seconds` from the last byte sent to the head of the answer.
    """

    number: int
    kind: str
    life: int
    began: float
    patience: float
    ended: float = FOREVER
    outcome: str = "no answer"
    counted: str | None = None
    seconds: float | None = None
    name: str = ""
    detail: str = ""
    counts: bool = True

    def __str__(self) -> str:
        times = f"life {self.life}, {self.began:.2f} to {self.ended:.2f} s"
        return f"request {self.number} ({self.kind}, {times}, {self.name or 'unnamed'}): {self.outcome} {self.detail}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the service, from outside."""

    at: float
    kind: str
    life: int
    process: int | None = None


@dataclass(frozen=True, slots=True)
class Scrape:
    """What `/metrics` said between two moments."""

    asked: float
    answered: float
    requests: Mapping[str, int]
    losses: int
    retries: int


@dataclass(slots=True)
class Sheet:
    """Everything that a run wrote down."""

    requests: list[Record] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def progress(self) -> str:
        """How far it is, for people."""
        under_way = sum(record.ended == FOREVER for record in self.requests)
        return f"{len(self.requests)} requests, {under_way} of them under way, {len(self.faults)} faults from outside"
