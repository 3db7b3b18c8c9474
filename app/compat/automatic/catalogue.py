"""What clients ask for before they ask for images: which models, samplers and so on there are."""

from collections.abc import Mapping
from typing import Any

import msgspec

from app.compat.automatic.controlnet_unit import CANNY, NONE
from app.compat.automatic.scripts import SCRIPT
from app.rules import Rules
from app.settings import Settings
from workers.engine.metadata import sampler_name

CONTROLNET_API = 2  # the version whose arguments are taken


class SdModel(msgspec.Struct, frozen=True):
    """The model; neither its hash nor where it lies is told."""

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
    """What can be said to the edge detector; its resolution cannot, so the first slider is none."""

    sliders: list[Slider | None]
    model_free: bool = False


class ControlType(msgspec.Struct, frozen=True):
    """What goes together."""

    module_list: list[str]
    model_list: list[str]
    default_option: str
    default_model: str


class Scripts(msgspec.Struct, frozen=True):
    """The extensions that there are."""

    txt2img: list[str]
    img2img: list[str]


class ScriptInfo(msgspec.Struct, frozen=True):
    """An extension. Its arguments are not listed one by one: each is an object."""

    name: str
    is_alwayson: bool = True
    is_img2img: bool = False
    args: list[str] = []


def catalogue(settings: Settings) -> Mapping[str, Any]:
    """What is answered, by path."""
    name = settings.server.model_name
    models, modules = [f"{name}-{CANNY}"], [NONE, CANNY]
    kind = ControlType(modules, models, CANNY, models[0])
    unavailable = {"error": "unavailable"}  # as the web UI has it where it cannot tell
    return {
        "/sdapi/v1/sd-models": [SdModel(name, name, name)],
        "/sdapi/v1/samplers": [_sampler(settings)],
        "/sdapi/v1/schedulers": [SchedulerItem()],
        "/sdapi/v1/scripts": Scripts([SCRIPT], []),
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
