"""Recording CUDA graphs, and what is left behind where a recording breaks off."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from workers.engine.graphs import Recorder, Recording, Work

_REHEARSALS = 2  # before recording: libraries choose kernels and allocate their workspaces at the first
_MOST_LOST_POOLS = 8  # each keeps its memory until the process ends


@dataclass(frozen=True, eq=False, slots=True)
class _CudaPool:
    """A pool by torch's handle. `aside`: as in `Recorder.pool`."""

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
        """Make torch able to record again after a recording has failed, with its stream as the current one."""
        if torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):
                graph.capture_end()
        ended_well = _has_ended(graph)
        with suppress(RuntimeError):
            graph.reset()
        if ended_well:  # the work has failed, and CUDA has not: torch has put everything in order
            return
        with suppress(RuntimeError, AttributeError):  # it may know already, and this is no public function
            torch._C._cuda_endAllocateToPool(self._device.index or 0, pool.handle)  # noqa: SLF001
        self._lost.append(graph)
        if torch.cuda.is_current_stream_capturing():  # it cannot be helped
            self._streams[pool.aside] = torch.cuda.Stream(self._device)
        trifle = torch.cuda.CUDAGraph()
        self._capture(trifle, partial(torch.zeros, 1, device=self._device), self.pool(aside=pool.aside))
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
