"""Recording CUDA graphs, and cleaning up after a recording that fails."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from workers.engine.graphs import Recorder, Recording, Work

_WARMUP_RUNS = 2  # before recording: at the first, libraries choose kernels and allocate their workspaces
_MOST_LOST_POOLS = 8  # each keeps its memory until the process ends


@dataclass(frozen=True, eq=False, slots=True)
class _CudaPool:
    """A pool by torch's handle. `concurrent`: as in `Recorder.pool`."""

    handle: Any
    concurrent: bool


class CudaRecorder:
    """Records CUDA graphs on two streams of its own.

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
