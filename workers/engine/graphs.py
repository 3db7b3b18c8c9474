"""CUDA graphs: what the device does again and again is recorded once and replayed, without a launch for each kernel.

A work that is recorded reads and writes memory that stays where it is, allocates from a pool, and asks the host
nothing. Works that share a pool share its memory: they must run one after the other, on one stream.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeAlias

import torch

log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]
_REHEARSALS = 2  # before recording: libraries choose kernels and allocate their workspaces at the first


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
        """Run a work a few times, and record it. Raises torch.OutOfMemoryError; RuntimeError where it cannot be."""

    def settle(self) -> None:
        """Wait for all that the device was told: then nothing that is dropped is still in use."""

    def trim(self) -> None:
        """Give the device memory that nothing uses any more."""


@dataclass(frozen=True, eq=False, slots=True)
class _CudaPool:
    """A pool, and the stream on which its works are recorded."""

    handle: Any
    stream: torch.cuda.Stream


class CudaRecorder:
    """Records CUDA graphs on two streams of its own.

    Two, because torch keeps a workspace of cuBLAS for each stream, and a graph goes on using the one of the stream that
    it was recorded on, wherever it is replayed. So graphs that run at the same time must come from different ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream, self._stream_aside = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pool(self, *, aside: bool = False) -> _CudaPool:
        """A new pool of memory; `aside`: for works that are replayed beside those of other pools."""
        return _CudaPool(torch.cuda.graph_pool_handle(), self._stream_aside if aside else self._stream)

    def record(self, work: Work, pool: object) -> Recording:
        """Rehearse on the pool's recording stream, then record."""
        assert isinstance(pool, _CudaPool)
        self.settle()
        with torch.cuda.stream(pool.stream):
            for _ in range(_REHEARSALS):
                work()
        self.settle()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls are watched: others may allocate meanwhile.
            with torch.cuda.graph(graph, pool.handle, pool.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            self._end_allocating(pool)
            if isinstance(error.__context__, torch.OutOfMemoryError):  # that the recording broke off is not the cause
                raise error.__context__ from error
            raise
        return Recording(graph.replay, torch.cuda.memory_reserved(self._device) - before)

    def _end_allocating(self, pool: _CudaPool) -> None:
        """Tell torch's allocator that a recording is over: one that broke off in CUDA itself did not get so far, and
        the allocator would take it for going on."""
        with suppress(RuntimeError):  # it knows already
            torch._C._cuda_endAllocateToPool(self._device.index or 0, pool.handle)  # noqa: SLF001

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        """Empty torch's cache."""
        torch.cuda.empty_cache()


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


class Graphs:
    """The graphs of some works that share a pool, by key."""

    def __init__(self, studio: Studio, pool: object | None = None) -> None:
        self._studio = studio
        self._pool = pool
        self._recordings: dict[Hashable, Recording] = {}
        self._hopeless: set[Hashable] = set()

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

    def make_room(self) -> bool:
        """Drop what can be done without; False when there is nothing."""
        return self._studio.make_room()

    def of(self, key: Hashable, work: Work, rehearsal: Work = lambda: None) -> Work:
        """What does the work fastest: its graph, recorded at first use, or the work itself where that is not possible.

        Recording runs the work a few times; `rehearsal` is called before, to see that this harms nothing.
        """
        if key not in self._recordings and key not in self._hopeless:
            self._try_to_record(key, work, rehearsal)
        recording = self._recordings.get(key)
        return work if recording is None else recording.replay

    def drop(self, key: Hashable) -> None:
        """Forget a graph, and that it could not be recorded: its work has changed."""
        self._hopeless.discard(key)
        if key in self._recordings and self._studio.recorder is not None:
            self._studio.recorder.settle()  # it may be running
        self._recordings.pop(key, None)

    def _try_to_record(self, key: Hashable, work: Work, rehearsal: Work) -> None:
        recorder = self._studio.recorder
        # Networks are being compiled: this time the work runs as it is, and the next time is another chance.
        if recorder is None or not self._studio.turn.acquire(blocking=False):
            return
        try:
            rehearsal()
            self._recordings[key] = self._record(recorder, work)
        except torch.OutOfMemoryError as error:
            self._hopeless.add(key)
            self._studio.fallbacks.note("graph: out of memory", f"{key} runs without: {_first_line(error)}")
        except RuntimeError as error:
            self._hopeless.add(key)
            self._studio.fallbacks.note("graph: not recordable", f"{key} runs without: {_first_line(error)}")
        finally:
            self._studio.turn.release()

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


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
