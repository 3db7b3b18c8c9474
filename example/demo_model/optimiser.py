"""One step downhill: AdamW, whose learning rate rises over the first steps and then falls along a half cosine."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)  # the second is below AdamW's usual one: a training has a few thousand steps
LARGEST_NORM = 1.0  # of all gradients together


@dataclass(frozen=True)
class Rates:
    """Learning rates from a stage's start to its end, the first of them after `warm_up` steps."""

    first: float
    last: float
    warm_up: int

    def at(self, step: int, progress: float) -> float:
        """That of a step (0, 1, ...) at `progress` (0..1) of the stage."""
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return (self.last + (self.first - self.last) * cosine) * min(1.0, (step + 1) / self.warm_up)


class Optimiser:
    """AdamW for some parameters; it counts its steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], rates: Rates, weight_decay: float) -> None:
        self.steps = 0
        self._parameters = list(parameters)
        self._rates = rates
        self._adam = torch.optim.AdamW(self._parameters, betas=BETAS, weight_decay=weight_decay, fused=True)

    def step(self, loss: Tensor, progress: float) -> None:
        """Go against the gradients of `loss`, a scalar."""
        for group in self._adam.param_groups:
            group["lr"] = self._rates.at(self.steps, progress)
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, LARGEST_NORM)
        self._adam.step()
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The moments and the count, as entries for a stage's state."""
        return {"optimizer": self._adam.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take those entries from a stage's state."""
        self._adam.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
