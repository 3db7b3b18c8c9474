"""Training the VAE: first all of it on ever larger crops, later its decoder alone on whole images.

Small crops first, since the networks learn colours and edges in a fraction of the time that whole images take.
"""

from collections.abc import Iterable
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
KL_WEIGHT = 1e-4
WEIGHT_DECAY = 1e-4
FIRST_LOG_VARIANCE = -6.0  # of the latents: with less noise from the start, the decoder finds its way sooner
CUDA_BATCH = 8  # times as large as on a processor

FLIPPED = 0.5  # of the crops
HALVED = 0.3  # of the crops that are smaller than the image: more of a scene, and finer edges
RECOLOURED = 0.15  # of the crops, by a permutation of the channels

ENCODED_AT_ONCE = 16  # images
MEASURED = 400  # images, for the scaling factor


@dataclass(frozen=True)
class Crops:
    """Batches of crops: `batch` of them, with sides of `size` pixels, until a stage's progress is `until`."""

    until: float
    batch: int
    size: int


@dataclass(frozen=True)
class Recipe:
    """How a stage trains: learning rates, the crops over its progress, the weight of the KL divergence."""

    rates: Rates
    crops: tuple[Crops, ...]
    kl_weight: float

    def crops_at(self, progress: float) -> Crops:
        """Those of a stage at `progress` (0..1)."""
        return next((crops for crops in self.crops if progress < crops.until), self.crops[-1])


WHOLE = Recipe(
    Rates(8e-4, 1.6e-5, warm_up=100), (Crops(0.55, 8, 64), Crops(0.8, 4, 128), Crops(1.0, 2, SIZE)), KL_WEIGHT
)
DECODER = Recipe(Rates(3e-4, 6e-6, warm_up=100), (Crops(1.0, 2, SIZE),), 0.0)


class _ReconstructionStage:
    """Trains what of a VAE requires gradients to return the images [n, 256, 256, 3] that it is given."""

    def __init__(self, vae: AutoencoderKL, images: Pixels, recipe: Recipe, seconds: float, seed: int) -> None:
        _check_sizes(images)
        self.vae = vae
        self.seconds = seconds
        self._images = images
        self._recipe = recipe
        trained = (parameter for parameter in vae.parameters() if parameter.requires_grad)
        self._optimiser = Optimiser(trained, recipe.rates, WEIGHT_DECAY)
        self._crop_rng = np.random.default_rng(seed)
        self._noise_rng = torch.Generator(vae.device).manual_seed(seed)

    def step(self, progress: float) -> dict[str, float]:
        """One step of the optimiser; the losses l1, gradient and kl, or the first two where kl has no weight."""
        images = self._batch(self._recipe.crops_at(progress))
        posterior = self.vae.encode(images).latent_dist
        found = self.vae.decode(posterior.sample(self._noise_rng)).sample
        l1, gradient = F.l1_loss(found, images), gradient_loss(found, images)
        loss, losses = l1 + GRADIENT_WEIGHT * gradient, {"l1": l1.item(), "gradient": gradient.item()}
        if self._recipe.kl_weight:
            kl = kl_divergence(posterior)
            loss, losses = loss + self._recipe.kl_weight * kl, losses | {"kl": kl.item()}
        self._optimiser.step(loss, progress)
        return losses

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


class AutoencoderStage(_ReconstructionStage):
    """All of a new VAE. A seed gives the same weights to start from, and the same crops."""

    name = "autoencoder"

    def __init__(self, images: Pixels, seconds: float, seed: int, device: torch.device | str) -> None:
        super().__init__(first_vae(seed).to(device, memory_format=torch.channels_last), images, WHOLE, seconds, seed)


class DecoderStage(_ReconstructionStage):
    """The decoder of a trained VAE, which it changes in place: the encoder is frozen, so latents keep their meaning."""

    name = "decoder"

    def __init__(
        self, vae: AutoencoderKL, images: Pixels, seconds: float, seed: int, device: torch.device | str
    ) -> None:
        vae.to(device)
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
        super().__init__(vae, images, DECODER, seconds, seed)


class Posterior(Protocol):
    """A Gaussian over latents: tensors [n, 4, h, w]."""

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


def gradient_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """L1 between differences of neighbouring pixels, across and down, of images [n, 3, h, w]."""
    error = found - wanted
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


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
    """The means of images' latents, unscaled: uint8 [n, 256, 256, 3] to float32 [n, 4, 32, 32], in main memory."""
    starts: Iterable[int] = trange(0, len(images), ENCODED_AT_ONCE, desc="encoding", leave=False, delay=2)
    batches = (to_tensor(images[start : start + ENCODED_AT_ONCE]) for start in starts)
    return torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mean.float().cpu() for batch in batches])


def scaling_factor(vae: AutoencoderKL, images: Pixels) -> float:
    """The factor that gives latents a standard deviation of 1, measured on some hundred images."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), MEASURED)).round().astype(int)
    return 1 / float(encode(vae, images[chosen]).std())


def _check_sizes(images: Pixels) -> None:
    if not len(images) or images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"images to train on are uint8 [n, {SIZE}, {SIZE}, 3], but these are {images.dtype} "
            f"{list(images.shape)}: render the corpus anew"
        )
