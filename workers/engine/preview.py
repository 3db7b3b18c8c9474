"""Colours of latents without the VAE: a linear map, fitted to the VAE's output for a few flat patches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.runtime import Decode

# In a patch each channel has one of two values. With 4 channels there is one patch for each of the 16 combinations.
# Four patches make an image in which each channel's mean is zero, as a decoder normalises over the whole image.
_VALUE = 0.75  # real latents have a variance of about one, but far from zero colours saturate
_PATCH, _MARGIN = 6, 2  # in latents; colours run into each other at the margins, so these are left out
_QUARTERS = torch.tensor(((1, 1), (1, -1), (-1, 1), (-1, -1)))  # signs of each half of the channels
_MOST_IMAGES = 32


@dataclass(frozen=True, eq=False, slots=True)
class Colours:
    """RGB, 0 .. 255, of a latent: `bias` [3] plus the latent times `weights` [C, 3]. Float32, on the device."""

    weights: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """RGB uint8 [h, w, 3] of latents [C, h, w], float32. The host does not wait for it."""
        colours = torch.addmm(self.bias, latents.flatten(1).T, self.weights)
        return colours.round_().clamp_(0, 255).to(torch.uint8).view(*latents.shape[1:], 3)


@torch.no_grad()
def fit(decode: Decode, channels: int, device: torch.device) -> Colours:
    """Fit the map to a VAE's output for the patches, by least squares; for latents of at most 33 channels."""
    signs = _signs(channels)
    made = torch.stack([_patches(decode(_image(four).to(device))) for four in signs.float() * _VALUE])
    # Over the patches, channels are orthogonal to each other and to the bias, so each weight is a mean.
    weights = torch.einsum("pqc, pqr -> cr", signs.double(), made) / (signs[..., 0].numel() * _VALUE)
    return Colours(weights.float().to(device), made.mean((0, 1)).float().to(device))


def _signs(channels: int) -> Tensor:
    """A sign for each channel in each patch [images, 4, channels], each channel's orthogonal to all others'."""
    bits = min(max(channels - 2, 0), _MOST_IMAGES.bit_length() - 1)
    # A channel's sign in an image is the parity of some bits of the image's number: of other bits for each channel with
    # the same signs in the quarters, and of one bit as long as there are enough, as then all combinations come.
    codes = sorted(range(2**bits), key=lambda code: (code.bit_count(), code))
    half = (channels + 1) // 2
    own = [*codes[:half], 0, *codes[half : channels - 1]]
    images = torch.tensor([[(-1) ** (code & n).bit_count() for code in own] for n in range(2**bits)])
    return images[:, None] * _QUARTERS[:, [n // half for n in range(channels)]]


def _image(quarters: Tensor) -> Tensor:
    """Latents [C, 2P, 2P] of four flat patches [4, C]."""
    latents: Tensor = quarters.T.unflatten(1, (2, 2)).repeat_interleave(_PATCH, 1).repeat_interleave(_PATCH, 2)
    return latents


def _patches(pixels: Tensor) -> Tensor:
    """The mean colours [4, 3], float64, of the middles of an image's quarters."""
    scale = pixels.shape[0] // (2 * _PATCH)
    quarters = pixels.cpu().double().unflatten(0, (2, -1)).unflatten(2, (2, -1))  # [2, side, 2, side, 3]
    middle = slice(_MARGIN * scale, -_MARGIN * scale)
    means: Tensor = quarters[:, middle, :, middle].mean((1, 3)).flatten(0, 1)
    return means
