"""Training the VAE: what it is shown, what it is punished for, and that it learns."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from example.demo_model import vae as training
from example.demo_model.drawing import Pixels
from example.demo_model.vae import AutoencoderStage, first_vae

pytestmark = pytest.mark.usefixtures("one_thread")

EARLY, MIDDLE, LATE = 0.2, 0.6, 0.9  # of a stage's budget


@pytest.fixture(scope="module")
def images() -> Pixels:
    """Coloured rectangles [6, 256, 256, 3]."""
    rng = np.random.default_rng(0)
    return np.stack([rectangles(rng) for _ in range(6)])


def rectangles(rng: np.random.Generator) -> Pixels:
    image = np.full((256, 256, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(4):
        corner, other = rng.integers(0, 256, (2, 2)).tolist()
        cv2.rectangle(image, corner, other, rng.integers(0, 256, 3).tolist(), cv2.FILLED)
    return image


def staged(images: Pixels, seed: int = 1) -> AutoencoderStage:
    return AutoencoderStage(first_vae(seed), images, 60, seed)


def test_crops_grow_with_progress(images: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = AutoencoderKL.encode

    def seeing(vae: AutoencoderKL, crops: torch.Tensor) -> Any:
        seen.append(tuple(crops.shape))
        return encode(vae, crops)

    monkeypatch.setattr(AutoencoderKL, "encode", seeing)
    for progress in (0, EARLY, MIDDLE, LATE, 1):
        staged(images).step(progress)
    small, middle, large = (8, 3, 64, 64), (4, 3, 128, 128), (2, 3, 256, 256)
    assert seen == [small, small, middle, large, large]


def test_images_become_tensors_between_minus_one_and_one() -> None:
    image = np.zeros((1, 2, 4, 3), np.uint8)
    image[0, 1, 2] = (255, 51, 0)
    tensor = training.to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 2, 4), torch.float32)
    assert tensor[0, :, 1, 2].tolist() == pytest.approx([1.0, -0.6, -1.0])
    assert torch.equal(training.to_tensor(torch.from_numpy(image)), tensor)


def test_some_crops_are_of_half_the_image_unless_all_of_it_is_wanted() -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255  # whose halves are grey
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    rng = np.random.default_rng(3)
    grey = [training.random_crop(image, 128, rng).max() < 255 for _ in range(300)]
    assert 0.09 < np.mean(grey) < 0.21
    assert all(training.random_crop(image, 256, rng).max() == 255 for _ in range(40))


def test_a_whole_image_is_at_most_mirrored_and_recoloured(images: Pixels) -> None:
    rng = np.random.default_rng(4)
    crops = [training.random_crop(images[0], 256, rng) for _ in range(300)]
    same = [np.array_equal(crop, images[0]) for crop in crops]
    mirrored = [np.array_equal(crop, images[0][:, ::-1]) for crop in crops]
    assert np.mean(same) == pytest.approx(0.5 * (0.85 + 0.15 / 6), abs=0.08)
    assert np.mean(mirrored) == pytest.approx(0.5 * (0.85 + 0.15 / 6), abs=0.08)
    assert all(np.array_equal(np.sort(crop.ravel()), np.sort(images[0].ravel())) for crop in crops[:20])


def test_the_gradient_loss_sees_edges_and_not_brightness() -> None:
    flat = torch.zeros(1, 3, 4, 4)
    edge = flat.clone()
    edge[..., 2:] = 1.0  # one of the three differences across each row
    assert training.gradient_loss(flat + 0.5, flat).item() == 0
    assert training.gradient_loss(edge, flat).item() == pytest.approx(1 / 3)
    assert training.gradient_loss(edge.mT, flat).item() == pytest.approx(1 / 3)


def test_the_divergence_is_zero_for_standard_normal_latents_alone() -> None:
    standard = torch.zeros(1, 8, 2, 2)
    shifted = standard.clone()
    shifted[:, :4] = 1.0  # the means
    assert training.kl_divergence(DiagonalGaussianDistribution(standard)).item() == 0
    assert training.kl_divergence(DiagonalGaussianDistribution(shifted)).item() == pytest.approx(0.5)


def test_a_seed_gives_the_same_first_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (training.first_vae(seed).decoder.conv_out.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.no_grad()
def test_training_starts_with_open_shortcuts_and_little_noise(images: Pixels) -> None:
    vae = training.first_vae(1)
    hidden = torch.randn(1, 64, 8, 8)
    assert torch.equal(vae.encoder.mid_block.resnets[0](hidden, temb=None), hidden)
    deviation = vae.encode(training.to_tensor(images[:1])).latent_dist.std.mean().item()
    assert deviation == pytest.approx(np.exp(-3), rel=0.5)


def test_a_new_autoencoder_learns(images: Pixels) -> None:
    stage = staged(images)
    stage._optimiser.steps = training.RATES.warm_up  # whose small steps would take the test's patience
    before = reconstruction_error(stage, images)
    losses = [stage.step(EARLY) for _ in range(12)]
    assert losses[0].keys() == {"l1", "gradient", "squared", "kl"}
    assert reconstruction_error(stage, images) < 0.9 * before


@torch.no_grad()
def reconstruction_error(stage: AutoencoderStage, images: Pixels) -> float:
    small = training.to_tensor(images[:, ::2, ::2])
    found = stage.vae.decode(stage.vae.encode(small).latent_dist.mean).sample
    return float((found - small).abs().mean())


def test_a_stage_goes_on_as_if_it_had_never_been_away(images: Pixels, tmp_path: Path) -> None:
    stage = staged(images)
    stage.step(EARLY)
    torch.save(stage.state_dict(), tmp_path / "state.pt")
    wanted = [stage.step(EARLY), stage.step(MIDDLE)]
    other = staged(images, seed=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [other.step(EARLY), other.step(MIDDLE)] == wanted


def test_normalised_latents_decode_to_the_same_images(images: Pixels) -> None:
    vae = first_vae(1)
    before = training.encode(vae, images)
    with torch.no_grad():
        wanted = vae.decode(before).sample
        training.normalise(vae, images)
        after = training.encode(vae, images)
        found = vae.decode(after).sample

    assert (after.shape, after.dtype, after.requires_grad) == ((6, 6, 64, 64), torch.float32, False)
    assert after.mean((0, 2, 3)).tolist() == pytest.approx([0] * 6, abs=1e-4)
    assert after.std((0, 2, 3)).tolist() == pytest.approx([1] * 6, abs=1e-4)
    assert torch.allclose(found, wanted, atol=1e-3)


def test_images_are_encoded_each_for_itself(images: Pixels) -> None:
    vae = training.first_vae(1)
    latents = training.encode(vae, torch.from_numpy(images))
    more_than_one_batch = training.encode(vae, np.concatenate([images, images, images]))
    assert torch.allclose(more_than_one_batch, latents.repeat(3, 1, 1, 1), atol=1e-5)


@pytest.mark.parametrize("wrong", [np.zeros((2, 128, 128, 3), np.uint8), np.zeros((0, 256, 256, 3), np.uint8)])
def test_images_of_another_size_are_refused(wrong: Pixels) -> None:
    with pytest.raises(
        ValueError, match=r"uint8 \[n, 256, 256, 3\], but these are uint8 \[\d, .*render the corpus anew"
    ):
        staged(wrong)
