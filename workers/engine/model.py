"""Loads the model, from a folder or the Hugging Face cache, and computes once what does not change."""

import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from workers.engine import kernels
from workers.engine.compiling import TorchCompile
from workers.engine.conditioning import (
    TextConditioning,
    TextEncoder,
    Tokens,
    hint_embedding,
    pack_ends,
    pack_projections,
    pack_upsamplers,
    shift_widths,
    time_table,
)
from workers.engine.config import EngineConfig, Sampler, Weights
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes
from workers.engine.lora import fuse
from workers.engine.model_checks import check_architecture, check_folders, check_vae, read_object, vae_class
from workers.engine.networks import Attend, has_pass, vae_image
from workers.engine.plan import KeptPlans, Plans
from workers.engine.quantisation import FLOAT8, quantise_networks
from workers.engine.runtime import Faster, ModelFunctions
from workers.engine.sampler import DiffusersScheduler, UnsupportedSamplerError, is_scheduler
from workers.engine.streams import SideStream
from workers.engine.tokenizer import ClipTokenizer, read_tokenizer
from workers.engine.weights import (
    COMPONENTS,
    MissingWeightsError,
    folder_of,
    is_folder,
    named_loras,
    weight_file,
)
from workers.logs import timed

_SAFELY = {"use_safetensors": True, "local_files_only": True}  # no pickles, nothing from the hub

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

    Vae: TypeAlias = AutoencoderKL | AutoencoderTiny


@dataclass(frozen=True, eq=False)
class Parts:
    """A model as diffusers and transformers load it. `scheduler` is the configuration of the scheduler it came with."""

    unet: "UNet2DConditionModel"
    controlnet: "ControlNetModel"
    vae: "Vae"
    text_encoder: "CLIPTextModel"
    tokenizer: ClipTokenizer
    scheduler: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that is loaded or computed once, on its device."""

    unet: "UNet2DConditionModel"
    controlnet: "ControlNetModel"
    vae: "Vae"
    tokens: Tokens
    text: TextConditioning
    plans: Plans
    device: torch.device
    dtype: torch.dtype
    rounding_dtype: torch.dtype
    fused: bool = False
    """Whether the passes use kernels of ours, see `networks.py`."""
    faster: Faster | None = None

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def latent_scale(self) -> int:
        return latent_scale(self.vae)

    @property
    def hint_channels(self) -> int:
        return int(self.unet.config.block_out_channels[0])

    @property
    def time_width(self) -> int:
        return sum(sum(shift_widths(network)) for network in (self.unet, self.controlnet))

    def times(self, timesteps: Tensor) -> Tensor:
        return torch.cat([time_table(network, timesteps) for network in (self.unet, self.controlnet)], dim=1)

    def hint(self, edges: Tensor) -> Tensor:
        return hint_embedding(self.controlnet, edges.expand(1, 3, -1, -1))[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of final latents [C, h, w]: RGB uint8 [height, width, 3], on the device."""
        return decode(self.vae, latents, fused=self.fused)

    def functions(self, attend: Attend, mode: str | None) -> ModelFunctions:
        """The model's functions: by torch, with this attention. `faster` is what the model has, else torch.compile."""
        passes = Passes.of(self.unet, self.controlnet, attend, fused=self.fused)
        layers = Layers.of(self.unet, self.controlnet)

        def compiled() -> ModelFunctions:
            decode = torch.compile(self.decode, fullgraph=True, dynamic=False, mode=mode)
            return ModelFunctions(partial(_guided, passes.compiled(mode), layers), decode)

        faster = self.faster or TorchCompile(compiled, automatic=self.device.type == "cuda")
        return ModelFunctions(partial(_guided, passes, layers), self.decode, fused=self.fused, faster=faster)


def latent_scale(vae: "Vae") -> int:
    """Pixels along a side of one latent: each level of the VAE but the last halves an image."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _guided(passes: Passes, layers: Layers, side_stream: SideStream) -> Guided:
    return Guided(Denoiser(passes, side_stream), layers)


def decoder_of(vae: "Vae") -> list[nn.Module]:
    """The modules of a VAE that decode."""
    return [module for name, module in vae.named_children() if name in ("post_quant_conv", "decoder")]


def decode(vae: "Vae", latents: Tensor, *, fused: bool = False) -> Tensor:
    """Decode final latents [C, h, w] with the VAE: RGB uint8 [height, width, 3]."""
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)[None]
    image = vae_image(vae, scaled) if fused and has_pass(vae) else vae.decode(scaled, return_dict=False)[0]
    return to_pixels(image[0])


def to_pixels(decoded: Tensor) -> Tensor:
    """uint8 [height, width, 3] of the VAE's output [3, height, width] in -1 .. 1, rounded as diffusers does."""
    zero_to_one = (decoded.float() / 2 + 0.5).clamp(0, 1)
    return (zero_to_one * 255).round().to(torch.uint8).permute(1, 2, 0)


