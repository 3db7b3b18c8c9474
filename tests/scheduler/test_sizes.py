"""The costs of steps of other sizes: as measured, else by a power law, and corrected by real steps."""

from collections import Counter
from math import log2

import pytest
from msgspec.structs import replace

from scheduler.costs import CostModel, Slowdown
from scheduler.messages import NOMINAL, BatchKey, Costs

NOMINAL_SIZE = BatchKey(1.0, (512, 512))
HALF, DOUBLE, FOURFOLD = BatchKey(0.5, (256, 512)), BatchKey(2.0, (1024, 512)), BatchKey(4.0, (1024, 1024))
TALL = BatchKey(2.0, (512, 1024))
BARE = Costs(20, (0.010, 0.013), 0.1)
KNOWN = replace(BARE, sizes=((DOUBLE, (0.024, 0.039)),))  # one image: work ** log2(2.4)
EXPONENT = log2(2.4)


def step(model: CostModel, *keys: BatchKey) -> float:
    return model.step_seconds(Counter(keys))


def test_while_only_the_nominal_size_is_known_steps_are_proportional_to_work() -> None:
    model = CostModel(BARE)
    assert step(model, DOUBLE) == pytest.approx(0.020)
    assert step(model, HALF, HALF) == pytest.approx(0.0065)


def test_a_size_that_was_measured_costs_what_it_took() -> None:
    model = CostModel(KNOWN)
    assert step(model, NOMINAL_SIZE) == step(model, NOMINAL) == 0.010
    assert step(model, DOUBLE) == 0.024
    assert step(model, DOUBLE, DOUBLE, NOMINAL_SIZE) == 0.049


def test_between_two_known_sizes_a_power_law_goes_through_both() -> None:
    assert step(CostModel(KNOWN), BatchKey(1.5)) == pytest.approx(0.010 * 1.5**EXPONENT)


def test_beyond_the_known_sizes_the_power_law_goes_on() -> None:
    assert step(CostModel(KNOWN), FOURFOLD) == pytest.approx(0.010 * 2.4**2)
    assert step(CostModel(KNOWN), HALF) == pytest.approx(0.010 / 2.4)
    assert step(CostModel(KNOWN), HALF, HALF) == pytest.approx(0.013 / 3)


def test_beyond_several_sizes_it_goes_on_as_between_the_last_ones() -> None:
    model = CostModel(replace(BARE, sizes=((FOURFOLD, (0.072, 0.1)), (DOUBLE, (0.024, 0.039)))))
    assert step(model, BatchKey(3.0)) == pytest.approx(0.024 * 1.5 ** log2(3))
    assert step(model, BatchKey(8.0)) == pytest.approx(0.072 * 3)
    assert step(model, HALF) == pytest.approx(0.010 / 2.4)


def test_a_size_and_the_same_turned_count_as_one_with_their_mean() -> None:
    model = CostModel(replace(BARE, sizes=((DOUBLE, (0.020, 0.1)), (TALL, (0.028, 0.1)))))
    assert (step(model, DOUBLE), step(model, TALL)) == (0.020, 0.028)
    assert step(model, FOURFOLD) == pytest.approx(0.010 * 2.4**2)


def test_from_sizes_that_lie_close_together_nothing_is_concluded() -> None:
    near = BatchKey(1.125, (576, 512))
    assert step(CostModel(replace(BARE, sizes=((near, (0.018, 0.02)),))), DOUBLE) == pytest.approx(0.018 * 2 / 1.125)
    model = CostModel(replace(BARE, sizes=((near, (0.018, 0.02)), (DOUBLE, (0.024, 0.039)))))
    assert step(model, FOURFOLD) == pytest.approx(0.024 * 2 ** (log2(24 / 18) / log2(2 / 1.125)))


def test_no_measurement_makes_larger_sizes_cheaper_or_grow_without_bound() -> None:
    assert step(CostModel(replace(BARE, sizes=((DOUBLE, (0.008, 0.008)),))), FOURFOLD) == pytest.approx(0.008)
    assert step(CostModel(replace(BARE, sizes=((DOUBLE, (0.080, 0.080)),))), FOURFOLD) == pytest.approx(0.32)


def test_more_images_of_a_size_are_never_cheaper() -> None:
    model = CostModel(replace(BARE, sizes=((DOUBLE, (0.024, 0.020)),)))
    assert step(model, DOUBLE, DOUBLE) == 0.024


def test_an_engine_that_does_nothing_has_no_power_law() -> None:
    model = CostModel(Costs(20, (0.0, 0.0), 0.0, sizes=((DOUBLE, (0.0, 0.1)),)))
    assert step(model, BatchKey(1.5)) == step(model, FOURFOLD) == 0.0
    model.learn(0.01, Counter([FOURFOLD]), 0.0)
    assert step(model, FOURFOLD) == 0.0


@pytest.mark.parametrize("key", [FOURFOLD, DOUBLE], ids=["extrapolated", "measured"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_real_steps_correct_a_size_both_ways_and_leave_the_others(key: BatchKey, factor: float) -> None:
    model = CostModel(KNOWN)
    expected = step(model, key)
    for _ in range(4000):
        model.learn(factor * expected, Counter([key]), 0.0)
        model.learn(0.010, Counter([NOMINAL_SIZE]), 0.0)
    assert step(model, key) == pytest.approx(factor * expected, rel=0.05)
    assert step(model, NOMINAL_SIZE) == pytest.approx(0.010, rel=0.05)
    assert step(model, BatchKey(3.0)) == pytest.approx(0.010 * 3**EXPONENT, rel=0.05)


def test_the_learned_cost_of_a_size_is_kept_until_it_is_measured() -> None:
    model = CostModel(BARE)
    for key in (DOUBLE, FOURFOLD):
        for _ in range(400):
            model.learn(1.5 * 0.010 * key.work, Counter([key]), 0.0)
            model.learn(0.010, Counter([NOMINAL_SIZE]), 0.0)
    learned = step(model, FOURFOLD) / step(model, NOMINAL)
    again = CostModel(replace(KNOWN, step_seconds=(0.020, 0.024)), learned=model.learned)
    assert step(again, DOUBLE) == 0.024
    assert step(again, FOURFOLD) == pytest.approx(0.020 * learned)


def test_in_one_batch_images_of_one_size_take_what_they_take() -> None:
    model = CostModel(KNOWN)
    for keys in ([NOMINAL], [DOUBLE, DOUBLE], [FOURFOLD]):
        assert model.step_seconds_in_one_batch(Counter(keys)) == step(model, *keys)
    assert model.step_seconds_in_one_batch(Counter([NOMINAL, DOUBLE])) == pytest.approx((0.013 + 0.039) / 2)


def test_learned_costs_stay_near_the_first_estimate() -> None:
    costs = Costs(20, (0.010, 0.012), 0.0)
    model = CostModel(costs)
    for _ in range(5):
        for _ in range(300):
            model.learn(1.0, Counter([FOURFOLD]), 0.0)
            model.slowdown = Slowdown()  # as if all of it were the size's
        model = CostModel(costs, learned=model.learned)
    assert model.step_seconds(Counter([FOURFOLD])) == pytest.approx(3 * 4 * 0.010)
