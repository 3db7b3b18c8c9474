"""LoRA: low-rank changes of weights, fused into them when the model is loaded.

A layer's change is `scale * alpha / rank * up @ down` (Hu et al. 2021, "LoRA", section 4.1). Both usual ways of naming
the layers are read: kohya's (`lora_unet_down_blocks_0_...to_q.lora_down.weight`, with an `alpha` of each layer's own)
and that of diffusers and peft (`unet.down_blocks.0...to_q.lora_A.weight`, where alpha is the rank unless the file's
metadata say otherwise).
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workers.engine.contract import UnusableModelError

_KEY = re.compile(
    r"(?:lora_(?P<short>unet|te1?)_|(?P<long>unet|text_encoder)\.)(?P<layer>.+?)\."
    r"(?P<part>lora_down\.weight|lora_up\.weight|lora_A\.weight|lora_B\.weight|lora\.down\.weight|lora\.up\.weight|alpha)"
)
_PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "alpha": "alpha",
}
_NETWORKS = {"unet": "UNet", "text_encoder": "text encoder"}
_ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers 0.35 and later keep peft's settings, as JSON
_OTHER_SUMS = ("alpha_pattern", "fan_in_fan_out", "lora_bias", "use_dora", "use_rslora")  # settings that change the sum

_Changes: TypeAlias = dict[tuple[str, str], dict[str, Tensor]]


class LoraError(UnusableModelError, ValueError):
    """A LoRA does not fit the model, or is of another kind; the message names the file and the key."""


@torch.no_grad()
def fuse(path: Path, scale: float, unet: nn.Module, text_encoder: nn.Module) -> int:
    """Add a LoRA file's changes to the weights of both; return how many layers changed. Raises LoraError.

    They are added in float32, in the weights' memory.
    """
    layers = {"unet": _layers(unet), "text_encoder": _layers(text_encoder)}
    changes = _read(path)
    for (network, name), parts in changes.items():
        layer = layers[network].get(name)
        if layer is None:
            raise LoraError(f"{path}: the {_NETWORKS[network]} has no layer {name}: it was made for another model")
        if not {"down", "up"} <= parts.keys():
            raise LoraError(f"{path}: {name} has only {', '.join(sorted(parts))}; both down and up are needed")
        _add(layer, parts, scale, f"{path}: {name}")
    return len(changes)


def _layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        _flat(path): module for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _flat(path: str) -> str:
    """A layer's name as kohya writes it, and without a level of CLIP's text model that transformers 5.6 dropped."""
    return path.replace(".", "_").removeprefix("text_model_")


def _read(path: Path) -> _Changes:
    """(network, layer) -> down [rank, in, ...], up [out, rank, ...], and alpha unless it is the rank."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
            settings = json.loads((file.metadata() or {}).get(_ADAPTER_METADATA, "{}"))
    except (SafetensorError, ValueError) as error:
        raise LoraError(f"{path}: it cannot be read: {error}") from error
    changes = _sorted(path, tensors)
    for (network, _), parts in changes.items():
        alpha = _alpha(path, network, settings)
        if alpha is not None:
            parts.setdefault("alpha", alpha)
    return changes


def _sorted(path: Path, tensors: Mapping[str, Tensor]) -> _Changes:
    changes: _Changes = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise LoraError(f"{path}: the key {key} is not of a plain LoRA (DoRA, LoKr and others are not supported)")
        network = "unet" if "unet" in (match["short"], match["long"]) else "text_encoder"
        parts, part = changes[network, _flat(match["layer"])], _PARTS[match["part"]]
        if part in parts:
            raise LoraError(f"{path}: the key {key} repeats a part of the layer that another key has")
        parts[part] = tensor
    if not changes:
        raise LoraError(f"{path}: it is empty")
    return changes


def _alpha(path: Path, network: str, settings: Mapping[str, Any]) -> Tensor | None:
    for name in _OTHER_SUMS:
        if settings.get(f"{network}.{name}"):
            raise LoraError(f"{path}: {network}.{name} is set in its metadata, which is not supported")
    alpha = settings.get(f"{network}.lora_alpha")
    return None if alpha is None else torch.tensor(float(alpha))


def _add(layer: nn.Linear | nn.Conv2d, parts: Mapping[str, Tensor], scale: float, what: str) -> None:
    weight = layer.weight
    down, up = (parts[part].to(weight.device, torch.float32).flatten(1) for part in ("down", "up"))
    rank = len(down)
    if up.shape != (len(weight), rank) or down.shape[1] != weight[0].numel():
        raise LoraError(
            f"{what}: down {tuple(parts['down'].shape)} and up {tuple(parts['up'].shape)} "
            f"do not fit a weight of {tuple(weight.shape)}"
        )
    alpha = float(parts["alpha"]) if "alpha" in parts else rank
    # No change of a full-size weight is made beside it: new memory costs more than the arithmetic.
    sums = weight.float().flatten(1).addmm_(up, down, alpha=scale * alpha / rank)
    weight.copy_(sums.view(weight.shape))
