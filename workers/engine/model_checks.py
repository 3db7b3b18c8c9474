"""Refuses models that this engine cannot run, and model folders that could make a loader run code or read other files.

Architectures: the family of Stable Diffusion 1.x and 2.x, any size (`networks.py`). A configuration key that asks for
anything else is refused at load, by name, rather than ignored.

Folders come from strangers. diffusers and transformers read JSON files beside the weights. Most of their keys are
numbers of an architecture; some name code to import from the hub, quantisers to install, or other files to read. None
of those is needed here.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from workers.engine.contract import UnusableModelError

# --------------------------------------------------------------------------------------------------------- architecture


Network: TypeAlias = Literal["UNet", "ControlNet", "VAE"]
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_BLOCK_KEYS = ("down_block_types", "up_block_types")

# upcast_attention is not here: diffusers' own attention (scaled_dot_product_attention) does not look at it either.
_BOTH: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "class_embed_type": None,
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
}
_UNET: dict[str, Any] = _BOTH | {
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_CONTROLNET: dict[str, Any] = _BOTH | {
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
_VAE: dict[str, Any] = {"out_channels": 3, "upsampling_scaling_factor": 2}
# Classes of VAEs, with the key and the default of their levels, each of which but one halves an image.
_LEVELS = {"AutoencoderKL": ("block_out_channels", [64]), "AutoencoderTiny": ("decoder_block_out_channels", [64] * 4)}
VAE_CLASSES = tuple(_LEVELS)
_SCALING_FACTOR = 0.18215  # the default of AutoencoderKL
_SHARED = ("block_out_channels", "cross_attention_dim", "down_block_types", "in_channels", "layers_per_block")
_DEFAULTS = {"in_channels": 4, "norm_num_groups": 32}  # of diffusers


class UnsupportedModelError(UnusableModelError, ValueError):
    """The model is of an architecture that this engine does not run; the message names the configuration key."""


def check_architecture(unet: Mapping[str, Any], controlnet: Mapping[str, Any], text_width: int) -> None:
    """Compare two diffusers configurations, defaults filled in, with what the forward passes cover.

    Raises UnsupportedModelError.
    """
    _check_network("UNet", unet, _UNET)
    _check_network("ControlNet", controlnet, _CONTROLNET)
    for key in _SHARED:
        if _plain(unet[key]) != _plain(controlnet[key]):
            raise UnsupportedModelError(
                f"{key} is {unet[key]!r} in the UNet and {controlnet[key]!r} in the ControlNet: they do not match"
            )
    if unet["cross_attention_dim"] != text_width:
        raise UnsupportedModelError(
            f"cross_attention_dim of the UNet is {unet['cross_attention_dim']!r}, "
            f"but the text encoder's hidden_size is {text_width}"
        )


def check_config(network: Network, config: Mapping[str, Any]) -> None:
    """Compare a network's `config.json`, before its weights are fetched; what it leaves out has its default.

    Raises UnsupportedModelError.
    """
    if network == "VAE":
        vae_class(config)
        _check_values(network, _VAE | dict(config), _VAE)
        return
    supported = {"UNet": _UNET, "ControlNet": _CONTROLNET}[network]
    _check_network(network, {**supported, **_DEFAULTS, **config}, supported)


def check_fit(unet: Mapping[str, Any], controlnet: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> None:
    """As `check_architecture`, by the `config.json` of each, before any weights are read.

    Raises UnsupportedModelError.
    """
    check_config("UNet", unet)
    check_config("ControlNet", controlnet)
    both = _UNET | _DEFAULTS | dict(unet), _CONTROLNET | _DEFAULTS | dict(controlnet)
    if all(key in config for key in _SHARED for config in both) and "hidden_size" in text_encoder:
        check_architecture(*both, text_encoder["hidden_size"])


def vae_class(config: Mapping[str, Any]) -> str:
    """The name of diffusers' class for a VAE with this `config.json`. Raises UnsupportedModelError."""
    name: str = config.get("_class_name", VAE_CLASSES[0])
    if name not in VAE_CLASSES:
        raise UnsupportedModelError(f"_class_name of the VAE is {name!r}; this engine runs {' or '.join(VAE_CLASSES)}")
    return name


