"""Safetensors files: whether they are that, the same weights in another number format, and checkpoints in one file.

A checkpoint in the layout of the original latent-diffusion code is converted to that of diffusers. It says nothing of
its architecture: `sd15/` has the configurations of Stable Diffusion 1.5. The renaming is that of diffusers'
`from_single_file`. Its result is compared with the architecture, tensor by tensor, as `from_single_file` itself only
warns of what is left over, and leaves out what is missing.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from workers.engine.config import Weights
from workers.weights.messages import FetchError

if TYPE_CHECKING:
    from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------- files


_CODES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}
_WHOLE_NUMBERS = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}
_METADATA = {"format": "pt"}  # without it transformers refuses a file
_MAGIC = {  # how other files begin
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"PK\x03\x04": "a zip, as torch.save writes: a pickle, which can run any code and is not read",
    b"\x80": "a pickle, which can run any code and is not read",
    b"<": "an HTML or XML page: a server other than the hub answered",
}


def shapes_in(path: Path) -> dict[str, list[int]]:
    """Return the shapes of a file's tensors. Raises FetchError if it is no safetensors file."""
    return {key: shape for key, (_, shape) in _header(path).items()}


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return (number format, shape) of each tensor. The library checks that the file has all of them."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
            return {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    except SafetensorError as error:
        raise FetchError(f"{path} is not a complete safetensors file: it is {_kind_of(path)}") from error


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(max(map(len, _MAGIC)))
    return next((text for magic, text in _MAGIC.items() if begin.startswith(magic)), "damaged or cut off")


def is_ready(path: Path, dtype: str) -> bool:
    """Return whether a file is in this number format and marked as torch's, so that it needs no conversion.

    Raises FetchError if it is no safetensors file.
    """
    formats = {code for code, _ in _header(path).values()}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    marked = header.get("__metadata__", {}).get("format") == _METADATA["format"]
    return marked and formats <= {_CODES[dtype]} | _WHOLE_NUMBERS


def read(paths: Sequence[Path], prefix: str = "") -> dict[str, "Tensor"]:
    """Return the tensors of files whose names begin with a prefix. Their bytes are read when they are used."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def write(tensors: Mapping[str, "Tensor"], dtype: str, target: Path, what: str) -> None:
    """Write tensors to a file in a number format. Raises FetchError and OSError."""
    from safetensors.torch import save_file

    cast = {name: _cast(tensor, dtype, f"{what}: {name}") for name, tensor in tensors.items()}
    target.touch()
    mode = target.stat().st_mode
    try:
        save_file(cast, target, _METADATA)
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
    target.chmod(mode)  # the library makes it private


def _cast(tensor: "Tensor", dtype: str, what: str) -> "Tensor":
    import torch

    if not tensor.is_floating_point():
        return tensor.contiguous()
    cast = tensor.to(getattr(torch, dtype)).contiguous()
    if not cast.isfinite().all():
        if not tensor.isfinite().all():
            raise FetchError(f"{what} has NaN or infinite values: the file is damaged")
        raise FetchError(
            f"{what} has values up to {tensor.abs().max():g}, which {dtype} cannot hold: choose another --dtype"
        )
    return cast


# ---------------------------------------------------------------------------------------------------------- checkpoints


SD15 = Path(__file__).with_name("sd15")
SD15_REPOSITORY = Weights(  # its tokenizer is taken, as no checkpoint has one
    path="stable-diffusion-v1-5/stable-diffusion-v1-5", revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
)
Kind = Literal["unet", "vae", "text_encoder", "controlnet"]
Shapes = Mapping[str, list[int]]

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # [out, in, 3, 3]
_CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # [out, width of the text]
_CONTROL = "input_hint_block.0.weight"
_MIDDLE = "decoder.mid.block_1.conv1.weight"
_VAES = {"decoder.mid_block.resnets.0.conv1.weight", "decoder.layers.0.weight"}  # in diffusers' layout
_SD2_WIDTH = 1024
_INPUTS = {9: "an inpainting model", 8: "InstructPix2Pix", 7: "an upscaler", 5: "a depth model"}
_LORA = "a LoRA"
_OTHERS = {  # how the keys of other models begin
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


NAMES: Mapping[Kind, str] = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder", "controlnet": "ControlNet"}
PREFIXES: Mapping[Kind, str] = {  # of a network's keys
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
    "controlnet": "control_model.",
}


def networks_in(name: str, path: Path) -> Mapping[Kind, str]:
    """Return the networks of a checkpoint for the "model", the "controlnet" or the "vae", with their keys' prefixes.

    Raises FetchError.
    """
    shapes = shapes_in(path)
    if (other := _other_model(shapes)) is not None:
        advice = "name it under engine.loras" if other == _LORA else "choose one for Stable Diffusion 1.5"
        raise FetchError(f"it is {other}, which cannot be engine.{name}: {advice}")
    control = _control(shapes)
    if name == "controlnet" and control:
        return control
    if name == "vae" and (vae := _vae(shapes)):
        return vae
    if name == "model" and _FIRST in shapes:
        return _model(shapes)
    if _VAES & shapes.keys():
        raise FetchError("it is a VAE in diffusers' layout: name its folder, which has a config.json, under engine.vae")
    kind = "a VAE: name it under engine.vae" if _MIDDLE in shapes else "of an unknown kind"
    kind = "a model: name it under engine.model" if _FIRST in shapes else kind
    kind = "a ControlNet: name it under engine.controlnet" if control else kind
    raise FetchError(f"it is {kind}; it cannot be engine.{name}")


def _other_model(shapes: Shapes) -> str | None:
    for begin, what in _OTHERS.items():
        if any(key.startswith(begin) for key in shapes):
            return what
    inputs = shapes.get(_FIRST, [0, 4])[1]
    if inputs in _INPUTS:
        return _INPUTS[inputs]
    widths = [shapes[key][1] for key in shapes if key.endswith(_CROSS)]
    return "made for Stable Diffusion 2" if _SD2_WIDTH in widths else None


def _control(shapes: Shapes) -> dict[Kind, str]:
    if PREFIXES["controlnet"] + _CONTROL in shapes:
        return {"controlnet": PREFIXES["controlnet"]}
    return {"controlnet": ""} if {_CONTROL, "controlnet_cond_embedding.conv_in.weight"} & shapes.keys() else {}


def _vae(shapes: Shapes) -> dict[Kind, str]:
    """Alone, or that of a model."""
    prefix = next((each for each in ("", PREFIXES["vae"]) if each + _MIDDLE in shapes), None)
    return {} if prefix is None else {"vae": prefix}


def _model(shapes: Shapes) -> dict[Kind, str]:
    found: dict[Kind, str] = {kind: prefix for kind, prefix in PREFIXES.items() if kind != "controlnet"}
    for kind, prefix in found.items():
        if not any(key.startswith(prefix) for key in shapes):
            raise FetchError(f"it has no {NAMES[kind]} ({prefix}*): choose a checkpoint that has one")
    return found


def convert(path: Path, kind: Kind, prefix: str, like: Path) -> dict[str, Any]:
    """Return a network's tensors, named and shaped as diffusers and transformers do. Raises FetchError."""
    config = config_in(like, kind)
    tensors = renamed(kind, read([path], prefix), config)
    problem = next(differences(expected_shapes(kind, config), tensors), None)
    if problem is not None:
        raise FetchError(f"it does not match the configuration in {like}: its {NAMES[kind]} {problem}")
    return tensors


def config_in(like: Path, kind: Kind) -> dict[str, Any]:
    """Return the configuration of a network in a model's folder. Raises FetchError."""
    path = like / kind / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise FetchError(f"{path} cannot be read ({reason}): name another folder with --like") from error
    return config


def renamed(kind: Kind, tensors: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Rename a network's tensors from the original layout to that of diffusers."""
    from diffusers.loaders import single_file_utils as diffusers

    match kind:
        case "unet":
            found = diffusers.convert_ldm_unet_checkpoint(tensors, config)
        case "vae":
            found = diffusers.convert_ldm_vae_checkpoint(tensors, config)
        case "controlnet":
            found = diffusers.convert_controlnet_checkpoint(tensors, config)
        case "text_encoder":
            found = diffusers.convert_ldm_clip_checkpoint(tensors)
            found = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    return {key: tensor for key, tensor in found.items() if tensor is not None and not key.endswith(_POSITIONS)}


def expected_shapes(kind: Kind, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of an architecture."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "controlnet": ControlNetModel}
    with torch.device("meta"):
        empty = (
            CLIPTextModel(CLIPTextConfig(**config)) if kind == "text_encoder" else networks[kind].from_config(config)
        )
    return {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items() if not key.endswith(_POSITIONS)}


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> Iterator[str]:
    """Say what the tensors of a network lack, and have in excess or in another shape."""
    yield from (f"has no {key}" for key in expected if key not in found)
    for key, tensor in found.items():
        if key not in expected:
            yield f"has {key}, which is unexpected"
        elif tuple(tensor.shape) != expected[key]:
            yield f"has {key} in the shape {list(tensor.shape)} instead of {list(expected[key])}"
