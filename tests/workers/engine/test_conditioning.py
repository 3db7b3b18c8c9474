import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from tests.workers.engine import demo
from workers.engine.conditioning import Prompt, TextConditioning, TextEncoder, Tokens, keys_values, keys_values_widths
from workers.engine.config import Prompting


def tokens(suffix: str = "", negative: str = "") -> Tokens:
    return Tokens(demo.parts().tokenizer, Prompting(suffix=suffix, negative=negative))


@cache
def of_transformers() -> Any:
    return CLIPTokenizer.from_pretrained(demo.FOLDER / "tokenizer")


def plain(text: str) -> tuple[int, ...]:
    encoded = of_transformers()(text, padding="max_length", truncation=True, max_length=77)
    return tuple(encoded.input_ids)


class CountingEncoder:
    """The demo's text encoder, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.device = torch.device("cpu")

    def __call__(self, numbers: Tensor, mask: Tensor) -> Any:
        self.calls += 1
        with torch.no_grad():
            return demo.parts().text_encoder(numbers, mask)


def text_conditioning(configured: str = "") -> tuple[TextConditioning, CountingEncoder]:
    encoder = CountingEncoder()
    whole = TextEncoder(encoder, demo.parts().unet, demo.parts().controlnet)
    return TextConditioning(whole, whole.width, torch.float32, encoder.device, plain(configured)), encoder


def test_the_suffix_follows_the_clients_words() -> None:
    assert tokens(suffix=", neon").positive("a red circle").tokens == plain("a red circle, neon")
    assert tokens(suffix=", neon", negative="gray").negative().tokens == plain("gray")


CONTROLS = "".join(map(chr, range(32)))
BACKWARDS = "\u202etoor \u0645\u0631\u0628\u0639 \u05d0\u05d3\u05d5\u05dd"


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "word " * 500, "\u00e9\u4e2d\U0001f600", "\0", "<|endoftext|>"),
        *(CONTROLS, BACKWARDS, "\ufffe\uffff\U0010ffff", "a red circle " * 8000, "\U0001f388" * 25_600),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_any_text_becomes_77_tokens(text: str) -> None:
    assert tokens(suffix=", neon").positive(text).tokens == plain(f"{text}, neon")


def test_many_threads_may_ask_at_once() -> None:
    asked = [f"a red circle number {n}" * (n % 7 + 1) for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(tokens().positive, asked))
    assert [prompt.tokens for prompt in made] == [plain(text) for text in asked]


def test_a_prompt_becomes_the_keys_and_values_of_both_networks() -> None:
    text, _ = text_conditioning()
    flat = text.keys_values(plain("a red circle"))
    networks = (demo.parts().unet, demo.parts().controlnet)
    assert flat.shape == (77, sum(sum(keys_values_widths(network)) for network in networks))


def test_whether_somebody_sent_a_prompt_before_does_not_show() -> None:
    """A prompt that is known takes the same work as one that is new."""
    text, encoder = text_conditioning()
    first, second = (text.keys_values(plain("a")) for _ in range(2))
    assert encoder.calls == 2
    assert torch.equal(first, second)


def test_the_configured_negative_prompt_is_encoded_once() -> None:
    text, encoder = text_conditioning(configured="gray")
    assert text.keys_values(plain("gray")) is text.keys_values(plain("gray"))
    assert encoder.calls == 1


@torch.no_grad()
def test_the_text_is_understood_as_the_text_encoder_alone_understands_it() -> None:
    """It makes the mask itself that it is given here."""
    text, _ = text_conditioning()
    features = demo.parts().text_encoder(torch.tensor([plain("a red circle")]))[0][0]
    networks = (demo.parts().unet, demo.parts().controlnet)
    expected = torch.cat([keys_values(network, features) for network in networks], dim=1)
    assert demo.relative_error(text.keys_values(plain("a red circle")), expected) <= 1e-5


# --------------------------------------------------------------------------------------- texts that are not read whole

WORDS = ("red", "blue", "gray", "star", "circle", "heart")  # each is one token of the small model


def words(count: int) -> str:
    return " ".join(WORDS[n % len(WORDS)] for n in range(count))


def test_a_prompt_that_fits_gets_no_warning() -> None:
    assert tokens().positive(words(75)).warning == tokens().negative(words(75)).warning == ""
    assert tokens(suffix=", neon").positive(words(73)).warning == ""


def test_a_text_that_is_cut_is_quoted_from_where_it_is_cut() -> None:
    text = f"{words(75)} A Green\u2003ring, and \u00c9toile!"
    assert tokens().positive(text).tokens == plain(words(75))
    prompt, negative = tokens().positive(text), tokens().negative(text)
    assert prompt.warning.startswith("The prompt has ")
    assert prompt.warning.endswith('; the model reads the first 75. Not read: "A Green\u2003ring, and \u00c9toile!".')
    assert negative.warning == prompt.warning.replace("The prompt", "The negative prompt")


def test_the_number_of_tokens_is_that_of_the_text() -> None:
    assert " has 76 tokens; " in tokens().positive(words(76)).warning
    assert " has 90 tokens; " in tokens(suffix=", neon").positive(words(90)).warning


def test_a_word_that_is_cut_in_the_middle_is_quoted_from_there() -> None:
    (unread,) = _unread(tokens().positive(f"{words(74)} zzzz"))
    assert 0 < len(unread) < 4
    assert "zzzz".endswith(unread)


def test_the_suffix_is_cut_before_the_clients_words() -> None:
    prompt = tokens(suffix=", blue star heart").positive(words(73))
    assert prompt.tokens == plain(f"{words(73)}, blue")
    assert prompt.warning == (
        'The model reads 75 tokens. The prompt has 73, so the configured suffix was cut. Not read: "star heart".'
    )


def test_a_text_that_is_cut_leaves_no_suffix() -> None:
    assert (
        tokens(suffix=", neon")
        .positive(f"{words(75)} star heart")
        .warning.endswith('Not read: "star heart", nor the configured suffix.')
    )


def test_a_text_that_just_fits_leaves_no_suffix() -> None:
    assert _unread(tokens(suffix=", neon").positive(words(75))) == [", neon"]


def test_a_long_text_is_quoted_in_part_and_on_one_line() -> None:
    warning = tokens().positive(words(75) + ' "quoted"\n' + "star " * 20_000).warning
    assert len(warning) < 500
    assert "\n" not in warning
    assert warning.endswith('..."' + ".")


def test_a_configured_negative_prompt_that_is_cut_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    made = tokens(negative=words(75) + " star")
    assert made.negative() == (plain(words(75)), "")
    assert [record.getMessage() for record in caplog.records] == [
        'The configured negative prompt has 76 tokens; the model reads the first 75. Not read: "star".'
    ]


def _unread(prompt: Prompt) -> list[str]:
    """What a warning quotes."""
    return [json.loads(quote) for quote in re.findall(r'Not read: (".*")', prompt.warning)]
