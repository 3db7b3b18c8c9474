"""Every seed of the range draws noise of its own; those of 32 bits draw what they always drew."""

import hashlib
from collections.abc import Iterable

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from tests.workers.engine import demo
from workers.engine.plan import draw

SHAPE = (demo.CHANNELS, *demo.latent_size())
LOWEST, HIGHEST = -(2**63), 2**64 - 1


def structured_seeds() -> set[int]:
    """Powers of two and sums of two of them, with their neighbours, both signs, and complements at 32 and 64 bits."""
    powers = [2**power for power in range(65)]
    sums = {one + other for one in powers for other in [0, *powers]}
    near = {seed + step for seed in [0, *sums] for step in (-1, 0, 1)}
    signed = near | {-seed for seed in near} | {seed ^ (2**32 - 1) for seed in near} | {seed - 2**64 for seed in near}
    return {seed for seed in signed if LOWEST <= seed <= HIGHEST}


def digests(seeds: Iterable[int]) -> set[bytes]:
    return {hashlib.sha256(draw(seed, SHAPE, 1).numpy().tobytes()).digest() for seed in seeds}


def test_no_two_seeds_draw_the_same_noise() -> None:
    seeds = structured_seeds()
    assert len(seeds) > 10_000
    assert {LOWEST, -1, 0, 2**32 - 1, 2**32, 2**63, HIGHEST} <= seeds
    assert len(digests(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [0, 1, 9, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_draw_what_torch_draws(seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    expected = [randn_tensor((1, *SHAPE), generator=generator, dtype=torch.float32)[0] for _ in range(3)]
    assert torch.equal(draw(seed, SHAPE, 3), torch.stack(expected))


@pytest.mark.parametrize("seed", [LOWEST, -1, 2**32, 2**63, HIGHEST])
def test_other_seeds_draw_normal_noise_independent_of_each_other(seed: int) -> None:
    noise, neighbour = draw(seed, (4, 64, 64), 4), draw(seed ^ 1, (4, 64, 64), 4)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, draw(seed, (4, 64, 64), 4))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float(noise.pow(4).mean()) - 3) < 0.2
    for other in (neighbour, noise.roll(1, 0), draw(seed & 0xFFFFFFFF, (4, 64, 64), 4)):
        assert abs(float((noise * other).mean())) < 0.02


@pytest.mark.parametrize(
    ("seed", "values"),
    [
        (-1, [0.677324, 0.256588, -0.503292]),
        (2**32, [1.060535, 0.824603, -0.294492]),
        (HIGHEST, [-1.744479, -0.487158, 1.544984]),
    ],
)
def test_the_noise_of_other_seeds_stays_what_it_is(seed: int, values: list[float]) -> None:
    assert draw(seed, SHAPE, 1).flatten()[:3].tolist() == pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize(
    ("sampler", "noises"),
    [("UniPCMultistepScheduler", 1), ("LCMScheduler", 1 + 3), ("EulerAncestralDiscreteScheduler", 1 + 4)],
)
@pytest.mark.parametrize("seed", [5, 5 + 2**32, 5 - 2**63, HIGHEST])
def test_noise_at_the_steps_follows_the_same_rule(sampler: str, noises: int, seed: int) -> None:
    engine = demo.engine(demo.with_sampler(sampler))
    assert torch.equal(engine.prepare(demo.task(seed)).noise, draw(seed, SHAPE, noises))


def test_seeds_that_are_alike_in_their_low_bits_make_different_images() -> None:
    engine = demo.engine()
    images = [demo.make(engine, demo.task(seed)) for seed in (7, 7 + 2**32, 7 - 2**32, 7 + 2**63, 7 - 2**63, HIGHEST)]
    for number, image in enumerate(images):
        assert all(demo.relative_error(image, other) > 0.1 for other in images[:number])
