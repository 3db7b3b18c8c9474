"""torch.cuda's recording of graphs without CUDA, with what torch 2.10 leaves behind where a recording breaks off.

Each of its parts does to its state what torch's sources do, and raises where they raise: CUDAGraph::capture_begin and
capture_end (aten/src/ATen/cuda/CUDAGraph.cpp), CachingHostAllocator (begin_allocate_to_pool), CUDAGeneratorState
(capturing_), torch.cuda.graph and torch.cuda.stream (torch/cuda/graphs.py, torch/cuda/__init__.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

Work = Callable[[], object]


@dataclass(eq=False)
class Stream:
    name: str
    capturing: "Graph | None" = None
    broken: bool = False  # the recording on it: CUDA refuses to end it well


@dataclass
class Cuda:
    """The state of torch and CUDA. `stuck`: ending a broken recording does not even free its stream."""

    stuck: bool = False
    streams: list[Stream] = field(default_factory=lambda: [Stream("default")])
    current: Stream = field(init=False)
    handles: int = 0
    device_pools: set[int] = field(default_factory=set)  # which allocators take for being recorded into
    host_pools: set[int] = field(default_factory=set)
    generator_captures: bool = False
    captured: list["Graph"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = self.streams[0]

    def break_off(self) -> None:
        """As a call does that is not permitted while a stream is recorded."""
        if self.current.capturing is not None:
            self.current.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def stream(self, *_: object) -> Stream:
        self.streams.append(Stream(f"stream {len(self.streams)}"))
        return self.streams[-1]

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    def end_allocating(self, device: int, pool: int) -> None:
        if pool not in self.device_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.device_pools.remove(pool)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in the place of torch.cuda."""
        stand_ins: dict[str, Any] = {
            "Stream": self.stream,
            "stream": self.on,
            "set_stream": self.set_stream,
            "graph_pool_handle": self.handle,
            "is_current_stream_capturing": lambda: self.current.capturing is not None,
            "CUDAGraph": partial(Graph, self),
            "graph": Capture,
            "synchronize": lambda device: self.break_off(),
            "empty_cache": lambda: None,
            "memory_reserved": lambda device: 0,
        }
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        zeros = torch.zeros
        patch.setattr(torch, "zeros", lambda size, device: zeros(size))


class Graph:
    """CUDAGraph."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.handle = 0
        self.ended = False
        self.works: list[Work] = []

    def capture_begin(self, pool: int, **_: object) -> None:
        cuda = self.cuda
        self.handle = pool
        cuda.generator_captures = True  # capture_prologue
        for pools in (cuda.device_pools, cuda.host_pools):
            if pool in pools:
                raise RuntimeError(f"beginAllocateToPool: already recording to mempool_id {pool}")
            pools.add(pool)
        cuda.current.capturing = self

    def capture_end(self) -> None:
        stream = self.cuda.current
        if stream.capturing is not self:
            raise RuntimeError("Capture must end on the same stream it began on.")
        if stream.broken:
            if not self.cuda.stuck:
                stream.capturing, stream.broken = None, False
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        stream.capturing = None
        self.cuda.device_pools.remove(self.handle)
        self.cuda.host_pools.remove(self.handle)
        self.cuda.generator_captures = False  # capture_epilogue
        self.ended = True
        self.cuda.captured.append(self)

    def pool(self) -> int:
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self.handle

    def reset(self) -> None:
        self.ended = False

    def replay(self) -> None:
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if self.cuda.generator_captures:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")


class Capture:
    """torch.cuda.graph: where capture_end raises, it does not come back from its stream."""

    def __init__(self, graph: Graph, pool: int, stream: Stream, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.graph, self.handle, self.stream = graph, pool, stream

    def __enter__(self) -> None:
        self.before, self.graph.cuda.current = self.graph.cuda.current, self.stream
        self.graph.capture_begin(self.handle)

    def __exit__(self, *_: object) -> None:
        self.graph.capture_end()
        self.graph.cuda.current = self.before
