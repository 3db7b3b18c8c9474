"""The client's words as tensors: tokens on any thread, text features and keys/values on the device's thread."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.config import Prompting
from workers.engine.constants import keys_values

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_TOKENS = 77  # positions of CLIP's text encoder
_CACHED_PROMPTS = 32  # 5.6 MB each with SD 1.5 in float16


class Tokens:
    """Turns prompts into token numbers. May be called from several threads at once."""

    def __init__(self, tokenizer: "CLIPTokenizer", prompting: Prompting) -> None:
        self._tokenizer = tokenizer
        self._prompting = prompting
        self._lock = threading.Lock()

    def positive(self, text: str) -> tuple[int, ...]:
        """The client's text with the suffix after it: 77 numbers. What does not fit is cut off, the suffix first."""
        return self._encode(text + self._prompting.suffix)

    def negative(self) -> tuple[int, ...]:
        """What the picture should not show."""
        return self._encode(self._prompting.negative)

    def _encode(self, text: str) -> tuple[int, ...]:
        # Setting the padding borrows the tokenizer; from a second thread that fails with "Already borrowed".
        with self._lock:
            encoded = self._tokenizer(text, padding="max_length", truncation=True, max_length=TEXT_TOKENS)
        return tuple(encoded.input_ids)


class TextConditioning:
    """Keys and values of every cross-attention of both networks, by prompt. The last few prompts' are kept."""

    def __init__(
        self, text_encoder: "CLIPTextModel", unet: "UNet2DConditionModel", controlnet: "ControlNetModel"
    ) -> None:
        self._text_encoder = text_encoder
        self._networks = (unet, controlnet)
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def keys_values(self, tokens: tuple[int, ...]) -> Tensor:
        """[77, total], the UNet's layers before the ControlNet's. Not to be written to."""
        if tokens not in self._kept:
            self._kept[tokens] = self._compute(tokens)
        self._kept.move_to_end(tokens)
        if len(self._kept) > _CACHED_PROMPTS:
            self._kept.popitem(last=False)
        return self._kept[tokens]

    def _compute(self, tokens: tuple[int, ...]) -> Tensor:
        numbers = torch.tensor([tokens], device=self._text_encoder.device)
        features = self._text_encoder(numbers)[0][0]
        return torch.cat([keys_values(network, features) for network in self._networks], dim=1)
