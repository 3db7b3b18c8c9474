"""Our group norm where there is no GPU: its operators, how it is split, and where it is used."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import group_norm as torchs
from torch.nn.functional import silu

from tests.workers.engine.demo import relative_error
from workers.engine import kernel_probe, kernels
from workers.engine.kernels.group_norm import add_group_norm, flaw, group_norm, tiles

ROWS, POSITIONS, CHANNELS, GROUPS = 4, 15, 24, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, WEIGHT, OFFSET = random(ROWS, POSITIONS, CHANNELS), random(CHANNELS, seed=1), random(CHANNELS, seed=2)
BIAS, SHIFT, OTHER = random(CHANNELS, seed=3), random(ROWS, CHANNELS, seed=4), random(2, POSITIONS, CHANNELS, seed=5)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)))
def test_it_is_torchs_group_norm_of_the_sum(given: tuple[bool, ...], activate: bool) -> None:
    terms = [term if wanted else None for term, wanted in zip((BIAS, SHIFT, OTHER), given, strict=True)]
    whole = torch.zeros_like(X), BIAS, SHIFT[:, None], OTHER.repeat_interleave(2, 0)
    expected_sum = X + sum(term for term, wanted in zip(whole[1:], given, strict=True) if wanted)
    expected = torchs(expected_sum.mT, GROUPS, WEIGHT, OFFSET, 1e-5).mT
    result = group_norm(X, terms, WEIGHT, OFFSET, GROUPS, 1e-5, activate)
    assert relative_error(result, silu(expected) if activate else expected) <= 1e-6
    total, again = add_group_norm(X, terms, WEIGHT, OFFSET, GROUPS, 1e-5, activate)
    assert relative_error(total, expected_sum) <= 1e-6
    assert torch.equal(again, result)


@pytest.mark.parametrize("x", [X, random(ROWS, CHANNELS, POSITIONS).mT], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("operator", [group_norm, add_group_norm])
@pytest.mark.parametrize("terms", [[None, None, None], [BIAS, None, OTHER]], ids=["alone", "sum"])
def test_operators_keep_the_rules_of_operators(x: Tensor, operator: Any, terms: list[Tensor | None]) -> None:
    given = x, terms, WEIGHT, OFFSET, GROUPS, 1e-5, True
    torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("positions", [1, 63, 64, 1024, 4096, 9216, 262_144])
@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (640, 32), (960, 32), (2560, 32), (60, 3), (96, 96)])
def test_tiles_cover_whole_groups_and_stay_small(positions: int, channels: int, groups: int) -> None:
    split = tiles(positions, channels, groups)
    assert groups % split.groups == 0
    assert -(-positions // (split.part * split.positions)) <= 64
    assert split.lanes >= split.groups * channels // groups
    assert all(size & (size - 1) == 0 for size in (split.groups, split.positions, split.lanes, split.warps))
    assert split.positions * split.lanes <= split.warps * 32 * 64  # elements of a thread
    assert split.kernels == 2 or split.positions >= positions


def test_the_levels_of_stable_diffusion_but_the_first_take_one_kernel() -> None:
    assert [tiles(side * side, channels, 32).kernels for side, channels in ((8, 1280), (16, 1280), (32, 640))] == [
        1
    ] * 3
    assert tiles(64 * 64, 320, 32).kernels == 2


def test_a_large_image_keeps_a_gpu_busy() -> None:
    """As the VAE ends: each program takes several tiles, and there is one for each multiprocessor."""
    split = tiles(512 * 512, 128, 32)
    assert split.part > 1
    assert 512 * 512 // (split.part * split.positions) * (32 // split.groups) >= 128


def test_a_cpu_uses_torchs() -> None:
    assert not kernels.usable(torch.device("cpu"))


@pytest.mark.parametrize("reason", ["", "CompilationError: at 1:0"])
def test_a_gpu_uses_ours_where_they_work(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda package: package)
    monkeypatch.setattr(kernel_probe, "flaw_of", lambda package, device: reason)
    assert kernels.usable(torch.device("cuda")) == (not reason)
    assert caplog.messages == ([f"engine.speed.kernels: {reason}; torch's kernels are used instead"] if reason else [])


def test_without_triton_the_log_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda package: None)
    assert not kernels.usable(torch.device("cuda"))
    assert caplog.messages == ["engine.speed.kernels: Triton is not installed; torch's kernels are used instead"]


def test_the_trial_finds_what_is_right_and_tells_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flaw(torch.device("cpu")) == ""
    monkeypatch.setattr("workers.engine.kernels.group_norm.add_group_norm", lambda x, *_: (x, x))
    assert flaw(torch.device("cpu")).startswith("WrongResultError: ")
