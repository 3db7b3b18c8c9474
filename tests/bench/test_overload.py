"""The figures of the overload benchmark."""

from tests.bench.openloop import Outcome
from tests.bench.overload import CAPACITY, FILLING_SECONDS, figures

SECONDS = FILLING_SECONDS + 10.0


def test_goodput_is_what_was_done_in_time_between_the_filling_and_the_end() -> None:
    inside = [Outcome(FILLING_SECONDS + n / CAPACITY, FILLING_SECONDS + n / CAPACITY, 200, None) for n in range(40)]
    outside = [
        Outcome(FILLING_SECONDS - 2.0, FILLING_SECONDS - 1.0, 200, None),
        Outcome(SECONDS - 1.0, SECONDS + 1.0, 200, None),
    ]
    late = [Outcome(FILLING_SECONDS - 5.0, SECONDS - 0.5, 200, None)]
    found = figures([*inside, *outside, *late], SECONDS)
    assert found["goodput, images per second"] == 4.0
    assert found["goodput, share of capacity"] == 4.0 / CAPACITY
    assert found["done after the deadline"] == 1


def test_refusals_and_failures_are_counted_separately() -> None:
    refused = [Outcome(1.0, 1.1, 503, 2.0), Outcome(1.0, 1.1, 503, None)]
    found = figures([*refused, Outcome(1.0, 11.0, 504, None), Outcome(1.0, 1.0, 0, None)], SECONDS)
    assert found["by status"] == {"503": 2, "504": 1, "0": 1}
    assert found["refused without Retry-After"] == 1
    assert found["admitted and expired"] == 1
