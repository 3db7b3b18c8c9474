"""Learning rates over a stage, and steps that are small where the slope is steep."""

import pytest
import torch
from torch import nn

from example.demo_model.optimiser import LARGEST_NORM, Optimiser, Rates

RATES = Rates(first=8e-4, last=2e-4, warm_up=100)


def test_the_learning_rate_rises_over_the_first_steps_and_falls_with_progress() -> None:
    rates = [RATES.at(step, progress) for step, progress in ((0, 0.0), (49, 0.0), (99, 0.0), (900, 0.5), (5000, 1.0))]

    assert rates == pytest.approx([8e-6, 4e-4, 8e-4, 5e-4, 2e-4])


def test_progress_past_the_end_keeps_the_last_rate() -> None:
    assert RATES.at(5000, 1.2) == pytest.approx(RATES.last)


def test_steps_go_downhill() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimiser = Optimiser([weight], Rates(0.1, 0.1, warm_up=1), weight_decay=0.0)
    for _ in range(60):
        optimiser.step((weight**2).sum(), progress=0.0)

    assert abs(weight.item()) < 1
    assert optimiser.steps == 60


def test_a_steep_slope_is_clipped() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    Optimiser([weight], RATES, weight_decay=0.0).step(1e6 * (weight**2).sum(), progress=0.0)

    assert weight.grad is not None
    assert weight.grad.norm().item() == pytest.approx(LARGEST_NORM)


def test_its_state_brings_back_the_count_and_the_moments() -> None:
    weights = [nn.Parameter(torch.tensor([3.0])) for _ in range(2)]
    one, other = (Optimiser([weight], RATES, weight_decay=0.0) for weight in weights)
    one.step((weights[0] ** 2).sum(), 0.0)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        weights[1].copy_(weights[0])
    for optimiser, weight in zip((one, other), weights, strict=True):
        optimiser.step((weight**2).sum(), 0.0)

    assert other.steps == 2
    assert torch.equal(*weights)
