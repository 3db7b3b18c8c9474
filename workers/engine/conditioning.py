"""The client's words as tensors: tokens on any thread, text features and keys/values on the device's thread."""

import math
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.config import Prompting
from workers.engine.constants import keys_values, keys_values_widths
from workers.engine.contract import BadOptionError
from workers.engine.graphs import Graphs
from workers.engine.streams import upload

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
TEXT_TOKENS = 77  # positions of CLIP's text encoder


class Tokens:
    """Turns prompts into token numbers. May be called from several threads at once.

    Raises BadOptionError for text that is not Unicode: half a surrogate pair, which JSON and Python can hold.
    """

    def __init__(self, tokenizer: "CLIPTokenizer", prompting: Prompting) -> None:
        self._tokenizer = tokenizer
        self._prompting = prompting
        self._lock = threading.Lock()

    def positive(self, text: str) -> tuple[int, ...]:
        """The client's text with the suffix after it: 77 numbers. What does not fit is cut off, the suffix first."""
        return self._encode(text + self._prompting.suffix)

    def negative(self, text: str | None = None) -> tuple[int, ...]:
        """What the picture should not show; as configured if nothing else is said."""
        return self._encode(self._prompting.negative if text is None else text)

    def _encode(self, text: str) -> tuple[int, ...]:
        if _LONE_SURROGATE.search(text):
            raise BadOptionError("The prompt contains half a surrogate pair, which is not a character: remove it.")
        # Setting the padding borrows the tokenizer; from a second thread that fails with "Already borrowed".
        with self._lock:
            encoded = self._tokenizer(text, padding="max_length", truncation=True, max_length=TEXT_TOKENS)
        return tuple(encoded.input_ids)


class TextEncoder:
    """The text encoder, and the projections of both networks that make keys and values of what it understood."""

    def __init__(
        self, text_encoder: "CLIPTextModel", unet: "UNet2DConditionModel", controlnet: "ControlNetModel"
    ) -> None:
        self._text_encoder = text_encoder
        self._networks = (unet, controlnet)
        self.width = sum(sum(keys_values_widths(network)) for network in self._networks)
        # Left to itself, transformers makes a mask while a graph is recorded, and none at other times (`is_tracing`):
        # then other kernels would be recorded than were rehearsed.
        masked = torch.full((1, 1, TEXT_TOKENS, TEXT_TOKENS), -math.inf, dtype=unet.dtype)
        self._causal = masked.triu(1).to(text_encoder.device)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Keys and values [77, width] of tokens [1, 77], the UNet's layers before the ControlNet's."""
        features = self._text_encoder(numbers, self._causal)[0][0]
        return torch.cat([keys_values(network, features) for network in self._networks], dim=1)


class TextConditioning:
    """Keys and values [77, `width`] of every cross-attention of both networks: made by `encode` of tokens [1, 77].

    Only those of the `configured` negative prompt are kept. A cache of clients' prompts would tell a client, by how
    long its request takes, whether another has sent the same prompt lately. And it would save little: 3 ms of the
    small model's 1,000, and less of a full-size model's time.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        configured: tuple[int, ...],
    ) -> None:
        self.width = width
        self._encoder = encode
        self._configured = configured
        self._kept: Tensor | None = None
        # Where a graph of the text encoder reads and writes.
        self._numbers = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64, device=device)
        self._flat = torch.zeros(TEXT_TOKENS, width, dtype=dtype, device=device)

    def keys_values(self, tokens: tuple[int, ...], graphs: Graphs | None = None) -> Tensor:
        """[77, total], the UNet's layers before the ControlNet's; by a graph, given `graphs`. Not to be written to."""
        if tokens != self._configured:
            return self._compute(tokens, graphs)
        if self._kept is None:
            self._kept = self._compute(tokens, graphs)
        return self._kept

    def _compute(self, tokens: tuple[int, ...], graphs: Graphs | None) -> Tensor:
        encode = self._encode if graphs is None else graphs.of("text", self._encode)
        self._numbers.copy_(upload(torch.tensor([tokens]), self._numbers.device))
        encode()
        return self._flat.clone()

    def _encode(self) -> None:
        self._flat.copy_(self._encoder(self._numbers))
