"""python -m workers.fetch CONFIG: download the weights that a configuration names into the Hugging Face cache.

Only what the engine reads is taken: safetensors, in half precision where the repository has it, and the small text
files beside them. Never a pickle. Only pinned commits are fetched, so what is downloaded is what was chosen.
"""

import argparse
import errno
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from workers.config import engine_problems, locate
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.weights import is_folder, parts_of

SUFFIXES = (".fp16.safetensors", ".safetensors")  # the first that is there is taken


class FetchError(Exception):
    """Weights cannot be downloaded; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of a repository: each of `weights` with a suffix, all `texts`, and what there is of `optional`."""

    weights: tuple[str, ...]
    texts: tuple[str, ...]
    optional: tuple[str, ...] = ()


PARTS = {
    "model": Part(
        weights=("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"),
        texts=(
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer_config.json",
        ),
        optional=(
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer.json",
            "tokenizer/vocab.json",
        ),
    ),
    "controlnet": Part(weights=("diffusion_pytorch_model",), texts=("config.json",)),
}


def main(arguments: Sequence[str]) -> int:
    """Fetch what a configuration names; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.fetch", description="Download a configuration's weights.")
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    path = parser.parse_args(arguments).config
    try:
        for name, weights in parts_of(_engine(path)):
            print(f"engine.{name}: {fetch(name, weights)}")
    except (SettingsError, FetchError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def fetch(name: str, weights: Weights) -> Path:
    """Download one part of the model, if it is not there yet; its folder. Raises FetchError."""
    if is_folder(weights):
        return _existing(Path(weights.path))
    try:
        files = wanted(_part(name, weights), HfApi().list_repo_files(weights.path, revision=weights.revision))
        return Path(snapshot_download(weights.path, revision=weights.revision, allow_patterns=files))
    except (OSError, httpx.HTTPError) as error:
        raise FetchError(f"engine.{name}: {weights.path}: {_reason(error, weights)}") from error


def _part(name: str, weights: Weights) -> Part:
    return Part(weights=(), texts=(weights.file,)) if isinstance(weights, Lora) else PARTS[name]


def wanted(part: Part, files: Collection[str]) -> list[str]:
    """Which of a repository's files are read. Raises FetchError when one is missing."""
    names = [_with_suffix(stem, files) for stem in part.weights]
    missing = [text for text in part.texts if text not in files]
    if missing:
        raise FetchError(f"the repository has no {missing[0]}: it is not laid out as diffusers lays out this part")
    return [*names, *part.texts, *(text for text in part.optional if text in files)]


def _with_suffix(stem: str, files: Collection[str]) -> str:
    for suffix in SUFFIXES:
        if stem + suffix in files:
            return stem + suffix
    raise FetchError(f"the repository has no {stem}.safetensors, and pickled weights are not read: choose another")


def _engine(path: Path) -> EngineConfig:
    document = Document.read(path, os.environ)
    engine = document.section("engine", EngineConfig)
    document.refuse(engine_problems(engine))
    return locate(engine, path.parent)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FetchError(f"{folder}: there is no such folder, and only repositories on the hub can be fetched")
    return folder


def _reason(error: OSError | httpx.HTTPError, weights: Weights) -> str:
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: unset it to download"
        case GatedRepoError():
            return "it is gated: accept its terms on its page, then set HF_TOKEN"
        case RepositoryNotFoundError():
            return "there is no such repository, or it is private: correct the path, or set HF_TOKEN"
        case RevisionNotFoundError():
            return f"it has no revision {weights.revision}"
        case HfHubHTTPError():
            return f"the hub refused, with status {error.response.status_code}: {error}"
        case httpx.HTTPError():
            return f"{constants.ENDPOINT} cannot be reached ({error}): check the network, HTTPS_PROXY and HF_ENDPOINT"
        case _ if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space is left in {constants.HF_HUB_CACHE}: make some, or set HF_HOME to another disk"
        case _:
            return str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
