"""CUDA graphs: what the device does again and again is recorded once and replayed, without a launch for each kernel.

A work that is recorded reads and writes memory that stays where it is, allocates from a pool, and asks the host
nothing. Works that share a pool share its memory: they must run one after the other, on one stream.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Protocol, TypeAlias

import torch

from workers.engine.trials import GRAPHS, Trials

log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]
_REHEARSALS = 2  # before recording: libraries choose kernels and allocate their workspaces at the first
_MOST_LOST_POOLS = 8  # each keeps its memory until the process ends


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

        Then the pool can be used for other works, and what was recorded in it before can be replayed.
        """

    def settle(self) -> None:
        """Wait for all that the device was told: then nothing that is dropped is still in use."""

    def trim(self) -> None:
        """Give the device memory that nothing uses any more."""


@dataclass(eq=False, slots=True)
class _CudaPool:
    """A pool by torch's handle, which is another after a recording has broken off. `aside`: as in `Recorder.pool`."""

    handle: Any
    aside: bool


class CudaRecorder:
    """Records CUDA graphs on two streams of its own.

    Two, because torch keeps a workspace of cuBLAS for each stream, and a graph goes on using the one of the stream that
    it was recorded on, wherever it is replayed. So graphs that run at the same time must come from different ones.

    A recording that breaks off in CUDA leaves much behind. `torch.cuda.graph` stays on the recording stream. Both of
    torch's allocators take the recording for going on: that of the device can be told otherwise, that of pinned memory
    refuses every further recording in this pool. And so does the generator of random numbers, which then fails every
    replay of every graph, until some recording has ended well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {aside: torch.cuda.Stream(device) for aside in (False, True)}
        self._lost: list[torch.cuda.CUDAGraph] = []  # kept, as the allocator of pinned memory may ask them

    def pool(self, *, aside: bool = False) -> _CudaPool:
        """A new pool of memory; `aside`: for works that are replayed beside those of other pools."""
        return _CudaPool(torch.cuda.graph_pool_handle(), aside)

    def record(self, work: Work, pool: object) -> Recording:
        """Rehearse on the pool's recording stream, then record."""
        assert isinstance(pool, _CudaPool)
        if len(self._lost) >= _MOST_LOST_POOLS:
            raise RuntimeError(f"{_MOST_LOST_POOLS} recordings have broken off, so nothing more is recorded")
        self.settle()
        stream = self._streams[pool.aside]
        with torch.cuda.stream(stream):  # comes back to the present stream even where torch.cuda.graph does not
            for _ in range(_REHEARSALS):
                work()
            self.settle()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self._device)
            graph = torch.cuda.CUDAGraph()
            try:
                self._capture(graph, work, pool)
            except BaseException as error:
                torch.cuda.set_stream(stream)
                self._clean_up_after(graph, pool)
                if isinstance(error.__context__, torch.OutOfMemoryError):  # that the recording broke off is its effect
                    raise error.__context__ from error
                raise
        return Recording(graph.replay, torch.cuda.memory_reserved(self._device) - before)

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work, pool: _CudaPool) -> None:
        # Only this thread's calls are watched: others may allocate meanwhile.
        with torch.cuda.graph(graph, pool.handle, self._streams[pool.aside], capture_error_mode="thread_local"):
            work()

    def _clean_up_after(self, graph: torch.cuda.CUDAGraph, pool: _CudaPool) -> None:
        """Make a pool usable after a recording in it has failed, with the recording stream as the current one."""
        if torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):
                graph.capture_end()
        ended_well = _has_ended(graph)
        with suppress(RuntimeError):
            graph.reset()
        if ended_well:  # the work has failed, and CUDA has not: torch has put everything in order
            return
        with suppress(RuntimeError):  # this allocator may know already
            torch._C._cuda_endAllocateToPool(self._device.index or 0, pool.handle)  # noqa: SLF001
        self._lost.append(graph)
        if torch.cuda.is_current_stream_capturing():  # it cannot be helped
            self._streams[pool.aside] = torch.cuda.Stream(self._device)
        # What was recorded in the old pool keeps that one alive, and can be replayed.
        pool.handle = torch.cuda.graph_pool_handle()
        trifle = torch.cuda.CUDAGraph()
        self._capture(trifle, partial(torch.zeros, 1, device=self._device), pool)
        trifle.reset()

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        """Empty torch's cache."""
        torch.cuda.empty_cache()


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    try:
        graph.pool()  # only a recording that has ended tells
    except RuntimeError:
        return False
    return True


def recorder_for(device: torch.device) -> Recorder | None:
    """What records works on a device; None where they are run as they are."""
    return CudaRecorder(device) if device.type == "cuda" else None


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


class Graphs:
    """The graphs of some works that share a pool, by key."""

    def __init__(self, studio: Studio, pool: object | None = None) -> None:
        self._studio = studio
        self._pool = pool
        self._recordings: dict[Hashable, Recording] = {}
        self._hopeless: set[Hashable] = set()
        self._delayed: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._recordings)

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
        if self._pool is None:
            self._pool = recorder.pool()
        try:
            return recorder.record(work, self._pool)
        except torch.OutOfMemoryError:
            recorder.trim()
            if not self._studio.make_room():
                raise
        return recorder.record(work, self._pool)


def first_line(error: BaseException) -> str:
    """What an error says first, and its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__
