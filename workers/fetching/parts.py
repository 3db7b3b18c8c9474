"""Which files of a repository are read: safetensors and the small texts beside them, never a pickle."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from workers.fetching.errors import FetchError

HALF = ".fp16"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of a repository: each of `weights`, all `texts`, and what there is of `optional`."""

    weights: tuple[str, ...]
    texts: tuple[str, ...]
    optional: tuple[str, ...] = ()


_TOKENIZER = Part(
    weights=(),
    texts=("tokenizer/tokenizer_config.json",),
    optional=(
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
    ),
)
PARTS = {
    "model": Part(
        weights=("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"),
        texts=(
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
            *_TOKENIZER.texts,
        ),
        optional=_TOKENIZER.optional,
    ),
    "controlnet": Part(weights=("diffusion_pytorch_model",), texts=("config.json",)),
    "tokenizer": _TOKENIZER,
}


def texts_of(part: Part, files: Collection[str]) -> list[str]:
    """Which of a repository's small files are read. Raises FetchError when one is missing."""
    missing = [text for text in part.texts if text not in files]
    if missing:
        raise FetchError(f"the repository has no {missing[0]}: it is not laid out as diffusers lays out this part")
    return [*part.texts, *(text for text in part.optional if text in files)]


def weights_of(part: Part, files: Collection[str], dtype: str) -> Mapping[str, list[str]]:
    """The files of each component's weights, by its stem; more than one where they are sharded. Raises FetchError.

    Half precision is half to download: it goes first where it is wanted, and last where it is not.
    """
    suffixes = (HALF, "") if dtype == "float16" else ("", HALF)
    return {stem: _files_of(stem, suffixes, files) for stem in part.weights}


def _files_of(stem: str, suffixes: tuple[str, ...], files: Collection[str]) -> list[str]:
    for suffix in suffixes:
        if (whole := f"{stem}{suffix}.safetensors") in files:
            return [whole]
        if shards := _shards(stem + suffix, files):
            return shards
    pickles = [
        name for name in sorted(files) if name.startswith(stem[: stem.rfind("/") + 1]) and name.endswith(PICKLED)
    ]
    reason = f", only pickles such as {pickles[0]}, which can run any code and are not read" if pickles else ""
    raise FetchError(f"the repository has no {stem}.safetensors{reason}: choose another repository or revision")


def _shards(stem: str, files: Collection[str]) -> list[str]:
    """All of `STEM-00001-of-00003.safetensors` and so on; empty when there are none, or not all."""
    pattern = re.compile(re.escape(stem) + r"-\d{5}-of-(\d{5})\.safetensors")
    found = [(name, match[1]) for name in sorted(files) if (match := pattern.fullmatch(name))]
    return [name for name, _ in found] if found and len(found) == int(found[0][1]) else []