def load(config: EngineConfig, device: str) -> Model:
    """Load what a configuration names onto a torch device.

    Raises MissingWeightsError, UnsafeModelError, LoraError, UnsupportedModelError, UnsupportedSamplerError and
    QuantisationError.
    """
    parts = read(config, dtype_of(config, device), device)
    with timed("Assembled the model"):
        return assemble(config, parts, device)


def dtype_of(config: EngineConfig, device: str) -> torch.dtype:
    """The number format to compute in on a torch device."""
    return getattr(torch, config.dtype_on(cuda=torch.device(device).type == "cuda"))  # type: ignore[no-any-return]


@torch.no_grad()
def assemble(config: EngineConfig, parts: Parts, device: str, *, fused: bool | None = None) -> Model:
    """Check the parts, move them to the device, and compute what stays the same.

    `fused`: whether the passes use kernels of ours; if they are wanted and work on the device, unless told.

    Raises UnsupportedModelError, UnsupportedSamplerError and QuantisationError.
    """
    check_architecture(parts.unet.config, parts.controlnet.config, parts.text_encoder.config.hidden_size)
    plans = plans_of(config.sampler, parts.scheduler)
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        _freeze(part, device)
    networks = parts.unet, parts.controlnet
    if fused is None:
        fused = config.speed.kernels and kernels.usable(torch.device(device))
    for network in networks:
        pack_projections(network)
        if fused and config.quantisation == "none":  # h and x, side by side, would have one scale
            pack_ends(network)
    if fused:
        pack_upsamplers(parts.unet)
        if has_pass(parts.vae):
            pack_upsamplers(parts.vae.decoder)
    quantise_networks(networks, config.quantisation, torch.device(device))
    encoder, tokens = TextEncoder(parts.text_encoder, *networks), Tokens(parts.tokenizer, config.prompt)
    place, dtype = torch.device(device), parts.unet.dtype
    return Model(
        unet=parts.unet,
        controlnet=parts.controlnet,
        vae=parts.vae,
        tokens=tokens,
        text=TextConditioning(encoder, encoder.width, dtype, place, tokens.configured_negative),
        plans=plans,
        device=place,
        dtype=dtype,
        rounding_dtype=dtype if config.quantisation == "none" else FLOAT8,
        fused=fused,
    )


def _freeze(part: nn.Module, device: str) -> None:
    # Channels-last on the CPU too: a step of the demo model took 51 ms instead of 70.
    part.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def plans_of(sampler: Sampler, base: dict[str, Any], kept: KeptPlans | None = None) -> Plans:
    """The plans of a sampler; `base` is the configuration of the scheduler that the model came with.

    Raises UnsupportedSamplerError when the sampler cannot take the configured number of steps.
    """
    return Plans(sampler, lambda steps: make_scheduler(replace(sampler, steps=steps), base), kept)


def make_scheduler(sampler: Sampler, base: dict[str, Any]) -> DiffusersScheduler:
    """A diffusers scheduler with its timesteps set; `base` is the configuration of the one the model came with.

    Raises UnsupportedSamplerError.
    """
    kind = _scheduler_kind(sampler.name)
    # Only keys that this scheduler knows: diffusers warns of others.
    known = inspect.signature(kind).parameters
    options = {key: value for key, value in base.items() if key in known} | sampler.options
    try:
        scheduler = kind.from_config(options)
        scheduler.set_timesteps(sampler.steps)
    except (ImportError, LookupError, TypeError, ValueError) as error:
        problem = f"{sampler.name} does not work with {sampler.steps} steps and these options: {str(error).strip()}"
        raise UnsupportedSamplerError(problem) from error
    if not is_scheduler(scheduler):
        raise UnsupportedSamplerError(f"{sampler.name} is not a scheduler that works with Stable Diffusion")
    return scheduler


