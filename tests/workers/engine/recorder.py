"""A stand-in for a device that records works: it runs them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.engine.graphs import Recording, Work

RUNS = 3  # two before recording, and recording runs the host's side of the work once more


@dataclass
class FakeRecorder:
    """Raises what is in `failures`, one for each recording (None: it succeeds), then no more."""

    failures: list[Exception | None] = field(default_factory=list)
    size: int = 100
    pools: list[object] = field(default_factory=list)  # of each recording, in order
    concurrent: list[object] = field(default_factory=list)  # pools that were made for works beside others
    replays: int = 0
    synchronized: int = 0
    trimmed: int = 0
    broken: bool = False  # then no recording can be replayed

    def pool(self, *, concurrent: bool = False) -> object:
        made = object()
        if concurrent:
            self.concurrent.append(made)
        return made

    def record(self, work: Work, pool: object) -> Recording:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        for _ in range(RUNS):
            work()
        self.pools.append(pool)
        return Recording(lambda: self._replay(work), self.size)

    def synchronize(self) -> None:
        self.synchronized += 1

    def trim(self) -> None:
        self.trimmed += 1

    def _replay(self, work: Work) -> None:
        if self.broken:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.replays += 1
        work()


def recorder(failures: Iterable[Exception | None] = (), size: int = 100) -> FakeRecorder:
    """One that fails as told."""
    return FakeRecorder(list(failures), size)
