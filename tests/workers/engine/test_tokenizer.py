"""The tokenizer gives the numbers and offsets of transformers' CLIPTokenizer, whatever the text and the folder."""

import itertools
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tests.workers.engine import demo
from workers.engine.tokenizer import ClipTokenizer, read_tokenizer

SHIPPED = demo.FOLDER / "tokenizer"
MARKS = ("<|startoftext|>", "<|endoftext|>")
# Where a folder says what its special tokens are.
PLACES = ((), ("config",), ("map",), ("config", "map"), ("config", "numbered"))
FOLDERS = ["shipped", *itertools.product(PLACES, ("normalized", "as it is"), (MARKS[1], "!"), ("", "added"))]
TEXTS = (
    *("", " ", "a red circle", "  a\t b\n", "\u3000\u2003x", "1234 a1b2", "it's we'll I'D o'clock", "!!!!!", "a!b ! c"),
    *("<|endoftext|>", "x<|ENDOFTEXT|>y", "<|startoftext|> <|endoftext|>!", "<|endoftext|", "<cat-toy> Zebra zebra"),
    *("e\u0301 \u1e9b\u0323 \uff21\uff22 \ufb01 \u00df \u0130 \u0391\u03a3 \u03a3", "\u4e2d\u6587 \U0001f600"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\0\x01", "\ufffe\uffff\U0010ffff", "\u202etoor \u05d0\u05d3"),
    *("word " * 500, "\U0001f388" * 2000, "".join(map(chr, range(0x2000)))),
)
PIECES = (
    "<|endoftext|>",
    "<|StartOfText|>",
    "<|",
    "|>",
    "<cat-toy>",
    "zebra",
    "Red",
    "circle",
    "'LL",
    " ",
    "\n",
    "!",
    "7",
)


def write_older(folder: Path, place: tuple[str, ...], normalized: str, pad: str, added: str) -> None:
    """The shipped words as Stable Diffusion's repositories have them."""
    words = json.loads((SHIPPED / "tokenizer.json").read_text("utf-8"))["model"]
    count = len(words["vocab"])
    merges = [each if isinstance(each, str) else " ".join(each) for each in words["merges"]]
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": normalized == "normalized"}
    begin, end = ({"content": mark, **flags} for mark in MARKS)
    special: dict[str, Any] = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": pad}
    config: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    if "config" in place:
        config |= {
            name: {"__type": "AddedToken", **each} if isinstance(each, dict) else each for name, each in special.items()
        }
    if "numbered" in place:
        marks = zip(MARKS, (begin, end), strict=True)
        numbered = {str(words["vocab"][mark]): token | {"special": True} for mark, token in marks}
        config["added_tokens_decoder"] = numbered | {str(count): {"content": "<cat-toy>", **flags, "special": False}}
    contents = {
        "vocab.json": json.dumps(words["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config),
    }
    if "map" in place:
        contents["special_tokens_map.json"] = json.dumps(special)
    if added:
        contents["added_tokens.json"] = json.dumps({"<cat-toy>": count, "zebra": count + 1})
    for name, content in contents.items():
        (folder / name).write_text(content)


@cache
def both(kind: Any) -> tuple[ClipTokenizer, Any]:
    if kind == "shipped":
        return read_tokenizer(SHIPPED), CLIPTokenizer.from_pretrained(SHIPPED)
    with TemporaryDirectory() as folder:
        write_older(Path(folder), *kind)
        return read_tokenizer(Path(folder)), CLIPTokenizer.from_pretrained(folder)


def assert_equal(kind: Any, text: str) -> None:
    ours, theirs = both(kind)
    made, expected = ours(text), theirs(text, verbose=False)
    assert made.ids == expected.input_ids
    assert made.offsets == expected.encodings[0].offsets


@pytest.mark.parametrize("kind", FOLDERS, ids=str)
def test_any_folder_means_what_it_means_to_transformers(kind: Any) -> None:
    ours, theirs = both(kind)
    assert ours.pad == theirs.pad_token_id
    for text in TEXTS:
        assert_equal(kind, text)


@given(st.sampled_from(FOLDERS), st.text())
def test_any_text_has_the_numbers_of_transformers(kind: Any, text: str) -> None:
    assert_equal(kind, text)


@given(st.sampled_from(FOLDERS), st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_with_marks_has_the_numbers_of_transformers(kind: Any, text: str) -> None:
    assert_equal(kind, text)
