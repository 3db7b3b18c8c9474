"""The seam between the engine and what runs the networks: torch (`model.py`), or another runtime (`runtimes/`).

Slots, batches, the sampler's matrix and all state between steps belong to the engine, whatever runs the networks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from workers.engine.conditioning import TextConditioning, Tokens
from workers.engine.denoiser import Predict
from workers.engine.networks import Attend
from workers.engine.plan import Plans
from workers.engine.streams import SideStream

Decode: TypeAlias = Callable[[Tensor], Tensor]  # latents [C, h, w] to RGB uint8 [height, width, 3], on the device


@dataclass(frozen=True, eq=False, slots=True)
class ModelFunctions:
    """The functions that run a step and the VAE, and what makes faster ones, if anything does.

    Only what torch runs can be recorded as graphs, and run on a side stream. `fused`: with group norm kernels of ours.
    """

    predict: Callable[[SideStream], Predict]
    decode: Decode
    by_torch: bool = True
    fused: bool = False
    faster: "Faster | None" = None


class Faster(Protocol):
    """Makes faster functions in the compiler's thread, while the plain ones serve."""

    @property
    def automatic(self) -> bool:
        """Whether it is used by default, without a configuration that asks for it."""

    @property
    def everywhere(self) -> bool:
        """Whether it also serves sizes that no configuration names, once they are used."""

    def functions(self) -> ModelFunctions:
        """Functions that are compiled at their first call with new shapes."""

    def prepare(self) -> None:
        """Called by the compiler's thread before that, for what takes long but cannot end this process."""

    def serving(self) -> AbstractContextManager[bool]:
        """Entered by the engine's thread to call a faster function; whether it may do so within."""

    def compiling(self) -> AbstractContextManager[None]:
        """Entered by the compiler's thread around such a call."""

    def trying(self) -> AbstractContextManager[None]:
        """Entered by the engine's thread around a later call that must not compile anything."""


class AnyModel(Protocol):
    """All that the engine needs of a model, on its device."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def text(self) -> TextConditioning: ...

    @property
    def plans(self) -> Plans: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def rounding_dtype(self) -> torch.dtype:
        """The number format whose rounding explains how much two ways to run the networks may differ."""

    @property
    def time_width(self) -> int:
        """Channels of both networks' time projections."""

    @property
    def hint_channels(self) -> int:
        """Channels of a hint embedding."""

    @property
    def latent_channels(self) -> int:
        """Channels of latents: 4 with Stable Diffusion."""

    @property
    def latent_scale(self) -> int:
        """Pixels along a side of one latent: 8 with Stable Diffusion."""

    def times(self, timesteps: Tensor) -> Tensor:
        """The time projections of both networks, the UNet's first, at timesteps [N], float32: [N, total]."""

    def hint(self, edges: Tensor) -> Tensor:
        """The hint embedding [channels, h, w] of edges [height, width] in 0 .. 1."""

    def functions(self, attend: Attend, mode: str | None) -> ModelFunctions:
        """The model's functions. `attend` and torch.compile's `mode` apply where torch runs them."""
