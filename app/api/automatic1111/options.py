"""The web UI's settings, and the lists that its clients ask for first: models, samplers and so on.

Few settings have an effect here. A request may choose the format of its files and what is embedded in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from app.api.automatic1111.controlnet_unit import CANNY, NONE
from app.api.automatic1111.scripts import SCRIPT, is_nothing
from app.api.automatic1111.structs import wrong
from app.errors import Faults, plain, quoted
from app.params import Rules
from app.settings import Settings
from workers.engine.contract import Embedding, Format
from workers.engine.metadata import sampler_name

MODEL, SAMPLES_FORMAT, PNGINFO = "sd_model_checkpoint", "samples_format", "enable_pnginfo"
QUALITY, LOSSLESS = "jpeg_quality", "webp_lossless"
# Of what is saved, shown, named and kept in memory on the web UI's machine: images stay the same. Without save_images,
# the web UI's API saves nothing either, whatever these say.
HARMLESS = (
    *("directories_", "do_not_", "grid_", "outdir_", "return_", "save_", "show_", "live_preview", "ui_", "add_"),
    *("samples_save", "samples_filename", "sd_checkpoint_cache", "sd_checkpoints_", "batch_cond_uncond"),
    *("pad_cond_uncond", "persistent_cond", "cross_attention", "img2img_", "interrogate_", "upscal"),
    *("face_restoration_model", "code_former_weight", "ESRGAN_", "SCUNET_", "hires_fix_", "sdxl_refiner_", "img_max_"),
    *(
        "img_downscale_",
        "target_side_length",
        "export_for_4chan",
        "use_original_name",
        "infotext_",
        "send_seed",
        "send_size",
        "js_",
    ),
    *("quicksettings", "multiple_tqdm", "memmon_", "list_hidden_files", "auto_launch", "forge_inference_memory"),
    *("textual_inversion_", "extra_networks_", "control_net_unit_count", "control_net_no_detectmap"),
    *("control_net_detect", "control_net_model", "control_net_max_models", "controlnet_show_", "controlnet_disable_"),
)
# Settings that would make other images, and the values that do not: the web UI's defaults that are not empty or off.
DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "emphasis": ("Original", "None"),
    "enable_emphasis": (True, False),
    "enable_batch_seeds": (True,),
    "forge_preset": ("sd",),
    "comma_padding_backtrack": (20,),
    "eta_ancestral": (1,),
    "s_noise": (1,),
    "initial_noise_multiplier": (1,),
    "uni_pc_variant": ("bh1",),
    "uni_pc_skip_type": ("time_uniform",),
    "uni_pc_order": (3,),
    "uni_pc_lower_order_final": (True,),
    "ddim_discretize": ("uniform",),
    "sd_noise_schedule": ("Default",),
    "randn_source": ("GPU", "CPU", "NV"),
    "sd_vae_encode_method": ("Full",),
    "sd_vae_decode_method": ("Full",),
}
CHOSEN = (SAMPLES_FORMAT, QUALITY, LOSSLESS, PNGINFO)
FORMATS: Mapping[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The present settings."""

    sd_model_checkpoint: str
    sd_vae: Literal["Automatic"] = "Automatic"
    CLIP_stop_at_last_layers: Literal[1] = 1
    samples_format: Literal["png"] = "png"
    jpeg_quality: int = 95
    enable_pnginfo: bool = False
    live_previews_enable: Literal[True] = True
    live_previews_image_format: Literal["jpeg"] = "jpeg"
    control_net_unit_count: Literal[1] = 1


def present_options(settings: Settings) -> Options:
    server, output = settings.server, settings.engine.output
    embeds = server.embed_metadata != "none"
    return Options(sd_model_checkpoint=server.model_name, jpeg_quality=output.quality, enable_pnginfo=embeds)


@dataclass(frozen=True, slots=True)
class Overrides:
    """The settings that a request may choose: the format of its files, and the metadata in them."""

    file_format: Format
    embed_metadata: Embedding


def overridden(wanted: Mapping[str, Any], present: Options, embedded: Embedding) -> Overrides:
    """Parse `override_settings`. `embedded` is the configured metadata of files. Raises Problem.

    Files have the text that clients of the web UI look for in them, unless the request or the configuration wants none.
    """
    faults = Faults()
    with faults.noted():
        file_format = _format(wanted.get(SAMPLES_FORMAT))
        quality = wanted.get(QUALITY)
        if file_format != "png" and not is_nothing(quality) and _plain(QUALITY, quality) != present.jpeg_quality:
            text = f"{QUALITY} is {quoted(quality)}, but files are written at {present.jpeg_quality}; leave it out."
            raise wrong(QUALITY, text)
        if file_format == "webp" and not is_nothing(wanted.get(LOSSLESS)):
            raise wrong(LOSSLESS, f"{LOSSLESS} is on, but only PNG is lossless here; leave it out, or choose png.")
    with faults.noted():
        check({name: value for name, value in wanted.items() if name not in CHOSEN}, present)
    faults.check()
    pnginfo = wanted.get(PNGINFO)
    is_full = embedded != "none" if pnginfo in (None, "") else not is_nothing(pnginfo)
    less: Embedding = "none" if embedded == "none" else "source"
    return Overrides(file_format, "full" if is_full else less)


