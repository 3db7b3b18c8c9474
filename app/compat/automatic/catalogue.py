"""What clients ask for before they ask for pictures: which models, samplers and so on there are."""

from collections.abc import Mapping
from typing import Any

import msgspec

from app.compat.automatic.unit import MODULE, SCRIPT
from app.fields import Rules
from app.settings import Settings

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
    """The sampler, by diffusers' name."""

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


def catalogue(settings: Settings) -> Mapping[str, Any]:
    """What is answered, by path."""
    name = settings.server.model_name
    models, modules = [f"{name}-{MODULE}"], [MODULE]
    kind = ControlType(modules, models, MODULE, models[0])
    return {
        "/sdapi/v1/sd-models": [SdModel(name, name, name)],
        "/sdapi/v1/samplers": [SamplerItem(settings.engine.sampler.name)],
        "/sdapi/v1/schedulers": [SchedulerItem()],
        "/sdapi/v1/scripts": Scripts([SCRIPT], []),
        "/sdapi/v1/upscalers": [],
        "/sdapi/v1/loras": [],
        "/sdapi/v1/sd-vae": [],
        "/sdapi/v1/prompt-styles": [],
        "/controlnet/version": {"version": CONTROLNET_API},
        "/controlnet/settings": {"control_net_unit_count": 1},
        "/controlnet/model_list": {"model_list": models},
        "/controlnet/module_list": {"module_list": modules, "module_detail": {MODULE: _detail(settings)}},
        "/controlnet/control_types": {"control_types": {"All": kind, "Canny": kind}},
    }


def _detail(settings: Settings) -> ModuleDetail:
    canny, ranges = settings.engine.canny, Rules.of(settings).ranges
    low, high = ranges["canny_low"], ranges["canny_high"]
    return ModuleDetail(
        [
            None,
            Slider("Canny Low Threshold", canny.low, low.low, low.high),
            Slider("Canny High Threshold", canny.high, high.low, high.high),
        ]
    )