def check_vae(vae: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check by the `config.json` of each that a VAE decodes the same latents as the model's own VAE.

    Raises UnsupportedModelError.
    """
    check_config("VAE", vae)
    found, wanted = (_latents_of(config) for config in (vae, own))
    for name, value in found.items():
        # A tiny one takes the UNet's latents as they are, whatever its factor.
        if value != wanted.get(name, value):
            raise UnsupportedModelError(f"{name} of the VAE is {value}, and of the model's own VAE {wanted[name]}")


def _latents_of(vae: Mapping[str, Any]) -> dict[str, Any]:
    """What a VAE says of its latents: their channels, the levels that make a pixel of one, and a KL's factor."""
    key, usual = _LEVELS[vae_class(vae)]
    levels = len(vae.get(key, usual))
    kl = {"scaling_factor": vae.get("scaling_factor", _SCALING_FACTOR)} if key == "block_out_channels" else {}
    return {"latent_channels": vae.get("latent_channels", 4), "the number of block_out_channels": levels, **kl}


def _check_network(name: str, config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    _check_values(name, config, supported)
    for key in _BLOCK_KEYS:
        unknown = sorted(set(config.get(key, ())) - _BLOCKS)
        if unknown:
            raise UnsupportedModelError(f"{key} of the {name} has {', '.join(unknown)}, which this engine does not run")
    channels, returned = config["in_channels"], config.get("out_channels", _DEFAULTS["in_channels"])
    if name == "UNet" and channels != returned:  # such as one for inpainting
        raise UnsupportedModelError(
            f"in_channels of the UNet is {channels!r} and out_channels {returned!r}; this engine runs equal ones only"
        )
    if config["norm_num_groups"] is None:
        raise UnsupportedModelError(f"norm_num_groups of the {name} is None; this engine runs group norms only")


def _check_values(name: str, config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    for key, value in supported.items():
        if config[key] != value:
            raise UnsupportedModelError(f"{key} of the {name} is {config[key]!r}; this engine runs {value!r} only")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


# --------------------------------------------------------------------------------------------------------------- safety


_CODE = "it names code for the loader to import"
_FILES = "it names other files for the loader to read"
_QUANTISED = "weights in other formats than float are not supported"
_KEYS = {
    "auto_map": _CODE,
    "trust_remote_code": _CODE,
    "attn_implementation": _CODE,
    "_attn_implementation": _CODE,
    "_attn_implementation_internal": _CODE,
    "_experts_implementation": _CODE,
    "experts_implementation": _CODE,
    "use_kernels": _CODE,
    "kernel_config": _CODE,
    "fusion_config": _CODE,
    "distributed_config": _CODE,
    "quantization_config": _QUANTISED,
    "base_model_name_or_path": _FILES,
    "transformers_weights": _FILES,
    "gguf_file": _FILES,
    "fast_tokenizer_files": _FILES,
    "init_inputs": _FILES,
    "tokenizer_file": _FILES,
    "tokenizer_object": _FILES,
    "vocab": _FILES,
    "vocab_file": _FILES,
    "merges": _FILES,
    "merges_file": _FILES,
}
_READ = ("*config.json", "special_tokens_map.json")
# Files whose presence alone changes what is loaded.
_UNWANTED = {"adapter_config.json": "a model to load instead", "*.index*.json": "files to read the weights from"}


class UnsafeModelError(UnusableModelError, ValueError):
    """A model folder could make a loader run code or read other files; the message names the file and what to do."""


def check_folders(*folders: Path) -> None:
    """Look through the JSON files of a model's parts before anything loads them. Raises UnsafeModelError."""
    for folder in folders:
        for pattern, what in _UNWANTED.items():
            for path in folder.glob(pattern):
                raise UnsafeModelError(f"{path} may name {what}, which is refused: remove the file")
        for path in sorted(path for pattern in _READ for path in folder.glob(pattern)):
            _check_file(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UnsafeModelError when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"{path} is not JSON ({error}): download the model again") from error
    if not isinstance(content, dict):
        raise UnsafeModelError(f"{path} contains no JSON object: download the model again")
    return content


def _check_file(path: Path) -> None:
    for key, value in _entries(read_object(path)):
        if key in _KEYS and value not in (None, False):
            raise UnsafeModelError(f"{path} sets {key}, which is refused, as {_KEYS[key]}: remove that key")


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Keys and values at any depth: loaders look into nested objects too."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as inner:
                yield from inner.items()
                waiting.extend(inner.values())
            case list() as inner:
                waiting.extend(inner)
