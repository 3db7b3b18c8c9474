"""The losses of edges agree with Canny, and latents that follow them get the edges that they lacked."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from example.demo_model.consistency import CLEAR, Consistency, canny_gradient, edge_losses
from example.demo_model.drawing import Pixels, edges
from example.demo_model.lessons import Batch
from example.demo_model.scenes import flat_scenes
from example.demo_model.vae import to_tensor
from tests.service.running import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = flat_scenes(1, seed=5)[0].image
BLANK = np.full_like(IMAGE, 128)


@pytest.fixture(scope="module")
def judge() -> Consistency:
    vae = AutoencoderKL.from_pretrained(Path(ROOT) / "configs/demo/vae", dtype=torch.float32)
    return Consistency(vae.eval().requires_grad_(False))


def hints_of(image: Pixels, shift: int = 0) -> Tensor:
    return torch.from_numpy(np.roll(edges(image), shift, axis=(0, 1)))[None, None]


def losses(image: Pixels, hints: Tensor) -> dict[str, float]:
    return {name: loss.item() for name, loss in edge_losses(to_tensor(image[None]), hints).items()}


def batch(count: int, side: int = 256, inked: bool = False) -> Batch:
    """Lessons of the image."""
    hints = hints_of(IMAGE)[..., :side, :side].expand(count, 3, -1, -1).float()
    images = torch.from_numpy(IMAGE[None, :side, :side]).expand(count, -1, -1, -1)
    empty = torch.zeros(0)
    return Batch(empty, hints, empty, images, torch.full((count,), inked), empty, empty, empty)


def judged(
    judge: Consistency, latents: Tensor, timesteps: list[int], controlled: list[bool], inked: bool = False
) -> dict[str, Tensor]:
    lessons, rng = batch(len(latents), 4 * latents.shape[-1], inked), np.random.default_rng(0)
    return judge.losses(latents, lessons, torch.tensor(controlled), torch.tensor(timesteps), rng)


@pytest.mark.parametrize("threshold", [100, 200, 300])
def test_the_gradient_is_what_canny_compares(threshold: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    image = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.0), np.uint8)
    gradient = canny_gradient(to_tensor(image[None]))[0, 0].numpy()
    found = cv2.Canny(image, threshold, threshold) > 0

    assert found.any()
    assert gradient[found].min() > threshold - 0.01
    assert not (cv2.Canny(image, float(gradient.max()), float(gradient.max())) > 0).any()


def test_an_image_with_the_edges_of_its_hint_costs_little() -> None:
    own, blank = losses(IMAGE, hints_of(IMAGE)), losses(BLANK, hints_of(IMAGE))

    assert own["missing"] < 0.05
    assert own["extra"] == pytest.approx(0, abs=1e-3)
    assert blank == {"missing": pytest.approx(1), "extra": 0}


def test_an_edge_may_be_a_pixel_away_but_not_more() -> None:
    near, away = losses(IMAGE, hints_of(IMAGE, shift=1)), losses(IMAGE, hints_of(IMAGE, shift=8))

    assert near["missing"] < 0.1
    assert away["missing"] > 0.4
    assert near["extra"] < 0.1 * away["extra"]


def test_no_hint_costs_nothing_where_there_is_nothing() -> None:
    nowhere = torch.zeros(1, 1, *IMAGE.shape[:2], dtype=torch.bool)

    assert losses(BLANK, nowhere) == {"missing": 0, "extra": 0}
    assert losses(IMAGE, nowhere)["extra"] > 0


def test_vague_or_uncontrolled_scenes_are_not_judged(judge: Consistency) -> None:
    latents = torch.zeros(3, 6, 64, 64)

    assert judged(judge, latents, [CLEAR, 10, CLEAR], [True, False, True]) == {}
    assert judged(judge, latents, [CLEAR, 10, CLEAR], [True, True, True]).keys() == {"missing", "extra", "pixels"}


def test_drawings_are_compared_with_their_image_alone(judge: Consistency) -> None:
    latents = torch.zeros(3, 6, 64, 64)

    assert judged(judge, latents, [10, 10, 10], [True, True, True], inked=True).keys() == {"pixels"}


def test_a_part_of_a_batch_is_decoded(judge: Consistency) -> None:
    latents = torch.zeros(6, 6, 8, 8, requires_grad=True)
    sum(judged(judge, latents, [10] * len(latents), [True] * len(latents)).values()).backward()  # type: ignore[union-attr]

    assert latents.grad is not None
    assert [bool(each.any()) for each in latents.grad] == [True] * 2 + [False] * 4


def test_latents_that_go_downhill_get_their_edges(judge: Consistency) -> None:
    soft = np.asarray(cv2.GaussianBlur(IMAGE, (0, 0), 5), np.uint8)
    with torch.no_grad():
        latents = judge.vae.encode(to_tensor(soft[None])).latent_dist.mean
    latents = latents.repeat(3, 1, 1, 1).requires_grad_()  # one of three is judged
    optimiser = torch.optim.Adam([latents], lr=0.05)
    rng, controlled, timesteps = np.random.default_rng(0), torch.tensor([True] * 3), torch.tensor([0] * 3)
    history = []
    for _ in range(24):
        found = judge.losses(latents, batch(3), controlled, timesteps, rng)
        optimiser.zero_grad()
        (found["missing"] + found["extra"]).backward()
        optimiser.step()
        history.append(found["missing"].item())

    assert np.mean(history[-6:]) < 0.6 * np.mean(history[:6])
    assert all(parameter.grad is None for parameter in judge.vae.parameters())
