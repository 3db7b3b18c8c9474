"""Recordings that break off, on a stand-in for torch.cuda that keeps what torch keeps of them."""

from collections.abc import Callable
from threading import Lock

import pytest
import torch

from tests.workers.engine.fake_capture import Cuda
from workers.engine.graphs import _MOST_LOST_POOLS, CudaRecorder, Fallbacks, GraphContext, Graphs, Pool

DEVICE = torch.device("cuda:0")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture(params=[False, True], ids=["", "stuck"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda(stuck=request.param)
    made.install(monkeypatch)
    return made


def context(make_room: Callable[[], bool] = lambda: False) -> GraphContext:
    return GraphContext(CudaRecorder(DEVICE), Fallbacks(), make_room, Lock())


def nothing() -> None: ...


def test_a_recording_that_breaks_off_costs_that_work_its_graph_and_no_other(cuda: Cuda) -> None:
    shared = context()
    pool = Pool()
    steps, text = Graphs(shared, pool), Graphs(shared, pool)
    before = steps.of(4, nothing)
    assert steps.of(2, cuda.break_off) == cuda.break_off
    assert cuda.current.name == "default"
    assert cuda.current.capturing is None
    before()  # what was recorded in the pool is as good as before
    after = [steps.of(1, nothing), text.of("text", nothing)]
    for replay in after:
        replay()
    assert (len(steps), len(text)) == (2, 1)
    assert shared.fallbacks.counts() == (("graph: not recordable", 1),)
    assert len({graph.handle for graph in cuda.captured if graph.ended}) == 2


def test_works_that_run_beside_others_are_still_recorded_on_a_stream_of_their_own(cuda: Cuda) -> None:
    shared, seen = context(), list[str]()

    def work() -> None:
        seen.append(cuda.current.name)

    main, side = Graphs(shared, Pool()), Graphs(shared, Pool(concurrent=True))
    for graphs in (main, side):
        graphs.of("broken", cuda.break_off)
        graphs.of("whole", work)
    assert len(set(seen)) == 2
    assert "default" not in seen


def test_a_work_that_raises_while_it_is_recorded_leaves_nothing_behind(cuda: Cuda) -> None:
    shared = context()

    def work() -> None:
        if cuda.current.capturing is not None:
            raise AssertionError

    graphs = Graphs(shared, Pool())
    assert graphs.of("step", work) is work
    assert cuda.device_pools == cuda.host_pools == set()
    assert not cuda.generator_captures
    assert cuda.current.name == "default"
    assert shared.fallbacks.counts() == (("graph: not recordable", 1),)


def test_memory_that_gives_out_while_recording_is_made_and_the_work_recorded(cuda: Cuda) -> None:
    room: list[bool] = []

    def make_room() -> bool:
        room.append(True)
        return True

    def work() -> None:
        if cuda.current.capturing is not None and not room:
            cuda.current.broken = True
            raise NO_MEMORY

    shared = context(make_room)
    graphs = Graphs(shared, Pool())
    graphs.of("step", work)()
    assert (len(graphs), shared.fallbacks.counts()) == (1, ())


def test_a_device_on_which_nothing_can_be_recorded_is_given_up_before_its_memory_is_lost(cuda: Cuda) -> None:
    graphs = Graphs(context(), Pool())
    for key in range(3 * _MOST_LOST_POOLS):
        graphs.of(key, cuda.break_off)
    assert len(cuda.host_pools) == _MOST_LOST_POOLS
    assert len(cuda.streams) <= 3 + _MOST_LOST_POOLS


def test_the_stand_in_is_as_bad_as_torch(cuda: Cuda) -> None:
    """Without what is done about it, all that these tests guard against happens."""
    stream, graph, whole = cuda.stream(), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole, 1, stream, capture_error_mode="thread_local"):  # type: ignore[arg-type]
        nothing()
    whole.replay()
    with (
        pytest.raises(RuntimeError, match="previous error"),
        torch.cuda.graph(graph, 1, stream, capture_error_mode="thread_local"),  # type: ignore[arg-type]
    ):
        cuda.break_off()
    assert cuda.current is stream
    with pytest.raises(RuntimeError, match="Offset increment"):
        whole.replay()
    with pytest.raises(RuntimeError, match="already recording"):
        torch.cuda.CUDAGraph().capture_begin(1)  # type: ignore[arg-type]
