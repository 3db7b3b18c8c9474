"""Training the UNet, its ControlNet and the text encoder together, on latents."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from example.demo_model import networks
from example.demo_model.binding import HEAD_WEIGHTS, RESIDUAL, BindingHeads, Labels
from example.demo_model.consistency import IMAGE_WEIGHTS, Consistency
from example.demo_model.lessons import Lessons
from example.demo_model.optimiser import Optimiser, Rates

WEIGHT_DECAY = 1e-2
AVERAGED = 0.998  # of the averaged weights stays at a step, once there have been some hundred
CUDA_BATCH = 8  # times as large as on a processor

NO_CAPTION = 0.10  # of the images: guidance needs predictions without one
NO_CONTROL = 0.05  # of the images: the UNet learns what images are
NOISY, CLEAN = (650, 1000), (0, 300)  # timesteps at which colours are decided, and lines and calm fills
PURE = 0.08  # of the images: noise alone, as sampling begins with it, where the schedule's last step has some image
PURE_ALPHA = 1e-6
WEIGHTS = {**HEAD_WEIGHTS, **IMAGE_WEIGHTS}  # of all losses but that of v, which is 1


@dataclass(frozen=True)
class Recipe:
    """A stage's name, batch and learning rates, and its shares of NOISY and of CLEAN timesteps; others are anywhere.

    Signal-to-noise ratios well above `snr_scale` count less, as those steps only sharpen.
    """

    name: str
    batch: int
    rates: Rates
    noisy: float
    clean: float
    snr_scale: float


HALF_SIZE = Recipe("half size", 16, Rates(7e-4, 3e-4, warm_up=150), noisy=0.5, clean=0.0, snr_scale=20)
FULL_SIZE = Recipe("full size", 8, Rates(4e-4, 1.5e-4, warm_up=100), noisy=0.4, clean=0.1, snr_scale=20)
FINISH = Recipe("finish", 8, Rates(2.2e-4, 1e-6, warm_up=20), noisy=0.3, clean=0.4, snr_scale=100)


class Networks(nn.Module):
    """The trained networks: three that are exported, and heads that are not."""

    def __init__(self, tokenizer: CLIPTokenizer, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_encoder: CLIPTextModel = networks.text_encoder(tokenizer)
            self.unet: UNet2DConditionModel = networks.unet()
            networks.close_residual_branches(self.unet)
            self.controlnet: ControlNetModel = networks.controlnet(self.unet)
            self.heads = BindingHeads()
        self.heads.watch(self.unet)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, hints: Tensor, controlled: Tensor) -> "Output":
        """Predict v for latents [n, 6, h, w] under hints [n, 3, 4 h, 4 w]; `controlled` [n] is 0 to ignore one."""
        states = self.text_encoder(tokens)[0]
        residuals, middle = self.controlnet(noisy, timesteps, states, hints, return_dict=False)
        gate = controlled.view(-1, 1, 1, 1)
        predicted = self.unet(
            noisy,
            timesteps,
            states,
            down_block_additional_residuals=[residual * gate for residual in residuals],
            mid_block_additional_residual=middle * gate,
            return_dict=False,
        )[0]
        return Output(predicted.float(), states, residuals[RESIDUAL])

    def take(self, folder: Path, tokenizer: CLIPTokenizer) -> None:
        """Begin with the weights of a model of the same sizes; of its words with those that both tokenizers have."""
        for name in ("unet", "controlnet"):
            own = getattr(self, name)
            own.load_state_dict(type(own).from_pretrained(folder / name, dtype=torch.float32).state_dict())
        words = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
        weights = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).state_dict()
        embeddings = "embeddings.token_embedding.weight"
        mine, theirs = self.text_encoder.state_dict()[embeddings].clone(), weights[embeddings]
        for word, number in tokenizer.get_vocab().items():
            if word in words:
                mine[number] = theirs[words[word]]
        self.text_encoder.load_state_dict(weights | {embeddings: mine})


class Output(NamedTuple):
    """The prediction [n, 6, h, w], and two layers' features that heads read."""

    predicted: Tensor
    states: Tensor
    residual: Tensor


