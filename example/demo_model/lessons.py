"""Scenes as the diffusion networks take them: latents, edge maps and tokens, of one size, worked out once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from example.demo_model.corpus import HINTED, Corpus
from example.demo_model.drawing import SIZE, Pixels, edges
from example.demo_model.networks import FACTOR
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.scenes import Word
from example.demo_model.vae import encode

ENCODED_AT_ONCE = 512  # images that are resized and held at a time


@dataclass(frozen=True)
class Batch:
    """`latents` [n, 6, s, s], `hints` [n, 3, 4 s, 4 s], `tokens` [n, 77], and what the heads are taught; `images`
    uint8 [n, 256, 256, 3], and whether each is `inked` [n].
    """

    latents: Tensor
    hints: Tensor
    tokens: Tensor
    images: Tensor
    inked: Tensor
    kinds: Tensor
    colours: Tensor
    words: Tensor


class Lessons:
    """The scenes of a corpus, encoded."""

    def __init__(self, corpus: Corpus, encoded: "Encoded", tokenizer: CLIPTokenizer) -> None:
        self._corpus, self._latents, self._hints = corpus, encoded.latents, encoded.hints.numpy()
        self._size = FACTOR * self._latents.shape[-1]
        self._tokens = tokenised(tokenizer, corpus.captions)
        self._nothing = tokenised(tokenizer, [""])[0]
        self._words = [_placed(tokenizer, *each) for each in zip(self._tokens, corpus.words, strict=True)]

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, chosen: npt.NDArray[np.int64], captioned: npt.NDArray[np.bool_], device: torch.device) -> Batch:
        """Those lessons, without their captions where `captioned` [n] is false."""
        words = [(row, *word) for row, index in enumerate(chosen) if captioned[row] for word in self._words[index]]
        tokens = torch.where(torch.from_numpy(captioned)[:, None], self._tokens[chosen], self._nothing)
        return Batch(
            latents=self._latents[chosen].to(device, torch.float32),
            hints=self._unpacked(chosen).to(device),
            tokens=tokens.to(device),
            images=torch.from_numpy(self._corpus.images[chosen]).to(device),
            inked=torch.from_numpy(self._corpus.inked[chosen] > 0).to(device),
            kinds=torch.from_numpy(self._corpus.kinds[chosen].astype(np.int64)).to(device),
            colours=torch.from_numpy(self._corpus.colours[chosen].astype(np.int64)).to(device),
            words=torch.tensor(words, dtype=torch.int64, device=device).view(-1, 4),
        )

    def _unpacked(self, chosen: npt.NDArray[np.int64]) -> Tensor:
        bits = np.unpackbits(self._hints[chosen], axis=1).reshape(len(chosen), 1, self._size, self._size)
        return torch.from_numpy(bits).float().expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Encoded:
    """`latents` float16 [n, 6, s, s], and edge maps as bits: `hints` uint8 [n, 4 s * 4 s / 8]."""

    latents: Tensor
    hints: Tensor

    @classmethod
    def of(cls, corpus: Corpus, size: int, vae: AutoencoderKL, cache: Path) -> "Encoded":
        """A corpus at `size` pixels a side. It is written to the file `cache`, from which a later call takes it."""
        if not cache.exists():
            starts = range(0, len(corpus.images), ENCODED_AT_ONCE)
            parts = [_encoded(corpus, slice(start, start + ENCODED_AT_ONCE), size, vae) for start in starts]
            latents, hints = (torch.cat(part) for part in zip(*parts, strict=True))
            temporary = cache.with_suffix(".tmp")
            torch.save({"latents": latents, "hints": hints}, temporary)
            temporary.replace(cache)
        return cls(**torch.load(cache, weights_only=True))


def _encoded(corpus: Corpus, some: slice, size: int, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    images, hints = corpus.images[some], corpus.hints[some]
    if size != SIZE:
        images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
        hints = np.stack([_sized(*each, size) for each in zip(images, hints, corpus.inked[some], strict=True)])
    return encode(vae, images).half(), torch.from_numpy(np.array(hints))


def _sized(image: Pixels, hint: npt.NDArray[np.uint8], inked: bool, size: int) -> npt.NDArray[np.uint8]:
    """The edges of a smaller image, or of a drawing those that it was made from, as bits."""
    if not inked:
        return np.packbits(edges(image, *HINTED))
    factor = SIZE // size
    return np.packbits(np.unpackbits(hint).reshape(size, factor, size, factor).max((1, 3)))


def tokenised(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Tokens [n, 77] of texts, padded as the pipeline does."""
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(encoded.input_ids)


def _placed(tokenizer: CLIPTokenizer, tokens: Tensor, words: Sequence[Word]) -> list[tuple[int, int, int]]:
    """(index of its token, colour, kind) of each word that is in the caption as one token."""
    listed, vocabulary = tokens.tolist(), tokenizer.get_vocab()
    numbers = [(vocabulary.get(f"{word.noun}</w>"), word) for word in words]
    return [
        (listed.index(number), COLOURS.index(word.colour), 1 + SHAPES.index(word.kind))
        for number, word in numbers
        if number in listed
    ]
