"""Training the VAE on ever larger crops of images.

Small crops first, since the networks learn colours and edges in a fraction of the time that whole images take.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import trange

from example.demo_model import networks
from example.demo_model.drawing import SIZE, Pixels
from example.demo_model.optimiser import Optimiser, Rates

GRADIENT_WEIGHT = 1.0  # of edges, against colours
SQUARED_WEIGHT = 2.0  # of squared errors of both: a thin line that is missing then weighs more than a faint tint
KL_WEIGHT = 1e-4
WEIGHT_DECAY = 1e-4
FIRST_LOG_VARIANCE = -6.0  # of the latents: with less noise from the start, the decoder finds its way sooner
CUDA_BATCH = 8  # times as large as on a processor

FLIPPED = 0.5  # of the crops
HALVED = 0.15  # of the crops that are smaller than the image: more of a scene, and finer edges
RECOLOURED = 0.15  # of the crops, by a permutation of the channels

ENCODED_AT_ONCE = 16  # images
MEASURED = 400  # images, for the scaling factor


@dataclass(frozen=True)
class Crops:
    """Batches of crops: `batch` of them, with sides of `size` pixels, until a stage's progress is `until`."""

    until: float
    batch: int
    size: int


RATES = Rates(8e-4, 1.6e-5, warm_up=100)
CROPS = (Crops(0.5, 8, 64), Crops(0.8, 4, 128), Crops(1.0, 2, SIZE))


class AutoencoderStage:
    """Trains `vae` in place to return the images [n, 256, 256, 3] that it is given; a seed gives the same crops."""

    name = "autoencoder"

    def __init__(self, vae: AutoencoderKL, images: Pixels, seconds: float, seed: int) -> None:
        _check_sizes(images)
        self.vae = vae
        self.seconds = seconds
        self._images = images
        self._optimiser = Optimiser(vae.parameters(), RATES, WEIGHT_DECAY)
        self._crop_rng = np.random.default_rng(seed)
        self._noise_rng = torch.Generator(vae.device).manual_seed(seed)

    def step(self, progress: float) -> dict[str, float]:
        """One step of the optimiser; the losses l1, gradient, squared and kl."""
        images = self._batch(next((crops for crops in CROPS if progress < crops.until), CROPS[-1]))
        posterior = self.vae.encode(images).latent_dist
        found = self.vae.decode(posterior.sample(self._noise_rng)).sample
        l1, gradient, kl = F.l1_loss(found, images), gradient_loss(found, images), kl_divergence(posterior)
        squared = F.mse_loss(found, images) + gradient_loss(found, images, Tensor.square)
        self._optimiser.step(l1 + GRADIENT_WEIGHT * gradient + SQUARED_WEIGHT * squared + KL_WEIGHT * kl, progress)
        return {"l1": l1.item(), "gradient": gradient.item(), "squared": squared.item(), "kl": kl.item()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, the optimiser's moments, and both random generators."""
        return {
            "vae": self.vae.state_dict(),
            **self._optimiser.state_dict(),
            "crop_rng": self._crop_rng.bit_generator.state,
            "noise_rng": self._noise_rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to such a state."""
        self.vae.load_state_dict(state["vae"])
        self._optimiser.load_state_dict(state)
        self._crop_rng.bit_generator.state = state["crop_rng"]
        self._noise_rng.set_state(state["noise_rng"])

    def _batch(self, crops: Crops) -> Tensor:
        """Images [n, 3, h, w] in -1..1, where the VAE is."""
        device = self.vae.device
        count = crops.batch * (CUDA_BATCH if device.type == "cuda" else 1)
        chosen = self._crop_rng.integers(len(self._images), size=count)
        cut = np.stack([random_crop(self._images[index], crops.size, self._crop_rng) for index in chosen])
        return to_tensor(torch.from_numpy(cut).to(device))


class Posterior(Protocol):
    """A Gaussian over latents: tensors [n, 6, h, w]."""

    mean: Tensor
    var: Tensor
    logvar: Tensor


def first_vae(seed: int) -> AutoencoderKL:
    """A VAE as its training starts: its residual branches closed, and little noise in the latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = networks.vae()
    networks.close_residual_branches(vae)
    with torch.no_grad():
        vae.quant_conv.bias[networks.LATENT_CHANNELS :] = FIRST_LOG_VARIANCE
    return vae


def gradient_loss(found: Tensor, wanted: Tensor, norm: Callable[[Tensor], Tensor] = torch.abs) -> Tensor:
    """L1, or another norm, between differences of neighbouring pixels, across and down, of images [n, 3, h, w]."""
    error = found - wanted
    return norm(error.diff(dim=-1)).mean() + norm(error.diff(dim=-2)).mean()


def kl_divergence(posterior: Posterior) -> Tensor:
    """From the standard normal distribution, the mean over all elements."""
    return 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()


def random_crop(image: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """A square [size, size, 3] of an image [h, w, 3], sometimes at half its size, mirrored, or recoloured."""
    if size < len(image) and rng.random() < HALVED:
        image = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    top, left = rng.integers(len(image) - size + 1), rng.integers(image.shape[1] - size + 1)
    crop = image[top : top + size, left : left + size]
    if rng.random() < FLIPPED:
        crop = crop[:, ::-1]
    return crop[..., rng.permutation(3)] if rng.random() < RECOLOURED else crop


def to_tensor(images: Pixels | Tensor) -> Tensor:
    """Images uint8 [n, h, w, 3] as float32 [n, 3, h, w] in -1..1, on the device that they are on."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images))  # a copy: torch warns of memory that it may not write to
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Pixels | Tensor) -> Tensor:
    """The means of images' latents, unscaled: uint8 [n, 256, 256, 3] to float32 [n, 6, 64, 64], in main memory."""
    starts: Iterable[int] = trange(0, len(images), ENCODED_AT_ONCE, desc="encoding", leave=False, delay=2)
    batches = (to_tensor(images[start : start + ENCODED_AT_ONCE]) for start in starts)
    return torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mean.float().cpu() for batch in batches])


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: Pixels) -> None:
    """Give each channel of latents a mean of 0 and a deviation of 1, as measured on some hundred images.

    That goes into the 1x1 convolutions on either side of the latents, so the VAE's scaling factor is 1.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), MEASURED)).round().astype(int)
    latents, channels = encode(vae, images[chosen]), vae.config.latent_channels
    mean, deviation = (of.to(vae.device) for of in (latents.mean((0, 2, 3)), latents.std((0, 2, 3))))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation.view(1, -1, 1, 1)


def _check_sizes(images: Pixels) -> None:
    if not len(images) or images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"images to train on are uint8 [n, {SIZE}, {SIZE}, 3], but these are {images.dtype} "
            f"{list(images.shape)}: render the corpus anew"
        )
