"""When graphs are recorded, and the fallback if that fails."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch

from tests.workers.engine.recorder import RUNS, FakeRecorder, recorder
from workers.engine.graphs import Fallbacks, GraphContext, Graphs

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory.\nMore lines.")


class Counted:
    """A work that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1


def graphs(fake: FakeRecorder | None, make_room: Callable[[], bool] = lambda: False, lock: Any = None) -> Graphs:
    return Graphs(GraphContext(fake, Fallbacks(), make_room, lock or Lock()))


def test_a_work_is_recorded_at_first_use_and_replayed_from_then_on() -> None:
    fake, work = recorder(size=7), Counted()
    works = graphs(fake)
    for _ in range(3):
        works.of("step", work)()
    assert work.runs == RUNS + 3
    assert fake.replays == 3
    assert (len(works), works.size) == (1, 7)


def test_the_work_before_a_recording_is_done_once() -> None:
    order: list[str] = []
    works = graphs(recorder())
    for _ in range(2):
        works.of("step", lambda: order.append("work"), lambda: order.append("before"))()
    assert order == ["before", *["work"] * (RUNS + 2)]


def test_works_share_a_pool() -> None:
    fake = recorder()
    works = graphs(fake)
    for key in range(3):
        works.of(key, Counted())
    assert len(set(map(id, fake.pools))) == 1


def test_without_a_recorder_works_run_as_they_are() -> None:
    work = Counted()
    works = graphs(None)
    assert works.of("step", work) is work
    assert (len(works), works.fallbacks.counts()) == (0, ())


def test_without_memory_room_is_made_and_it_is_tried_again() -> None:
    fake, work = recorder([NO_MEMORY]), Counted()
    works = graphs(fake, make_room=lambda: True)
    works.of("step", work)()
    assert fake.replays == 1
    assert fake.trimmed == 1
    assert works.fallbacks.counts() == ()


@pytest.mark.parametrize("room", [True, False])
def test_without_memory_even_then_the_work_runs_as_it_is(room: bool, caplog: pytest.LogCaptureFixture) -> None:
    fake, work = recorder([NO_MEMORY, NO_MEMORY] if room else [NO_MEMORY]), Counted()
    works = graphs(fake, make_room=lambda: room)
    for _ in range(2):
        assert works.of("step", work) is work
    assert work.runs == 0
    assert works.fallbacks.counts() == (("graph: out of memory", 1),)
    assert "step runs without a graph: CUDA out of memory." in caplog.text
    assert "More lines" not in caplog.text


def test_work_that_cannot_be_recorded_runs_without_a_graph() -> None:
    fake, work = recorder([RuntimeError("operation not permitted when stream is capturing")]), Counted()
    works = graphs(fake)
    for _ in range(2):
        assert works.of("step", work) is work
    assert works.fallbacks.counts() == (("graph: not recordable", 1),)


@pytest.mark.parametrize("error", [ValueError("a mistake"), AssertionError(), KeyError("missing"), MemoryError()])
def test_whatever_error_it_is_the_work_runs_as_it_is_and_the_turn_is_given_back(error: Exception) -> None:
    lock, work = Lock(), Counted()
    works = graphs(recorder([error]), lock=lock)
    assert works.of("step", work) is work
    assert not lock.locked()
    assert works.fallbacks.counts() == (("graph: not recordable", 1),)


def test_while_networks_are_compiled_nothing_is_recorded_and_that_is_counted_once() -> None:
    fake, work, lock = recorder(), Counted(), Lock()
    works = graphs(fake, lock=lock)
    with lock:
        for _ in range(3):
            assert works.of("step", work) is work
    works.of("step", work)()
    assert fake.replays == 1
    assert works.fallbacks.counts() == (("graph: waits for the compiler", 1),)


def test_a_graph_that_cannot_be_replayed_is_given_up_and_its_work_done() -> None:
    fake, work = recorder(), Counted()
    works = graphs(fake)
    works.of("step", work)()
    fake.broken = True
    runs = work.runs
    for _ in range(2):
        works.of("step", work)()
    assert work.runs == runs + 2
    assert (len(works), works.fallbacks.counts()) == (0, (("graph: not replayed", 1),))


@pytest.mark.parametrize("broken", [False, True], ids=["recording", "replay"])
def test_a_graph_stays_where_the_one_that_is_to_replace_it_fails(broken: bool) -> None:
    fake, old, new = recorder(), Counted(), Counted()
    works = graphs(fake)
    works.of("step", old)
    fake.broken = broken
    fake.failures.extend([] if broken else [AssertionError()])
    with pytest.raises((RuntimeError, AssertionError)):
        works.replace("step", new, lambda: None, lambda work: True)
    fake.broken = False
    runs = old.runs
    works.of("step", old)()
    assert (old.runs, len(works), works.fallbacks.counts()) == (runs + 1, 1, ())


def test_a_graph_stays_where_the_one_that_is_to_replace_it_is_not_worth_it() -> None:
    fake, old, new = recorder(), Counted(), Counted()
    works = graphs(fake)
    works.of("step", old)
    assert not works.replace("step", new, lambda: None, lambda work: bool(work()))
    assert new.runs == RUNS + 2  # its graph is replayed once, and timed
    runs = old.runs
    works.of("step", old)()
    assert (old.runs, len(works), works.fallbacks.counts()) == (runs + 1, 1, ())


@pytest.mark.parametrize("taken", [True, False])
def test_the_memory_of_a_graph_that_was_replaced_stays_in_the_pool(taken: bool) -> None:
    works = graphs(recorder(size=7))
    works.of("step", Counted())
    works.replace("step", Counted(), lambda: None, lambda work: taken)
    assert works.size == (14 if taken else 7)


def test_a_dropped_graph_is_recorded_anew_when_the_device_is_done_with_it() -> None:
    fake = recorder()
    works = graphs(fake)
    works.of("step", Counted())
    works.drop("step")
    assert (len(works), fake.synchronized) == (0, 1)
    changed = Counted()
    works.of("step", changed)()
    assert changed.runs == RUNS + 1


def test_a_work_that_has_changed_may_be_recordable() -> None:
    works = graphs(recorder([RuntimeError("no")]))
    works.of("step", Counted())
    works.drop("step")
    works.of("step", Counted())
    assert len(works) == 1