def _scheduler_kind(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    try:
        found = hasattr(kind, "set_timesteps")
    except ImportError:  # diffusers names the missing package when the scheduler is made
        found = True
    if not found:
        raise UnsupportedSamplerError(f"diffusers has no scheduler named {name}")
    return kind


# --------------------------------------------------------------------------------------------------------------- files


def read(config: EngineConfig, dtype: torch.dtype, device: str = "cpu") -> Parts:
    """Read the weights, with what changes them, each tensor straight to the device.

    Raises MissingWeightsError, UnsafeModelError, UnsupportedModelError and LoraError.
    """
    with timed("Imported diffusers and transformers"):
        from diffusers import ControlNetModel, UNet2DConditionModel
        from transformers import CLIPTextModel
        from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would draw in the log of every worker
    tokenizer, scheduler = small_parts(config)
    folder = _model_folder(config)
    control_folder = _folder("controlnet", config.controlnet) if config.controlnet else folder / "controlnet"
    own_vae = folder / "vae"
    vae_folder = _folder("vae", config.vae) if config.vae else own_vae
    check_folders(folder / "unet", folder / "text_encoder", own_vae, vae_folder, control_folder)
    vae_kind = _vae_kind(vae_folder, own_vae)
    with timed("Read the weights"):
        unet = _network_from(UNet2DConditionModel, folder / "unet", dtype, device)
        text_encoder = _text_encoder_from(CLIPTextModel, folder / "text_encoder", dtype, device)
        for name, lora in named_loras(config):
            fuse(_existing(_folder(name, lora), lora.file) / lora.file, lora.scale, unet, text_encoder)
        return Parts(
            unet=unet,
            controlnet=_network_from(ControlNetModel, control_folder, dtype, device),
            vae=_network_from(vae_kind, vae_folder, dtype, device),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
        )


def small_parts(config: EngineConfig) -> tuple[ClipTokenizer, dict[str, Any]]:
    """The parts that are no networks: tokenizer, and the scheduler's configuration.

    Raises MissingWeightsError and UnsafeModelError.
    """
    folder = _model_folder(config)
    check_folders(folder / "tokenizer", folder / "scheduler")
    words = folder / "tokenizer"
    pieces = () if (words / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
    _existing(words, "tokenizer_config.json", *pieces)
    scheduler = _existing(folder / "scheduler", "scheduler_config.json") / "scheduler_config.json"
    return read_tokenizer(words), read_object(scheduler)


def _model_folder(config: EngineConfig) -> Path:
    if config.model is None:
        raise MissingWeightsError("the configuration's engine.model")
    return _folder("model", config.model)


def _folder(name: str, weights: Weights) -> Path:
    if is_folder(weights):
        return Path(weights.path)  # missing files are reported one by one
    folder = folder_of(name, weights)
    if folder is None:
        raise MissingWeightsError(f"{weights.path} at revision {weights.revision}")
    return folder


def _existing(folder: Path, *files: str) -> Path:
    for file in files:
        if not (folder / file).is_file():
            raise MissingWeightsError(str(folder / file))
    return folder


def _variant(folder: Path, component: str, dtype: torch.dtype) -> Literal["fp16"] | None:
    file = weight_file(_existing(folder, "config.json"), COMPONENTS[component], half=dtype != torch.float32)
    return "fp16" if file.stem.endswith(".fp16") else None


def _network_from(kind: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    variant = _variant(folder, "unet", dtype)  # all networks' files are called alike
    return kind.from_pretrained(folder, variant=variant, dtype=dtype, device_map={"": device}, **_SAFELY)


def _vae_kind(folder: Path, own: Path) -> Any:
    """The class of the VAE in a folder. It must decode the latents of the model, whose own VAE is in another one.

    Raises MissingWeightsError and UnsupportedModelError.
    """
    import diffusers

    config, other = (read_object(_existing(each, "config.json") / "config.json") for each in (folder, own))
    check_vae(config, other)
    return getattr(diffusers, vae_class(config))


def _text_encoder_from(kind: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    variant = _variant(folder, "text_encoder", dtype)
    options = {"config": _text_config(kind, folder), "attn_implementation": "sdpa", **_SAFELY}
    return kind.from_pretrained(folder, variant=variant, dtype=dtype, device_map={"": device}, **options)


def _text_config(kind: Any, folder: Path) -> Any:
    """Only the numbers of the architecture: transformers would set any other key as an attribute, and act on some."""
    values = read_object(folder / "config.json")
    return kind.config_class(**{key: values[key] for key in kind.config_class.__annotations__ if key in values})
