"""CUDA graphs: work that the device repeats is recorded once and then replayed with a single launch.

A step launches hundreds of kernels, each for some microseconds of the CPU's time; a small batch runs faster than that.
A graph replays all of them at once. The price is that everything in it is fixed: shapes, kernels and addresses. So
recorded work reads its inputs from buffers that never move, writes its results into such buffers, and never waits for
the device. Memory for intermediate results comes from a pool that belongs to the graph.

Example: a batch of two steps at 512 x 512. `graphs.of(2, step)` finds no recording for key 2, so it runs `step` a few
times, on padding, to let libraries choose kernels and allocate, then records it. It returns the replay, and every
later step of two images is one launch that reads who takes part from an index tensor. Decoding uses another key and
another pool: graphs that share a pool reuse each other's memory, so they must run one after the other, on one stream,
while the VAE runs beside the steps.

Recording can fail: for lack of memory, or because some kernel cannot be recorded. Then the work runs without a graph:
slower, counted in `Fallbacks`, and not tried again. A graph that fails when replayed is dropped the same way.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any, Protocol, TypeAlias

import torch

from workers.engine.trials import GRAPHS, Trials

log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]

_WARMUP_RUNS = 2  # before recording: at the first, libraries choose kernels and allocate their workspaces
_MOST_LOST_POOLS = 8  # each keeps its memory until the process ends


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """Recorded work, and the bytes by which its pool grew."""

    replay: Work
    size: int


class Recorder(Protocol):
    """Records work on a device. Tests replace it."""

    def pool(self, *, concurrent: bool = False) -> object:
        """A new pool of memory; `concurrent`: its graphs run beside those of other pools."""

    def record(self, work: Work, pool: object) -> Recording:
        """Run work a few times, then record it.

        Raises torch.OutOfMemoryError, and whatever else goes wrong. After an error nothing more may be recorded in the
        pool, but its earlier recordings can be replayed.
        """

    def synchronize(self) -> None:
        """Wait for the device, so that nothing that is dropped next is still in use."""

    def trim(self) -> None:
        """Return unused memory to the device."""


class Fallbacks:
    """Counts and logs each time that a faster way failed and a slower one was taken."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def note(self, reason: str, detail: object) -> None:
        """Count one. `reason` is a metric's label, so one of a few; `detail` goes to the log."""
        self._times[reason] += 1
        log.warning("%s: %s", reason, detail)

    def counts(self) -> tuple[tuple[str, int], ...]:
        """(reason, times), by reason."""
        return tuple(sorted(self._times.items()))


@dataclass(frozen=True, slots=True)
class GraphContext:
    """The parts that all graphs of an engine share. `recorder` is None where work runs without graphs.

    `lock` is held while graphs are recorded or networks compiled, as either disturbs the other. `make_room` drops
    idle workspaces and returns whether there were any.
    """

    recorder: Recorder | None
    fallbacks: Fallbacks
    make_room: Callable[[], bool]
    lock: Lock
    trials: Trials = field(default_factory=Trials)


class Pool:
    """Memory that graphs share. `concurrent`: as in `Recorder.pool`.

    A failed recording replaces the recorder's pool, as torch may refuse to record in it again. Earlier graphs keep the
    old one alive.
    """

    def __init__(self, *, concurrent: bool = False) -> None:
        self._concurrent = concurrent
        self._made: object | None = None

    def record(self, recorder: Recorder, work: Work) -> Recording:
        """Record work. Raises what the recorder raises."""
        if self._made is None:
            self._made = recorder.pool(concurrent=self._concurrent)
        try:
            return recorder.record(work, self._made)
        except BaseException:
            self._made = recorder.pool(concurrent=self._concurrent)
            raise


