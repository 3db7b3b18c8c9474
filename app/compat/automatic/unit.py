"""ControlNet's arguments: the one picture whose edges count."""

from collections.abc import Iterator, Mapping

import msgspec

from app import pictures
from app.bodies import parsed_json
from app.compat.automatic.errors import wrong
from app.compat.automatic.structs import ControlNetUnit, MaskedImage, Script
from app.errors import quoted

SCRIPT, MODULE, PICTURE = "controlnet", "canny", "image"
OFF = (b"null", b"false")
NO_MODELS = ("", "none")
BALANCED = (None, 0, "", "0", "Balanced")
UNUSED = {
    "mask": "all of the picture counts",
    "mask_image": "all of the picture counts",
    "effective_region_mask": "all of the picture counts",
    "advanced_weighting": "the weight is the same everywhere",
    "guessmode": "the prompt always counts",
    "guess_mode": "the prompt always counts",
}

_json = msgspec.json.Decoder(ControlNetUnit, strict=False)


def unit(scripts: Mapping[str, Script]) -> tuple[ControlNetUnit, bytes]:
    """The one that is enabled, and its picture. Raises Problem where there is none, or what cannot be had."""
    units = [each for name, script in scripts.items() for each in _units(name, script)]
    if len(units) != 1:
        text = f"{len(units)} units of ControlNet are enabled; one is needed, in alwayson_scripts.controlnet.args,"
        raise wrong("alwayson_scripts", f"{text} with module {MODULE!r} and the picture whose edges are to be kept.")
    (found,) = units
    _check(found)
    picture = _picture(found)
    # Without the texts that the image came in: they would stay in memory for as long as the request waits.
    return msgspec.structs.replace(found, image=None, input_image=None), picture


def _units(name: str, script: Script) -> Iterator[ControlNetUnit]:
    if name.lower() != SCRIPT:
        if script.args and bytes(script.args[0]) not in OFF:  # whoever turns one off says so in the first argument
            raise wrong("alwayson_scripts", f"There is no script {quoted(name)} here, but {SCRIPT!r}; leave it out.")
        return
    for each in map(bytes, script.args):
        if each not in OFF and (found := parsed_json(each, _json)).enabled is not False:
            yield found


def _check(given: ControlNetUnit) -> None:
    if (given.module or "none").lower() != MODULE:
        text = f"module is {quoted(given.module)}, but edges are found here, by {MODULE!r}: send the picture itself."
        raise wrong("module", text)
    model = (given.model or "none").lower()
    if model not in NO_MODELS and MODULE not in model:
        text = f"model is {quoted(given.model)}, but ControlNet follows edges here: name one of {MODULE!r}."
        raise wrong("model", text)
    if (given.guidance_start or 0.0) > 0:
        raise wrong("guidance_start", f"guidance_start is {given.guidance_start}, but ControlNet has all steps: 0.")
    if given.guidance_end is not None and given.guidance_end < 1:
        raise wrong("guidance_end", f"guidance_end is {given.guidance_end}, but ControlNet has all steps: 1.")
    if given.control_mode not in BALANCED:
        raise wrong("control_mode", f"control_mode is {quoted(given.control_mode)}; it must be 0, that is, Balanced.")
    for name, why in UNUSED.items():
        if getattr(given, name):
            raise wrong(name, f"{name} is given, but {why}; leave it out.")


def _picture(given: ControlNetUnit) -> bytes:
    picture = given.image or given.input_image
    if isinstance(picture, MaskedImage):
        if picture.mask:
            raise wrong("mask", f"mask is given, but {UNUSED['mask']}; leave it out.")
        picture = picture.image
    if not picture:
        raise wrong(PICTURE, f"{PICTURE} is missing: the picture whose edges are to be kept, in base64.")
    return pictures.from_base64(picture, PICTURE)