class DiffusionStage:
    """Trains `networks` on lessons of one size, and keeps a moving average of their weights, `averaged`.

    Both are changed in place, so that a next stage goes on with them. With `consistency`, what they predict is also
    judged as an image.
    """

    def __init__(
        self,
        recipe: Recipe,
        trained: Networks,
        averaged: Networks,
        lessons: Lessons,
        seconds: float,
        seed: int,
        consistency: Consistency | None = None,
    ) -> None:
        self.name, self.seconds = recipe.name, seconds
        self.networks, self.averaged = trained, averaged
        self._lessons, self._recipe, self._consistency = lessons, recipe, consistency
        self._device = next(trained.parameters()).device
        self._optimiser = Optimiser(trained.parameters(), recipe.rates, WEIGHT_DECAY)
        self._alphas = networks.noise_schedule().alphas_cumprod.to(self._device)
        self._rng = np.random.default_rng(seed)
        self._noise_rng = torch.Generator(self._device).manual_seed(seed)

    def step(self, progress: float) -> dict[str, float]:
        """One step of the optimiser; the losses of v, of each head, and of the image if there were any to judge."""
        v, parts = self._losses()
        loss = v + sum(WEIGHTS[name] * part for name, part in parts.items())
        self._optimiser.step(loss, progress)
        self._average()
        return {"v": v.item(), **{name: part.item() for name, part in parts.items()}}

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        count = self._recipe.batch * (CUDA_BATCH if self._device.type == "cuda" else 1)
        captioned = self._rng.random(count) >= NO_CAPTION
        controlled = self._rng.random(count) >= NO_CONTROL
        batch = self._lessons.batch(self._rng.integers(len(self._lessons), size=count), captioned, self._device)
        timesteps = torch.from_numpy(self._timesteps(count)).to(self._device)
        pure = (timesteps == len(self._alphas) - 1).view(-1, 1, 1, 1)
        alpha = torch.where(pure, PURE_ALPHA, self._alphas[timesteps].view(-1, 1, 1, 1))
        noise = torch.randn(batch.latents.shape, generator=self._noise_rng, device=self._device)
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
        wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
        gate = torch.from_numpy(controlled).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            output = self.networks(noisy, timesteps, batch.tokens, batch.hints, gate.float())
        weight = 1 / (1 + alpha / (1 - alpha) / self._recipe.snr_scale)
        v = (weight * (output.predicted - wanted) ** 2).mean()
        seen = gate & torch.from_numpy(captioned).to(self._device)
        labels = Labels(batch.kinds, batch.colours, batch.words, seen)
        parts = self.networks.heads.losses(output.states, output.residual, labels)
        if self._consistency is not None:
            clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * output.predicted
            parts |= self._consistency.losses(clean, batch, gate, timesteps, self._rng)
        return v, parts

    def _timesteps(self, count: int) -> npt.NDArray[np.int64]:
        rng, last = self._rng, len(self._alphas)
        kind = rng.random(count)
        found = rng.integers(0, last, count)
        found = np.where(kind < self._recipe.noisy, rng.integers(*NOISY, count), found)
        found = np.where(kind > 1 - self._recipe.clean, rng.integers(*CLEAN, count), found)
        return np.where(rng.random(count) < PURE, last - 1, found)

    @torch.no_grad()
    def _average(self) -> None:
        kept = min(AVERAGED, (self._optimiser.steps + 1) / (self._optimiser.steps + 20))
        for average, weight in zip(self.averaged.parameters(), self.networks.parameters(), strict=True):
            average.lerp_(weight, 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        """Weights, their averages, the optimiser's moments, and both random generators."""
        return {
            "networks": self.networks.state_dict(),
            "averaged": self.averaged.state_dict(),
            **self._optimiser.state_dict(),
            "rng": self._rng.bit_generator.state,
            "noise_rng": self._noise_rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to such a state."""
        self.networks.load_state_dict(state["networks"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state)
        self._rng.bit_generator.state = state["rng"]
        self._noise_rng.set_state(state["noise_rng"])


def with_average(
    tokenizer: CLIPTokenizer, seed: int, device: torch.device, start: Path | None = None
) -> tuple[Networks, Networks]:
    """Networks, new or with the weights of a model's folder, and the copy that is to hold their average."""
    trained = Networks(tokenizer, seed)
    if start:
        trained.take(start, tokenizer)
    trained.to(device)
    trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch documents it
    return trained, deepcopy(trained).requires_grad_(False)
