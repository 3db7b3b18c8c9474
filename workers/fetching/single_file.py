"""Checkpoints in one file, in the layout of the original latent-diffusion code: what they hold, and their conversion.

`sd15/` has the configuration of each component of Stable Diffusion 1.5, as a checkpoint says nothing of them. The
renaming is diffusers' own; what comes out is held against the architecture, tensor by tensor.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.engine.config import Weights
from workers.fetching.errors import FetchError
from workers.fetching.tensors import read, shapes_in

SD15 = Path(__file__).with_name("sd15")
SD15_REPOSITORY = Weights(  # where the tokenizer is taken from, which no checkpoint has
    path="stable-diffusion-v1-5/stable-diffusion-v1-5", revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
)
Kind = Literal["unet", "vae", "text_encoder", "controlnet"]

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # [out, in, 3, 3]
_CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # [out, width of the text]
_CONTROL = "input_hint_block.0.weight"
_SD2_WIDTH = 1024
_INPUTS = {9: "an inpainting model", 8: "InstructPix2Pix", 7: "an upscaler", 5: "a depth model"}
_LORA = "a LoRA"
_OTHERS = {  # how keys of other models begin
    "conditioner.embedders.": "Stable Diffusion XL",
    "control_model.label_emb.": "a ControlNet for Stable Diffusion XL",
    "add_embedding.": "a ControlNet for Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_": _LORA,
    "unet.": _LORA,
}
_POSITIONS = "embeddings.position_ids"  # 0, 1, 2...: old files have them, transformers makes them


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a checkpoint, and the file that it becomes in diffusers' layout."""

    kind: Kind
    prefix: str
    name: str
    config: str
    target: str


_MODEL = (
    Component("unet", "model.diffusion_model.", "UNet", "unet", "unet/diffusion_pytorch_model.safetensors"),
    Component("vae", "first_stage_model.", "VAE", "vae", "vae/diffusion_pytorch_model.safetensors"),
    Component(
        "text_encoder",
        "cond_stage_model.transformer.",
        "text encoder",
        "text_encoder",
        "text_encoder/model.safetensors",
    ),
)
_PREFIXED = Component("controlnet", "control_model.", "ControlNet", "controlnet", "diffusion_pytorch_model.safetensors")
_BARE = Component("controlnet", "", "ControlNet", "controlnet", "diffusion_pytorch_model.safetensors")


def components_of(name: str, path: Path) -> tuple[Component, ...]:
    """What there is to convert in a checkpoint that is to be the "model" or the "controlnet". Raises FetchError."""
    shapes = shapes_in(path)
    if (other := _other(shapes)) is not None:
        advice = "name it under engine.loras" if other == _LORA else "choose one for Stable Diffusion 1.5"
        raise FetchError(f"it is {other}, which cannot be engine.{name}: {advice}")
    found = _control(shapes) if name == "controlnet" else _model(shapes)
    if not found:
        wrong = "a model: name it under engine.model" if _FIRST in shapes else "of a kind that is not known"
        wrong = "a ControlNet: name it under engine.controlnet" if _control(shapes) else wrong
        raise FetchError(f"it is {wrong}; it cannot be engine.{name}")
    return found


def _other(shapes: Mapping[str, list[int]]) -> str | None:
    for begin, what in _OTHERS.items():
        if any(key.startswith(begin) for key in shapes):
            return what
    inputs = shapes.get(_FIRST, [0, 4])[1]
    if inputs != 4:
        return _INPUTS.get(inputs, f"a model with {inputs} input channels")
    widths = [shapes[key][1] for key in shapes if key.endswith(_CROSS)]
    return "made for Stable Diffusion 2" if _SD2_WIDTH in widths else None


def _control(shapes: Mapping[str, list[int]]) -> tuple[Component, ...]:
    if _PREFIXED.prefix + _CONTROL in shapes:
        return (_PREFIXED,)
    return (_BARE,) if {_CONTROL, "controlnet_cond_embedding.conv_in.weight"} & shapes.keys() else ()


def _model(shapes: Mapping[str, list[int]]) -> tuple[Component, ...]:
    if _FIRST not in shapes:
        return ()
    for component in _MODEL:
        if not any(key.startswith(component.prefix) for key in shapes):
            raise FetchError(f"it has no {component.name} ({component.prefix}*): choose a checkpoint that has one")
    return _MODEL


def convert(path: Path, component: Component, like: Path) -> dict[str, Any]:
    """A component's tensors, named and shaped as diffusers and transformers do. Raises FetchError."""
    config = config_in(like, component.config)
    tensors = read([path], component.prefix)
    found = {key: tensor for key, tensor in _renamed(component.kind)(tensors, config).items() if tensor is not None}
    wrong = next(_differences(_expected(component.kind, config), found), None)
    if wrong is not None:
        raise FetchError(f"it does not fit: its {component.name} {wrong}; {like} says what it should have")
    return found


def config_in(like: Path, component: str) -> dict[str, Any]:
    """The configuration of a component in a folder that is laid out as diffusers does. Raises FetchError."""
    path = like / component / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FetchError(f"{path} cannot be read: {error}") from error
    return config


def _renamed(kind: Kind) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    from diffusers.loaders import single_file_utils as diffusers

    match kind:
        case "unet":
            return diffusers.convert_ldm_unet_checkpoint  # type: ignore[no-any-return]
        case "vae":
            return diffusers.convert_ldm_vae_checkpoint  # type: ignore[no-any-return]
        case "controlnet":
            return diffusers.convert_controlnet_checkpoint  # type: ignore[no-any-return]
        case "text_encoder":
            return lambda tensors, _: _text(diffusers.convert_ldm_clip_checkpoint(tensors))


def _text(tensors: dict[str, Any]) -> dict[str, Any]:
    plain = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in plain.items() if key != _POSITIONS}


def _expected(kind: Kind, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of an architecture."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "controlnet": ControlNetModel}
    with torch.device("meta"):
        empty = (
            CLIPTextModel(CLIPTextConfig(**config)) if kind == "text_encoder" else networks[kind].from_config(config)
        )
    return {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items() if not key.endswith(_POSITIONS)}


def _differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"has no {key}" for key in expected if key not in found)
    for key, tensor in found.items():
        if key not in expected:
            yield f"has {key}, which is not known there"
        elif tuple(tensor.shape) != expected[key]:
            yield f"has {key} in the shape {list(tensor.shape)} instead of {list(expected[key])}"