class Graphs:
    """Graphs by key that share a pool, such as one for each bucket of a batch."""

    def __init__(self, context: GraphContext, pool: Pool | None = None) -> None:
        self._context = context
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
        return self._context.fallbacks

    @property
    def trials(self) -> Trials:
        return self._context.trials

    @property
    def recorded(self) -> bool:
        """Whether work is recorded, if possible."""
        return self._context.recorder is not None

    def make_room(self) -> bool:
        return self._context.make_room()

    def of(self, key: Hashable, work: Work, before_recording: Work = lambda: None, to_blame: str = GRAPHS) -> Work:
        """The fastest way to do the work: its graph, recorded at first use, or the work itself if that fails.

        Recording runs the work a few times: `before_recording` must see to it that this harms no image. A graph that
        fails when replayed is dropped, and the work is done instead; if the device has failed, `to_blame` is the trial
        that the next process does without.
        """
        if key not in self._recordings and key not in self._hopeless:
            self._try_to_record(key, work, before_recording)
        recording = self._recordings.get(key)
        return work if recording is None else partial(self._replay, recording, key, work, to_blame)

    def replace(self, key: Hashable, work: Work, before_recording: Work, worth_it: Callable[[Work], bool]) -> bool:
        """Record other work under a key, and replay it once; only then drop the present graph.

        `worth_it` is passed what would run from now on. If it returns False, nothing is changed, and False returned.
        Raises whatever goes wrong, and then has changed nothing.
        """
        recorder = self._context.recorder
        with self._context.lock:
            before_recording()
            if recorder is None:
                return worth_it(work)
            recording = self._record(recorder, work)
            recording.replay()
            recorder.synchronize()  # to see errors of the device; and the present graph may be running
            taken = worth_it(recording.replay)
        if taken:
            before = self._recordings.get(key)  # whose memory stays in the pool
            self._recordings[key] = replace(recording, size=recording.size + (before.size if before else 0))
        return taken

    def drop(self, key: Hashable) -> None:
        """Forget a graph, or that it could not be recorded, as its work has changed."""
        self._hopeless.discard(key)
        if key in self._recordings and self._context.recorder is not None:
            self._context.recorder.synchronize()  # the graph may be running
        self._recordings.pop(key, None)

    def _replay(self, recording: Recording, key: Hashable, work: Work, to_blame: str) -> None:
        try:
            recording.replay()
        except Exception as error:  # noqa: BLE001 - whatever it is, the work can run without a graph
            with self.trials.of(to_blame):
                self.drop(key)
                self._give_up(key, "graph: not replayed", error)
                work()

    def _give_up(self, key: Hashable, reason: str, error: Exception) -> None:
        self._hopeless.add(key)
        self._context.fallbacks.note(reason, f"{key} runs without a graph: {first_line(error)}")

    def _try_to_record(self, key: Hashable, work: Work, before_recording: Work) -> None:
        recorder = self._context.recorder
        if recorder is None:
            return
        if not self._context.lock.acquire(blocking=False):
            self._note_delay(key)
            return
        try:
            with self.trials.of(GRAPHS):
                before_recording()
                self._recordings[key] = self._record(recorder, work)
        except torch.OutOfMemoryError as error:
            self._give_up(key, "graph: out of memory", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work can run without a graph
            self._give_up(key, "graph: not recordable", error)
        finally:
            self._context.lock.release()

    def _note_delay(self, key: Hashable) -> None:
        """Count once that the work runs without a graph until the compiler is done."""
        if key not in self._delayed:
            self._delayed.add(key)
            self._context.fallbacks.note("graph: waits for the compiler", f"{key} runs without a graph until then")

    def _record(self, recorder: Recorder, work: Work) -> Recording:
        try:
            return self._pool.record(recorder, work)
        except torch.OutOfMemoryError:
            recorder.trim()
            if not self._context.make_room():
                raise
        return self._pool.record(recorder, work)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


# ----------------------------------------------------------------------------------------------------------------- CUDA


@dataclass(frozen=True, eq=False, slots=True)
class _CudaPool:
    """A pool by torch's handle. `concurrent`: as in `Recorder.pool`."""

    handle: Any
    concurrent: bool


class CudaRecorder:
    """Records CUDA graphs on its own two streams.

    Two, because torch keeps a cuBLAS workspace per stream, and a graph goes on using the workspace of the stream that
    it was recorded on, wherever it is replayed. So graphs that run at the same time must come from different streams.

    A recording that fails within CUDA leaves much behind. `torch.cuda.graph` stays on the recording stream. Both of
    torch's allocators believe that the recording continues: the device's can be told otherwise, the one of pinned
    memory refuses every further recording in this pool. So does the random number generator, which then fails every
    replay of every graph, until some recording has ended well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {concurrent: torch.cuda.Stream(device) for concurrent in (False, True)}
        self._lost: list[torch.cuda.CUDAGraph] = []  # kept, as the allocator of pinned memory may still use them

    def pool(self, *, concurrent: bool = False) -> _CudaPool:
        """A new pool of memory; `concurrent`: its graphs run beside those of other pools."""
        return _CudaPool(torch.cuda.graph_pool_handle(), concurrent)

    def record(self, work: Work, pool: object) -> Recording:
        """Warm up on the pool's recording stream, then record."""
        assert isinstance(pool, _CudaPool)
        if len(self._lost) >= _MOST_LOST_POOLS:
            raise RuntimeError(f"{_MOST_LOST_POOLS} recordings have failed, so nothing more is recorded")
        self.synchronize()
        stream = self._streams[pool.concurrent]
        with torch.cuda.stream(stream):  # restores the current stream even where torch.cuda.graph does not
            for _ in range(_WARMUP_RUNS):
                work()
            self.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self._device)
            graph = torch.cuda.CUDAGraph()
            try:
                self._capture(graph, work, pool)
            except BaseException as error:
                torch.cuda.set_stream(stream)
                self._clean_up_after(graph, pool)
                if isinstance(error.__context__, torch.OutOfMemoryError):  # the cause of the failed recording
                    raise error.__context__ from error
                raise
        return Recording(graph.replay, torch.cuda.memory_reserved(self._device) - before)

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work, pool: _CudaPool) -> None:
        # Only this thread's calls are checked: others may allocate meanwhile.
        with torch.cuda.graph(graph, pool.handle, self._streams[pool.concurrent], capture_error_mode="thread_local"):
            work()

    def _clean_up_after(self, graph: torch.cuda.CUDAGraph, pool: _CudaPool) -> None:
        """Make torch able to record again after a failed recording, whose stream is the current one."""
        if torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):
                graph.capture_end()
        ended_well = _has_ended(graph)
        with suppress(RuntimeError):
            graph.reset()
        if ended_well:  # the work failed, not CUDA: torch has cleaned up
            return
        with suppress(RuntimeError, AttributeError):  # it may know already, and the function is private
            torch._C._cuda_endAllocateToPool(self._device.index or 0, pool.handle)  # noqa: SLF001
        self._lost.append(graph)
        if torch.cuda.is_current_stream_capturing():  # give that stream up
            self._streams[pool.concurrent] = torch.cuda.Stream(self._device)
        trifle = torch.cuda.CUDAGraph()
        self._capture(trifle, partial(torch.zeros, 1, device=self._device), self.pool(concurrent=pool.concurrent))
        trifle.reset()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        torch.cuda.empty_cache()


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    try:
        graph.pool()  # raises before a recording has ended
    except RuntimeError:
        return False
    return True


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder of a device; None for a CPU."""
    return CudaRecorder(device) if device.type == "cuda" else None
