"""The small model's tokenizer: CLIP's byte-pair encoding, with one token for every word it was trained on."""

import json
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Merges = list[tuple[str, str]]
"""The pieces that become one, the first merge first."""

END = "</w>"
"""The mark of a piece that ends a word."""

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's own tokens: the second also pads."""


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# Each word costs about two entries of the vocabulary, few where it shares its pieces with others: those were preferred.
NOUNS: tuple[str, ...] = listed(
    """
    animal apple arch arm arrow baby bag ball basket bat bean bear bed bee bell bench bike bird boat book boot bottle
    bowl boy bread bridge building bus cake candle car carrot cat chair church city clock cloud coat coin corn couch
    cow crown cup deer desk dog door dragon dress duck ear egg eye face fan farm field fire fish flag flower forest fox
    frog ghost girl glass grape grass hair hand hat head hen hill horse house jar jet kettle key king kite lake lamb
    lamp landscape leaf leg lemon lion logo man mask monkey moon mountain mouse nest owl pan panda path pear pen person
    photo piano pig planet plant plate portrait queen river road robot rock rocket room rope sail sand sea shell shield
    ship shirt shoe sky snake stone sun tent tower town train tray tree van wall water wave window wing woman
    """
)
"""Common things that prompts ask for: captions say them in place of a shape, so that they, too, take a colour."""

WORDS: tuple[str, ...] = listed(
    """
    a an and as art at between big bright by color colored colour dark four from gold grey image in large light of old
    on one over pale people plain small style the three to two under with
    """
)
"""Other words of people's prompts, whether captions have them or not."""


def train_tokenizer(captions: Iterable[str], folder: Path) -> "CLIPTokenizer":
    """Train on the words of captions, of `NOUNS` and of `WORDS`; save into a folder, and return what it loads as.

    Every one of these words becomes one token; other text is split into pieces, down to single bytes. What is saved
    depends on which words there are, not on how often or in what order captions say them.
    """
    from transformers import CLIPTokenizer

    from example.demo_model.networks import TEXT_LENGTH

    merges = _merges(_words(chain(captions, NOUNS, WORDS)))
    CLIPTokenizer(vocab=_vocabulary(merges), merges=merges, model_max_length=TEXT_LENGTH).save_pretrained(folder)
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return loaded


def _words(texts: Iterable[str]) -> list[str]:
    return sorted(set(chain.from_iterable(re.findall(r"[^\W\d_]+", text.lower()) for text in texts)))


def _merges(words: list[str]) -> Merges:
    """Every merge that whole words take. Each word counts once: so pieces that many words share are merged first."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    letters = _alphabet()
    tokenizer = Tokenizer(BPE(end_of_word_suffix=END))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(letters) + sum(map(len, words)),  # enough for all: it ends when no pair is left
        initial_alphabet=letters,
        # The trainer would number these as it meets them, in an order that changes, and so break ties differently.
        special_tokens=[letter + END for letter in letters],
        end_of_word_suffix=END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _vocabulary(merges: Merges) -> dict[str, int]:
    """Token numbers in CLIP's order: bytes, bytes that end a word, merged pieces, and the two special tokens."""
    letters = _alphabet()
    endings = [letter + END for letter in letters]
    pieces = [left + right for left, right in merges]
    tokens = dict.fromkeys([*letters, *endings, *pieces, *SPECIAL])  # two merges may come to the same piece
    return {token: number for number, token in enumerate(tokens)}


def _alphabet() -> list[str]:
    """The 256 characters that stand for bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
