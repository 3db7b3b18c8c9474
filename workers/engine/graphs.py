"""CUDA graphs: what the device does again and again is recorded once and replayed, without a launch for each kernel.

A work that is recorded reads and writes memory that stays where it is, allocates from a pool, and asks the host
nothing. Works that share a pool share its memory: they must run one after the other, on one stream.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Protocol, TypeAlias

import torch

from workers.engine.trials import GRAPHS, Trials

log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """A recorded work, and the bytes by which its pool grew for it."""

    replay: Work
    size: int


class Recorder(Protocol):
    """Records works on a device. The seam at which tests stand in for one."""

    def pool(self, *, aside: bool = False) -> object:
        """A new pool of memory; `aside`: for works that are replayed beside those of other pools."""

    def record(self, work: Work, pool: object) -> Recording:
        """Run a work a few times, and record it. Raises torch.OutOfMemoryError, and whatever else goes wrong.

        Then nothing more is to be recorded in the pool, but what was recorded in it before can be replayed.
        """

    def settle(self) -> None:
        """Wait for all that the device was told: then nothing that is dropped is still in use."""

    def trim(self) -> None:
        """Give the device memory that nothing uses any more."""


class Fallbacks:
    """Counts the times that a slower way was taken because the faster one failed, and logs each."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def note(self, reason: str, detail: object) -> None:
        """Enter one. `reason` is one of a few, for a metric; `detail` is for the log."""
        self._times[reason] += 1
        log.warning("%s: %s", reason, detail)

    def counts(self) -> tuple[tuple[str, int], ...]:
        """(reason, times), by reason."""
        return tuple(sorted(self._times.items()))


@dataclass(frozen=True, slots=True)
class Studio:
    """What all graphs of an engine share: the recorder, the turn to use it, and what to do without memory.

    `turn` is held while graphs are recorded or networks compiled: either may disturb the other. `make_room` drops what
    can be done without and says whether there was any.
    """

    recorder: Recorder | None
    fallbacks: Fallbacks
    make_room: Callable[[], bool]
    turn: Lock
    trials: Trials = field(default_factory=Trials)


class Pool:
    """Memory that graphs share. `aside`: as in `Recorder.pool`.

    After a recording in it has failed there is another in its place, as torch may refuse to record in the old one. The
    graphs that it has keep the old one alive.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self._aside = aside
        self._made: object | None = None

    def record(self, recorder: Recorder, work: Work) -> Recording:
        """Record a work. Raises what the recorder raises."""
        if self._made is None:
            self._made = recorder.pool(aside=self._aside)
        try:
            return recorder.record(work, self._made)
        except BaseException:
            self._made = recorder.pool(aside=self._aside)
            raise


class Graphs:
    """The graphs of some works that share a pool, by key."""

    def __init__(self, studio: Studio, pool: Pool | None = None) -> None:
        self._studio = studio
        self._pool = pool or Pool()
        self._recordings: dict[Hashable, Recording] = {}
        self._hopeless: set[Hashable] = set()
        self._delayed: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._recordings)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recordings

    @property
    def size(self) -> int:
        """Bytes of device memory by which the pool grew."""
        return sum(recording.size for recording in self._recordings.values())

    @property
    def fallbacks(self) -> Fallbacks:
        """Where to enter what had to be given up."""
        return self._studio.fallbacks

    @property
    def trials(self) -> Trials:
        """Where to tell what is tried."""
        return self._studio.trials

    def make_room(self) -> bool:
        """Drop what can be done without; False when there is nothing."""
        return self._studio.make_room()

    def of(self, key: Hashable, work: Work, rehearsal: Work = lambda: None) -> Work:
        """What does the work fastest: its graph, recorded at first use, or the work itself where that is not possible.

        Recording runs the work a few times; `rehearsal` is called before, to see that this harms nothing. A graph that
        fails is given up, and the work done instead.
        """
        if key not in self._recordings and key not in self._hopeless:
            self._try_to_record(key, work, rehearsal)
        recording = self._recordings.get(key)
        return work if recording is None else partial(self._replay, recording, key, work)

    def replace(self, key: Hashable, work: Work, rehearsal: Work) -> None:
        """Record the work that is to take another's place, and replay it once: only then is the other's graph dropped.

        Raises whatever goes wrong; nothing has changed then.
        """
        recorder = self._studio.recorder
        if recorder is None:
            return
        with self._studio.turn:
            rehearsal()
            recording = self._record(recorder, work)
            recording.replay()
            recorder.settle()  # for what goes wrong on the device; and the other one may be running
        self._recordings[key] = recording

    def drop(self, key: Hashable) -> None:
        """Forget a graph, and that it could not be recorded: its work has changed."""
        self._hopeless.discard(key)
        if key in self._recordings and self._studio.recorder is not None:
            self._studio.recorder.settle()  # it may be running
        self._recordings.pop(key, None)

    def _replay(self, recording: Recording, key: Hashable, work: Work) -> None:
        try:
            recording.replay()
        except Exception as error:  # noqa: BLE001 - whatever it is, the work may be done without
            with self.trials.of(GRAPHS):  # if the device has failed, this is why
                self.drop(key)
                self._give_up(key, "graph: not replayed", error)
                work()

    def _give_up(self, key: Hashable, reason: str, error: Exception) -> None:
        self._hopeless.add(key)
        self._studio.fallbacks.note(reason, f"{key} runs without: {first_line(error)}")

    def _try_to_record(self, key: Hashable, work: Work, rehearsal: Work) -> None:
        recorder = self._studio.recorder
        if recorder is None:
            return
        if not self._studio.turn.acquire(blocking=False):
            self._note_delay(key)
            return
        try:
            with self.trials.of(GRAPHS):
                rehearsal()
                self._recordings[key] = self._record(recorder, work)
        except torch.OutOfMemoryError as error:
            self._give_up(key, "graph: out of memory", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work may be done without
            self._give_up(key, "graph: not recordable", error)
        finally:
            self._studio.turn.release()

    def _note_delay(self, key: Hashable) -> None:
        """Networks are being compiled: until then the work runs as it is, which counts once."""
        if key not in self._delayed:
            self._delayed.add(key)
            self._studio.fallbacks.note("graph: waits for the compiler", f"{key} runs without until it has finished")

    def _record(self, recorder: Recorder, work: Work) -> Recording:
        try:
            return self._pool.record(recorder, work)
        except torch.OutOfMemoryError:
            recorder.trim()
            if not self._studio.make_room():
                raise
        return self._pool.record(recorder, work)


def first_line(error: BaseException) -> str:
    """What an error says first, and its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__
