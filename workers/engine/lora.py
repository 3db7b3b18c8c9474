"""LoRA: low-rank changes of weights, fused into them when the model is loaded.

A layer's change is `scale * alpha / rank * up @ down` (Hu et al. 2021, "LoRA", section 4.1). Both usual ways of naming
the layers are read: kohya's (`lora_unet_down_blocks_0_...to_q.lora_down.weight`, with an `alpha` of each layer's own)
and that of diffusers and peft (`unet.down_blocks.0...to_q.lora_A.weight`, where alpha is the rank unless it is given).
"""

import re
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

_KEY = re.compile(
    r"(?:lora_(?P<short>unet|te)_|(?P<long>unet|text_encoder)\.)(?P<layer>.+?)\."
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
_ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers 0.35 and later write settings here that change the sum


class LoraError(ValueError):
    """A LoRA does not fit the model, or is of another kind; the message names the file and the key."""


@torch.no_grad()
def fuse(path: Path, scale: float, unet: nn.Module, text_encoder: nn.Module) -> int:
    """Add a LoRA file's changes to the weights of both; return how many layers changed. Raises LoraError."""
    layers = {"unet": _layers(unet, "unet"), "te": _layers(text_encoder, "te")}
    changes = _read(path)
    for (network, name), parts in changes.items():
        layer = layers[network].get(name)
        if layer is None:
            raise LoraError(f"{path}: the model has no layer {name} in its {network}: it was made for another model")
        if not {"down", "up"} <= parts.keys():
            raise LoraError(f"{path}: of {name} it has only {', '.join(sorted(parts))}, not both down and up")
        _add(layer, parts, scale, f"{path}: {name}")
    return len(changes)


def _layers(network: nn.Module, name: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers by the names that LoRAs use, in which dots are underscores."""
    found = {
        path.replace(".", "_"): module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    # transformers 5.6 dropped a level of CLIP's text model that the files were named by.
    return found if name == "unet" else {path.removeprefix("text_model_"): module for path, module in found.items()}


def _read(path: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(network, layer) -> down [rank, in, ...], up [out, rank, ...], and alpha if there is one."""
    changes: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    with safe_open(path, framework="pt") as file:
        if _ADAPTER_METADATA in (file.metadata() or {}):
            raise LoraError(f"{path}: it has {_ADAPTER_METADATA}, which is not read: save it with alpha as tensors")
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            match = _KEY.fullmatch(key)
            if match is None:
                raise LoraError(f"{path}: the key {key} is not of a plain LoRA (DoRA, LoKr and others are not read)")
            network = "unet" if "unet" in (match["short"], match["long"]) else "te"
            layer = match["layer"].replace(".", "_").removeprefix("text_model_")
            changes[network, layer][_PARTS[match["part"]]] = file.get_tensor(key)
    return changes


def _add(layer: nn.Linear | nn.Conv2d, parts: dict[str, Tensor], scale: float, what: str) -> None:
    weight = layer.weight
    down, up = (parts[part].to(weight.device, torch.float32).flatten(1) for part in ("down", "up"))
    rank = len(down)
    if up.shape != (len(weight), rank) or down.shape[1] != weight[0].numel():
        raise LoraError(
            f"{what}: down {tuple(parts['down'].shape)} and up {tuple(parts['up'].shape)} "
            f"do not fit a weight of {tuple(weight.shape)}"
        )
    alpha = float(parts["alpha"]) if "alpha" in parts else rank
    change = scale * alpha / rank * (up @ down)
    weight.copy_(weight.float() + change.view(weight.shape))
