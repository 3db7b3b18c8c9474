"""The finished model as a folder that diffusers, and the service, load: half precision, and no trace of a machine."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from example.demo_model import about
from example.demo_model.networks import noise_schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PLACES = {"_name_or_path", "is_local", "local_files_only"}
"""Keys by which diffusers and transformers note where a part was loaded from."""


class HalfPrecisionError(ValueError):
    """A weight has no finite value in half precision."""

    def __init__(self, network: nn.Module, weight: str) -> None:
        super().__init__(
            f"{type(network).__name__}: {weight} holds values that are not finite in half precision, so nothing was "
            f"exported. The training has diverged: go back to an earlier checkpoint, or lower the learning rate."
        )


def export(
    folder: Path,
    vae: "AutoencoderKL",
    unet: "UNet2DConditionModel",
    controlnet: "ControlNetModel",
    text_encoder: "CLIPTextModel",
    tokenizer: "CLIPTokenizer",
) -> None:
    """Write the model in diffusers' layout; the VAE's latents have unit variance.

    A model that the folder holds is whole until the new one has been written beside it and takes its place. The
    networks stay as they are. Raises HalfPrecisionError.
    """
    networks = {"vae": vae, "unet": unet, "controlnet": controlnet, "text_encoder": text_encoder}
    parts: dict[str, Any] = {name: _halved(network) for name, network in networks.items()}
    parts["vae"].register_to_config(scaling_factor=1.0)
    written = _beside(folder, "new")
    _save(written, parts | {"tokenizer": _unused(tokenizer)})
    _swap_in(written, folder)


def _unused(tokenizer: "CLIPTokenizer") -> "CLIPTokenizer":
    """Without the padding and truncation of its last call, which it would be saved with."""
    unused = deepcopy(tokenizer)
    unused.backend_tokenizer.no_padding()
    unused.backend_tokenizer.no_truncation()
    return unused


def _halved(network: nn.Module) -> nn.Module:
    half = deepcopy(network).cpu().half().eval()
    for name, weight in half.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise HalfPrecisionError(network, name)
    return half


def _save(folder: Path, parts: dict[str, Any]) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    shutil.rmtree(folder, ignore_errors=True)  # what a killed export left
    pipeline = StableDiffusionControlNetPipeline(
        **parts, scheduler=noise_schedule(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.json"):
        _tidy(file)
    about.write(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # weights are written for their owner alone


def _tidy(file: Path) -> None:
    """Drop what tells of the machine it was written on; end with a newline."""
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    kept = {key: value for key, value in content.items() if key not in PLACES}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _swap_in(written: Path, folder: Path) -> None:
    # A folder cannot replace one that has files: between the two renames the old one is found beside, as *.old.
    old = _beside(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    written.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")
