"""Reports about trials, so that one that ended a process is not made again."""

import threading

import pytest
import torch

from tests.workers.engine.rivals import HEADS, Bench, inputs
from workers.engine.attention import Attention
from workers.engine.trials import COMPILING, CONVOLUTIONS, GRAPHS, GROUP_NORM, TRIALS, Crashes, Trials, attention

Told = list[tuple[str, ...]]


@pytest.fixture
def told() -> Told:
    return []


def test_a_trial_is_told_before_it_begins_and_when_it_has_ended_however_that_was(told: Told) -> None:
    trials = Trials(told.append)
    with trials.of(GRAPHS):
        assert told == [(GRAPHS,)]
    with pytest.raises(AssertionError), trials.of(COMPILING):
        raise AssertionError
    assert told == [(GRAPHS,), (), (COMPILING,), ()]


def test_of_trials_within_each_other_the_inner_one_is_told(told: Told) -> None:
    trials = Trials(told.append)
    with trials.of(GRAPHS):
        with trials.of(attention("flash")):
            pass
        with trials.of(attention("cudnn")):
            pass
    assert told == [(GRAPHS,), (attention("flash"),), (GRAPHS,), (attention("cudnn"),), (GRAPHS,), ()]


def test_of_trials_beside_each_other_all_are_told(told: Told) -> None:
    trials = Trials(told.append)

    def beside() -> None:
        with trials.of(COMPILING):
            pass

    with trials.of(GRAPHS):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert told == [(GRAPHS,), (GRAPHS, COMPILING), (GRAPHS,), ()]


def test_a_trial_that_loses_the_device_stays_the_only_one_blamed(told: Told) -> None:
    trials = Trials(told.append)

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fatal() -> None:
        with trials.of(attention("cudnn")):
            trials.synchronize = lost
            raise ValueError

    with pytest.raises(torch.AcceleratorError):
        fatal()
    with pytest.raises(torch.AcceleratorError), trials.of(attention("math")):
        pass
    assert told == [(attention("cudnn"),)]


def test_what_the_device_still_does_for_an_outer_trial_is_not_blamed_on_an_inner_one(told: Told) -> None:
    trials = Trials(told.append)

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def within_each_other() -> None:
        with trials.of(GRAPHS):
            trials.synchronize = lost
            with trials.of(attention("cudnn")):
                raise AssertionError

    with pytest.raises(torch.AcceleratorError):
        within_each_other()
    assert told == [(GRAPHS,)]


def test_each_attention_kernel_is_a_trial(told: Told) -> None:
    bench = Bench()
    kernels = [bench.kernel("flash", 1.0), bench.kernel("math", 2.0)]
    tried = Attention(kernels, bench.timer, Trials(told.append))
    tried(*inputs(), HEADS)
    assert told == [(attention("flash"),), (), (attention("math"),), ()]


def test_two_crashes_in_a_row_with_the_same_in_use_are_blamed_on_it_first_on_what_was_compiled() -> None:
    crashes = Crashes()
    compiled, recorded, plain = {"steps": 2, "steps compiled": 1}, {"steps": 2, "steps compiled": 0}, {"steps": 0}
    assert [crashes.blame(now, compiled) for now in (0.0, 10.0)] == [(), (COMPILING,)]
    assert [crashes.blame(now, recorded) for now in (20.0, 30.0)] == [(), (GRAPHS,)]
    assert [crashes.blame(now, plain) for now in (40.0, 50.0)] == [(), ()]


def test_crashes_that_lie_hours_apart_or_with_another_between_are_not_blamed_on_it() -> None:
    crashes = Crashes()
    compiled, plain = {"VAE compiled": 1}, dict[str, int]()
    for now, graphs in ((0.0, compiled), (4000.0, compiled), (4001.0, plain), (4002.0, compiled)):
        assert crashes.blame(now, graphs) == ()


def test_the_pool_knows_all_of_them() -> None:
    assert {GRAPHS, COMPILING, CONVOLUTIONS, GROUP_NORM, attention("xformers")} < TRIALS


def test_what_is_blamed_stays_told(told: Told) -> None:
    trials = Trials(told.append)
    trials.blame(COMPILING)
    with trials.of(GRAPHS):
        pass
    assert told[0] == told[-1] == (COMPILING,)


def test_what_is_blamed_within_another_trial_stays_told_until_it_is_tried_with_success(told: Told) -> None:
    trials = Trials(told.append)
    with trials.of(GRAPHS):
        trials.blame(COMPILING)
    with trials.of(COMPILING):
        pass
    assert told == [(GRAPHS,), (COMPILING,), (COMPILING,), (COMPILING,), ()]
