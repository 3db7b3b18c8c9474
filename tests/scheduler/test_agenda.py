"""The priority queue behind shelves and alarms."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.agenda import SLACK, Agenda


def agenda(**numbers: float) -> Agenda[str]:
    made: Agenda[str] = Agenda()
    for key, number in numbers.items():
        made.put(key, number)
    return made


def test_the_least_comes_first() -> None:
    assert agenda(late=3.0, soon=1.0, then=2.0).first() == "soon"


def test_equals_come_in_the_order_they_were_put() -> None:
    queue = agenda(first=1.0, second=1.0)
    queue.put("first", 1.0)
    assert queue.first() == "second"


def test_an_empty_one_has_no_first_and_no_least() -> None:
    assert agenda().first() is None
    assert agenda().least is None


def test_what_is_moved_counts_once() -> None:
    queue = agenda(a=1.0, b=2.0)
    queue.put("a", 3.0)
    assert (queue.first(), queue.least, len(queue)) == ("b", 2.0, 2)


def test_what_is_dropped_is_gone() -> None:
    queue = agenda(a=1.0, b=2.0)
    queue.drop("a")
    queue.drop("a")
    assert (queue.first(), "a" in queue) == ("b", False)


def test_one_key_can_be_passed_over() -> None:
    queue = agenda(a=1.0, b=2.0)
    assert queue.first(but="a") == "b"
    assert queue.first(but="b") == "a"
    assert queue.first() == "a"
    queue.drop("b")
    assert queue.first(but="a") is None


def test_due_takes_out_what_has_come() -> None:
    queue = agenda(a=1.0, b=2.0, c=3.0)
    assert list(queue.due(2.0)) == ["a", "b"]
    assert (queue.first(), len(queue)) == ("c", 1)


def test_moving_for_ever_does_not_grow_the_heap() -> None:
    queue = agenda(a=0.0, b=0.0)
    for number in range(10_000):
        queue.put("b", float(number))
    assert len(queue._heap) <= 2 * len(queue) + SLACK


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.floats(0, 10)))))
def test_it_agrees_with_a_sorted_dictionary(changes: list[tuple[int, float | None]]) -> None:
    queue: Agenda[int] = Agenda()
    model: dict[int, float] = {}
    for key, number in changes:
        model.pop(key, None)
        queue.drop(key)
        if number is not None:
            model[key] = number
            queue.put(key, number)
        assert queue.first() == min(model, key=lambda k: model[k], default=None)
    assert list(queue.due(10.0)) == sorted(model, key=lambda k: model[k])
