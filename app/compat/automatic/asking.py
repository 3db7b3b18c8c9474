"""A body of txt2img, and what it asks for in this service's own words."""

from dataclasses import dataclass

import msgspec

from app.bodies import Answering, understood
from app.compat.automatic import options
from app.compat.automatic.errors import wrong
from app.compat.automatic.options import Options
from app.compat.automatic.structs import ControlNetUnit, Txt2ImgRequest
from app.compat.automatic.unit import PICTURE, unit
from app.errors import quoted
from app.fields import Fields, Rules, Wanted, drawn_seed

# What would make other pictures and cannot be had. None of them is refused while it is off.
UNUSED = {
    "enable_hr": "a picture is made at one size",
    "restore_faces": "nothing restores faces here",
    "tiling": "nothing makes pictures that can be tiled here",
    "styles": "there are no styles here",
    "script_name": "there are no scripts here but ControlNet, in alwayson_scripts",
    "refiner_checkpoint": "there is one model here",
    "subseed_strength": "noise is of one seed here",
    "seed_resize_from_w": "noise is of one size here",
    "seed_resize_from_h": "noise is of one size here",
}
CALLED = {
    "text": "prompt",
    "random_seed": "seed",
    "guidance_scale": "cfg_scale",
    "number_of_images": "batch_size times n_iter",
    "control_scale": "weight",
    "canny_low": "threshold_a",
    "canny_high": "threshold_b",
}
DRAWN = (None, -1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came, without its scripts, and as it was understood."""

    request: Txt2ImgRequest
    unit: ControlNetUnit
    wanted: Wanted


def asked(request: Txt2ImgRequest, rules: Rules, present: Options) -> Asked:
    """What a body asks for. Raises Problem."""
    for name, why in UNUSED.items():
        if _is_on(value := getattr(request, name)):
            raise wrong(name, f"{name} is {quoted(value)}, but {why}; leave it out.")
    options.check(request.override_settings or {}, present)
    given, picture = unit(request.alwayson_scripts or {})
    fields = _fields(request, given)
    wanted = understood(fields, picture, PICTURE, rules, Answering("png", previews=True), CALLED)
    return Asked(msgspec.structs.replace(request, alwayson_scripts={}), given, wanted)


def _is_on(value: object) -> bool:
    if isinstance(value, str):
        return value.lower() not in ("", "none")
    return value > 0 if isinstance(value, int | float) else bool(value)


def _fields(request: Txt2ImgRequest, given: ControlNetUnit) -> Fields:
    return Fields(
        text=request.prompt or "",
        random_seed=drawn_seed() if request.seed is None or request.seed in DRAWN else request.seed,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=request.cfg_scale,
        number_of_images=(request.batch_size or 1) * (request.n_iter or 1),
        control_scale=given.weight,
        canny_low=_threshold(given.threshold_a),
        canny_high=_threshold(given.threshold_b),
    )


def _threshold(given: float | None) -> int | None:
    """None, that is, as configured, for what is negative."""
    return None if given is None or given < 0 else round(given)
