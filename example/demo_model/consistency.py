"""Whether what is being painted looks as it should, as losses that the networks learn from.

The noise's loss alone leaves edges where they belong but fainter than Canny sees, as what is uncertain is painted as
its mean, and fills are mottled. So the image that a prediction amounts to is decoded and compared with the lesson's;
and where no ink is, its edges with the hint, as in ControlNet++ (Li et al., arXiv 2404.07987).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from example.demo_model.lessons import Batch
from example.demo_model.networks import FACTOR
from example.demo_model.vae import gradient_loss, to_tensor

IMAGE_WEIGHTS: Mapping[str, float] = {"missing": 0.5, "extra": 0.5, "pixels": 0.5}  # of the losses
CLEAR = 600  # timesteps from which on a prediction is too vague an image to be judged
JUDGED = 0.4  # of a batch at most, and of each image only a crop: decoding takes longer than predicting
CROP = 24  # latents a side
STRONG = 300.0  # Canny's gradient: one and a half times its upper threshold, so that the image may lose some of it
FAINT = 100.0  # its lower threshold
LARGEST = 3.0  # of `extra` at a pixel, so that one wrong edge does not outweigh all others
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Consistency:
    """Judges latents by the decoder of `vae`, which is not trained."""

    vae: AutoencoderKL

    def losses(
        self, latents: Tensor, batch: Batch, controlled: Tensor, timesteps: Tensor, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """By name; none if there is no image to judge.

        For the clean latents [n, 6, s, s] that are predicted at timesteps [n] for the lessons of a batch, of which
        those are judged that were `controlled` [n].
        """
        judged = torch.nonzero(controlled & (timesteps < CLEAR)).flatten()[: int(len(latents) * JUDGED)]
        if not len(judged):
            return {}
        size = min(CROP, latents.shape[-1])
        top, left = rng.integers(latents.shape[-1] - size + 1, size=2)
        crop = latents[judged, :, top : top + size, left : left + size]
        images = self.vae.decode(crop).sample
        rows, columns = (slice(FACTOR * start, FACTOR * (start + size)) for start in (top, left))
        wanted = to_tensor(batch.images[judged, rows, columns])
        losses = {"pixels": F.l1_loss(images, wanted) + gradient_loss(images, wanted)}
        if not (plain := ~batch.inked[judged]).any():
            return losses
        return losses | edge_losses(images[plain], batch.hints[judged[plain], :1, rows, columns] > 0)


def edge_losses(images: Tensor, hints: Tensor) -> dict[str, Tensor]:
    """How much of Canny's gradient images [n, 3, h, w] lack at hints (bool [n, 1, h, w]), and have far from them.

    An edge may be a pixel away from its hint; more than two are far, as in `scoring`.
    """
    found = canny_gradient(images)
    lacking = F.relu(1 - F.max_pool2d(found, 3, stride=1, padding=1) / STRONG)
    far = F.max_pool2d(hints.float(), 5, stride=1, padding=2) == 0
    extra = F.relu(found / FAINT - 1).clamp(max=LARGEST)
    return {"missing": _mean(lacking, hints), "extra": _mean(extra, far)}


def canny_gradient(images: Tensor) -> Tensor:
    """The gradient that OpenCV's Canny compares with its thresholds, [n, 1, h, w]: of images [n, 3, h, w] in -1..1.

    That is |dx| + |dy| by Sobel, of the channel that has most.
    """
    kernels = torch.stack([SOBEL, SOBEL.T])[:, None].to(images)
    channels = F.pad(images.flatten(0, 1)[:, None] * 127.5, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(channels, kernels).abs().sum(1).view(images.shape).amax(1, keepdim=True)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Over the pixels where a mask is true; 0 if it is nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)
