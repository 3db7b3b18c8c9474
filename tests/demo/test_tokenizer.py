"""The small model's tokenizer: known words are single tokens, any text can be said, the same words make the same."""

import json
import os
import random
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer

from example.demo_model.networks import TEXT_LENGTH
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.scenes import mixed_scenes
from example.demo_model.tokenizer import NOUNS, WORDS, train_tokenizer

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "demo" / "tokenizer"
PHRASES = [f"a {colour} {noun} on a white background" for noun in (*SHAPES, *NOUNS) for colour in COLOURS]
CAPTIONS = [*PHRASES, *(scene.caption for scene in mixed_scenes(60, seed=7))]
LARGEST = 1000  # each entry costs 192 bytes of embeddings
SAVED = ["tokenizer.json", "tokenizer_config.json"]
MERGES = """
import json
from example.demo_model.tokenizer import NOUNS, WORDS, _merges, _words
print(json.dumps(_merges(_words([*NOUNS, *WORDS]))))
"""


@cache
def tokenizer() -> Any:
    with TemporaryDirectory() as folder:
        return train_tokenizer(CAPTIONS, Path(folder))


def files(captions: list[str], folder: Path) -> list[bytes]:
    train_tokenizer(captions, folder)
    assert sorted(path.name for path in folder.iterdir()) == SAVED
    return [(folder / name).read_bytes() for name in SAVED]


def merges(hash_seed: int) -> str:
    """What a new process that orders its sets and dictionaries by this seed finds."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", MERGES]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def kind(folder: Path) -> dict[str, Any]:
    """All that says how a tokenizer works, but for which words it knows."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for part in (saved, saved["model"], saved["post_processor"]):
        for key in ("vocab", "merges", "added_tokens", "sep", "cls"):
            part.pop(key, None)
    return {"saved": saved} | {key: config[key] for key in config if key not in ("is_local", "local_files_only")}


def test_words_are_single_tokens_and_punctuation_is_its_own() -> None:
    tokens = tokenizer().tokenize("A red circle, and a zebrafish on a yellow background")

    assert tokens[:6] == ["a</w>", "red</w>", "circle</w>", ",</w>", "and</w>", "a</w>"]
    assert tokens[-4:] == ["on</w>", "a</w>", "yellow</w>", "background</w>"]
    assert "".join(tokens[6:-4]) == "zebrafish</w>"
    assert len(tokens[6:-4]) > 1


def test_every_word_of_captions_is_a_single_token() -> None:
    words = {word for caption in [*CAPTIONS, *NOUNS, *WORDS] for word in re.findall(r"[a-z]+", caption.lower())}

    assert [word for word in words if tokenizer().tokenize(word) != [f"{word}</w>"]] == []


def test_nouns_stand_for_any_shape_and_so_name_none() -> None:
    assert len(set(NOUNS)) == len(NOUNS) > 140
    assert set(NOUNS) & {*SHAPES, *COLOURS, *WORDS, "box", "disc"} == set()


def test_the_vocabulary_is_small_and_numbered_without_gaps() -> None:
    assert 512 < len(tokenizer()) <= LARGEST
    assert sorted(tokenizer().get_vocab().values()) == list(range(len(tokenizer())))


@given(st.text())
def test_any_text_is_said_without_unknowns(text: str) -> None:
    numbers = tokenizer().encode(text, add_special_tokens=False)
    normal = tokenizer().backend_tokenizer.normalizer.normalize_str(text)

    assert tokenizer().unk_token_id not in numbers
    assert re.sub(r"\s", "", tokenizer().decode(numbers)) == re.sub(r"\s", "", normal)


def test_the_same_words_give_the_same_files(tmp_path: Path) -> None:
    shuffled = random.Random(3).sample(CAPTIONS, len(CAPTIONS))
    first = files(CAPTIONS, tmp_path / "first")

    assert files(CAPTIONS, tmp_path / "again") == first
    assert files(shuffled, tmp_path / "shuffled") == first
    assert files(CAPTIONS + CAPTIONS[:100], tmp_path / "repeated") == first
    assert files([*CAPTIONS, "a zebrafish"], tmp_path / "more") != first


def test_another_process_finds_the_same_merges() -> None:
    assert merges(1) == merges(2)


@pytest.mark.parametrize("loader", [CLIPTokenizer, AutoTokenizer])
def test_it_loads_and_pads_as_clips_does(loader: Any, tmp_path: Path) -> None:
    train_tokenizer(["a red circle"], tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    start, end = loaded.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"])
    numbers = loaded("a red circle", padding="max_length", truncation=True).input_ids

    assert isinstance(loaded, CLIPTokenizer)
    assert (start, end) == (len(loaded) - 2, len(loaded) - 1)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (start, end, end)
    assert numbers == [start, *loaded.convert_tokens_to_ids(["a</w>", "red</w>", "circle</w>"]), *[end] * 73]
    assert len(loaded("circle " * 100, truncation=True).input_ids) == loaded.model_max_length == TEXT_LENGTH


def test_it_is_of_the_kind_that_ships(tmp_path: Path) -> None:
    train_tokenizer(CAPTIONS, tmp_path)

    assert kind(tmp_path) == kind(SHIPPED)