def check(wanted: Mapping[str, Any], present: Options) -> None:
    """Raise Problem for settings that are unknown or that would change the images."""
    here, faults = msgspec.structs.asdict(present), Faults()
    for name, value in wanted.items():
        if value in (None, "") or name.startswith(HARMLESS):
            continue
        if name in here:
            if not _is_so(name, value, here[name]):
                text = f"{name} is {here[name]!r} here; a request cannot change it to {quoted(value)}."
                faults.add(wrong(name, text))
        elif not _is_default(name, value):
            advice = f"Leave it out; in override_settings, {SAMPLES_FORMAT} and {PNGINFO} can be chosen."
            faults.add(wrong(name, f"{plain(name)} is {quoted(value)}, but this service has no such setting. {advice}"))
    faults.check()


def _is_so(name: str, value: object, present: object) -> bool:
    return _plain(name, value) == present or (is_nothing(value) and not isinstance(present, bool))


def _is_default(name: str, value: object) -> bool:
    """Whether a setting that we do not have is at its default."""
    return _plain(name, value) in DEFAULTS[name] if name in DEFAULTS else is_nothing(value)


def _format(wanted: object) -> Format:
    if is_nothing(wanted):
        return "png"
    if isinstance(wanted, str) and (found := FORMATS.get(wanted.strip().lower())):
        return found
    raise wrong(SAMPLES_FORMAT, f"{SAMPLES_FORMAT} is {quoted(wanted)}; it must be one of {', '.join(FORMATS)}.")


def _plain(name: str, value: object) -> object:
    """Normalize a value: a model without its hash and suffix, a number that came as text."""
    if name == MODEL and isinstance(value, str):
        return value.partition(" [")[0].removesuffix(".safetensors").removesuffix(".ckpt")
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else value


# -------------------------------------------------------------------------------------------------- lists by path

CONTROLNET_API = 2  # the version whose arguments are taken


class SdModel(msgspec.Struct, frozen=True):
    """The model, without its hash and path."""

    title: str
    model_name: str
    filename: str
    hash: str | None = None
    sha256: str | None = None
    config: str | None = None


class SamplerItem(msgspec.Struct, frozen=True):
    """The sampler, by the web UI's name where it has one."""

    name: str
    aliases: list[str] = []
    options: dict[str, str] = {}


class SchedulerItem(msgspec.Struct, frozen=True):
    """The sampler's own noise schedule."""

    name: str = "automatic"
    label: str = "Automatic"
    aliases: list[str] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False


class Slider(msgspec.Struct, frozen=True):
    """A threshold of the edge detector."""

    name: str
    value: float
    min: float
    max: float


class ModuleDetail(msgspec.Struct, frozen=True):
    """The options of the edge detector. The first slider is its resolution, which cannot be set here."""

    sliders: list[Slider | None]
    model_free: bool = False


class ControlType(msgspec.Struct, frozen=True):
    """The modules and models that go together."""

    module_list: list[str]
    model_list: list[str]
    default_option: str
    default_model: str


class ScriptNames(msgspec.Struct, frozen=True):
    """The extensions."""

    txt2img: list[str]
    img2img: list[str]


class ScriptInfo(msgspec.Struct, frozen=True):
    """An extension. Its arguments are not listed one by one: each is an object."""

    name: str
    is_alwayson: bool = True
    is_img2img: bool = False
    args: list[str] = []


def catalogue(settings: Settings) -> Mapping[str, Any]:
    """The answers by path."""
    name = settings.server.model_name
    models, modules = [f"{name}-{CANNY}"], [NONE, CANNY]
    kind = ControlType(modules, models, CANNY, models[0])
    unavailable = {"error": "unavailable"}  # as the web UI writes it
    return {
        "/sdapi/v1/sd-models": [SdModel(name, name, name)],
        "/sdapi/v1/samplers": [_sampler(settings)],
        "/sdapi/v1/schedulers": [SchedulerItem()],
        "/sdapi/v1/scripts": ScriptNames([SCRIPT], []),
        "/sdapi/v1/script-info": [ScriptInfo(SCRIPT)],
        "/sdapi/v1/upscalers": [],
        "/sdapi/v1/loras": [],
        "/sdapi/v1/sd-vae": [],
        "/sdapi/v1/prompt-styles": [],
        "/sdapi/v1/hypernetworks": [],
        "/sdapi/v1/face-restorers": [],
        "/sdapi/v1/latent-upscale-modes": [],
        "/sdapi/v1/embeddings": {"loaded": {}, "skipped": {}},
        "/sdapi/v1/cmd-flags": {},
        "/sdapi/v1/memory": {"ram": unavailable, "cuda": unavailable},
        "/controlnet/version": {"version": CONTROLNET_API},
        "/controlnet/settings": {"control_net_unit_count": 1},
        "/controlnet/model_list": {"model_list": models},
        "/controlnet/module_list": {"module_list": modules, "module_detail": _details(settings)},
        "/controlnet/control_types": {"control_types": {"All": kind, "Canny": kind}},
    }


def _sampler(settings: Settings) -> SamplerItem:
    name, ours = sampler_name(settings.engine), settings.engine.sampler.name
    return SamplerItem(name, [] if ours == name else [ours])


def _details(settings: Settings) -> Mapping[str, ModuleDetail]:
    canny, ranges = settings.engine.canny, Rules.of(settings).ranges
    low, high = ranges["canny_low"], ranges["canny_high"]
    sliders = [
        None,
        Slider("Canny Low Threshold", canny.low, low.low, low.high),
        Slider("Canny High Threshold", canny.high, high.low, high.high),
    ]
    return {NONE: ModuleDetail([]), CANNY: ModuleDetail(sliders)}
