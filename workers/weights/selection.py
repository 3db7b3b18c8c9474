"""Which files of a repository are fetched: safetensors and the small files beside them, never a pickle."""

import re
from collections.abc import Collection, Mapping

from workers.engine.weights import COMPONENTS
from workers.weights.errors import FetchError

HALF = ".fp16"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
NETWORKS = {"model": ("unet/", "vae/", "text_encoder/"), "controlnet": ("",)}  # their folders
_TOKENIZER = ("tokenizer/tokenizer_config.json",)
TEXTS = {
    "model": (
        *(f"{folder}config.json" for folder in NETWORKS["model"]),
        "scheduler/scheduler_config.json",
        *_TOKENIZER,
    ),
    "controlnet": ("config.json",),
    "tokenizer": _TOKENIZER,
}
OPTIONAL = tuple(
    f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer.json", "vocab.json")
)


def texts_of(part: str, files: Collection[str]) -> list[str]:
    """Return the small files of a "model", "controlnet" or "tokenizer". Raises FetchError if one is missing."""
    missing = next((text for text in TEXTS[part] if text not in files), None)
    if missing is not None:
        raise FetchError(f"the repository has no {missing}: it is not laid out as diffusers lays out this part")
    return [*TEXTS[part], *(text for text in OPTIONAL if text in files and part != "controlnet")]


def weights_of(part: str, files: Collection[str], dtype: str) -> Mapping[str, list[str]]:
    """Return each network's files, by what they become; several where they are sharded. Raises FetchError.

    Half precision is half the download: it comes first where it is wanted, and last where it is not.
    """
    stems = [folder + COMPONENTS[folder.rstrip("/") or part] for folder in NETWORKS[part]]
    suffixes = (HALF, "") if dtype == "float16" else ("", HALF)
    return {f"{stem}.safetensors": _files_of(stem, suffixes, files) for stem in stems}


def _files_of(stem: str, suffixes: tuple[str, ...], files: Collection[str]) -> list[str]:
    for suffix in suffixes:
        if (whole := f"{stem}{suffix}.safetensors") in files:
            return [whole]
        if shards := _shards(stem + suffix, files):
            return shards
    folder = stem[: stem.rfind("/") + 1]
    pickle = next((name for name in sorted(files) if name.startswith(folder) and name.endswith(PICKLED)), None)
    reason = f", only pickles such as {pickle}, which can run any code and are not read" if pickle else ""
    raise FetchError(f"the repository has no {stem}.safetensors{reason}: choose another repository or revision")


def _shards(stem: str, files: Collection[str]) -> list[str]:
    """Return all of `STEM-00001-of-00003.safetensors` and so on; nothing if one is missing."""
    pattern = re.compile(re.escape(stem) + r"-\d{5}-of-(\d{5})\.safetensors")
    found = [match for name in sorted(files) if (match := pattern.fullmatch(name))]
    return [match[0] for match in found] if found and len(found) == int(found[0][1]) else []
