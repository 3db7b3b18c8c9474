"""Heads that are trained along and thrown away: they make the networks say early which colour goes where.

Alone, the noise's loss learns edges in minutes and takes hours to put colours on the shapes that they belong to. A head
reads a layer's features and names what is at each of their places, so that the layer has to know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from example.demo_model.corpus import UNLABELLED
from example.demo_model.networks import CHANNELS, TEXT_WIDTH
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS

MIDDLE = CHANNELS[2]  # channels where shapes meet words: at a sixteenth of the image's resolution
RESIDUAL = 5  # of the ControlNet's, the last with MIDDLE channels before it is halved
NOTHING = 0.25  # weight of the class "no shape", as most places have none
HEAD_WEIGHTS: Mapping[str, float] = {"word": 0.05, "kind": 0.1, "colour": 0.15}  # of the losses


@dataclass(frozen=True)
class Labels:
    """Of a batch: `kinds` and `colours` [n, c, c] by cell, UNLABELLED where there is none; a row for each word.

    `words` [m, 4] are: index in the batch, index of the token, colour, kind. `seen` [n] is false where the caption or
    the control was left out, and the image cannot be known.
    """

    kinds: Tensor
    colours: Tensor
    words: Tensor
    seen: Tensor


class BindingHeads(nn.Module):
    """Linear classifiers of features. `watch` a UNet first: they read the attention in the middle of its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.control_kind = nn.Conv2d(MIDDLE, 1 + len(SHAPES), 1)
        self.unet_kind = nn.Conv2d(MIDDLE, 1 + len(SHAPES), 1)
        self.unet_colour = nn.Conv2d(MIDDLE, len(COLOURS), 1)
        self.word_colour = nn.Linear(TEXT_WIDTH, len(COLOURS))
        self.word_kind = nn.Linear(TEXT_WIDTH, 1 + len(SHAPES))
        self._before = self._after = torch.empty(0)

    def watch(self, unet: UNet2DConditionModel) -> None:
        """Keep what goes into this UNet's attention and what comes out, at every forward."""
        unet.up_blocks[1].attentions[0].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Sequence[Tensor], output: tuple[Tensor, ...] | Tensor) -> None:
        self._before = inputs[0]
        self._after = output[0] if isinstance(output, tuple) else output

    def losses(self, states: Tensor, residual: Tensor, labels: Labels) -> dict[str, Tensor]:
        """By name, for text states [n, 77, 96] and a ControlNet residual [n, 80, s, s] of the forward just made."""
        weight = torch.ones(1 + len(SHAPES), device=states.device)
        weight[0] = NOTHING
        kinds = self._matched(labels.kinds, residual)
        unseen = torch.where(labels.seen[:, None, None], kinds, UNLABELLED)
        colours = torch.where(labels.seen[:, None, None], self._matched(labels.colours, residual), UNLABELLED)
        return {
            "word": self._word_loss(states, labels.words),
            "kind": _loss(self.control_kind(residual), kinds, weight)
            + _loss(self.unet_kind(self._before), unseen, weight),
            "colour": _loss(self.unet_colour(self._after), colours),
        }

    def _word_loss(self, states: Tensor, words: Tensor) -> Tensor:
        if not len(words):
            return states.new_zeros(())
        index, token, colour, kind = words.unbind(1)
        found = states[index, token].float()
        return F.cross_entropy(self.word_colour(found), colour) + F.cross_entropy(self.word_kind(found), kind)

    @staticmethod
    def _matched(labels: Tensor, features: Tensor) -> Tensor:
        """Labels at the features' resolution; none where finer ones disagree."""
        factor = labels.shape[-1] // features.shape[-1]
        if factor <= 1:
            return labels
        blocks = labels.unfold(1, factor, factor).unfold(2, factor, factor).flatten(3)
        return torch.where((blocks == blocks[..., :1]).all(-1), blocks[..., 0], UNLABELLED)


def _loss(scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy over what is labelled; 0 if nothing is."""
    loss = F.cross_entropy(scores.float(), labels, weight, ignore_index=UNLABELLED, reduction="sum")
    counted = torch.ones(scores.shape[1], device=scores.device) if weight is None else weight
    total = counted[labels[labels != UNLABELLED]].sum()
    return loss / total.clamp(min=1)
