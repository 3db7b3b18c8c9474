"""Parse ControlNet's arguments: the one enabled unit, its image and its masks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.api.automatic1111.scripts import FIELD, SCRIPT, is_nothing
from app.api.automatic1111.structs import ControlNetUnit, MaskedImage, Name, wrong
from app.errors import Faults, Problem, quoted
from app.parsing import input_image
from app.parsing.json import parsed_json

CANNY, NONE = "canny", "none"
MODULES = (CANNY, NONE)
MODULES_TEXT = "'canny' (edges are found in the image) or 'none' (the image is an edge map, white on black)"
IMAGE, REGION = "image", "effective_region_mask"
BALANCED = ("none", "", "0", "balanced")  # also as an enumeration has it: ControlMode.BALANCED
RESIZE_MODES = ("0", "1", "2", "3", "none", "")
RESIZE_WORDS = ("resize", "fit", "fill")  # of all of their names
PROCESSOR_RES = (64, 512)  # the defaults of clients
BLACK, WHITE = 5, 250  # a mask masks nothing if no value is above the one, or none below the other
UNUSED = {
    "advanced_weighting": "the weight is the same everywhere",
    "guessmode": "the prompt always counts",
    "guess_mode": "the prompt always counts",
    "batch_images": "a request has one image",
    "loopback": "a request has one image",
    "use_preview_as_input": "there is no preview to use; send the image",
    "ipadapter_input": "there is no IP-Adapter",
    "animatediff_batch": "there is no AnimateDiff",
}

_unit = msgspec.json.Decoder(ControlNetUnit, strict=False)


MISSING = msgspec.Raw(b"null")
EMPTY_BYTES = 100  # of JSON that may have no image in it
EMPTY = re.compile(rb'(?:null|""|"image"\s*:|"mask"\s*:|[\s\[\]{},])*+')  # such as {"image": null, "mask": ""}


class _Switch(msgspec.Struct, frozen=True):
    """The fields of a unit that decide whether it is enabled."""

    enabled: bool | None = None
    module: Any = None
    image: msgspec.Raw = MISSING
    input_image: msgspec.Raw = MISSING

    @property
    def is_on(self) -> bool:
        """Whether the unit is enabled: not switched off, and with an image or a module."""
        given = not is_nothing(self.module) or not all(map(_is_empty, (self.image, self.input_image)))
        return self.enabled is not False and given


def _is_empty(image: msgspec.Raw) -> bool:
    return len(image) <= EMPTY_BYTES and EMPTY.fullmatch(image) is not None


_switch = msgspec.json.Decoder(_Switch, strict=False)


@dataclass(frozen=True, slots=True)
class Mask:
    """An image file, and what its client calls it."""

    name: str
    file: bytes

    def check(self, low: int, high: int) -> None:
        """Raises Problem unless a mask whose values are from `low` to `high`, of 0 to 255, masks nothing."""
        if low >= WHITE or (high <= BLACK and self.name != REGION):
            return
        text = f"{self.name} covers part of the image, but this service uses the whole image: leave the mask out,"
        raise wrong(self.name, f"{text} or send one that is all black or all white.")


def parse_unit(args: Sequence[msgspec.Raw], short_side: int) -> tuple[ControlNetUnit, bytes, list[Mask]]:
    """Parse the one enabled unit, its image and its masks. `short_side` is the model's.

    Raises Problem if there is not exactly one, or if it asks for something that this service does not have.
    """
    faults = Faults()
    units = [parsed_json(each, _unit, faults=faults) for each in _enabled(args)]
    if len(units) != 1:
        text = f"{len(units)} ControlNet units are enabled. Send one, in {FIELD}.{SCRIPT}.args, with an image and"
        raise wrong(FIELD, f"{text} a module: {MODULES_TEXT}.")
    (found,) = units
    faults.add(*_faults(found, short_side))
    image, masks = _files(found, faults)
    faults.check()
    # Without the base64 of the files, which would stay in memory while the request waits.
    bare = msgspec.structs.replace(
        found, image=None, input_image=None, mask=None, mask_image=None, effective_region_mask=None
    )
    return bare, image, masks


def module_of(name: Name | None, field: str = "module") -> str:
    """The module that a client names, in any case; none is the default. Raises Problem."""
    module = (name or NONE).strip().lower()
    if module not in MODULES:
        advice = ""
        if module.startswith("invert"):
            advice = " Invert the image yourself and send it with 'none'."
        raise wrong(field, f"{field} is {quoted(name)}, which this service does not have. Send {MODULES_TEXT}.{advice}")
    return module


def _enabled(args: Sequence[msgspec.Raw]) -> Iterator[bytes]:
    """Skips arguments that are not objects: the web UI's own page sends some."""
    for raw in map(bytes, args):
        if raw[:1] == b"{" and parsed_json(raw, _switch).is_on:
            yield raw


def _faults(given: ControlNetUnit, short_side: int) -> Iterator[Problem]:
    module = NONE
    try:
        module = module_of(given.module)
    except Problem as problem:
        yield problem
    model = (given.model or NONE).lower()
    if not is_nothing(model) and CANNY not in model:
        text = f"model is {quoted(given.model)}, but the model of this service follows edges: name one of {CANNY!r}."
        yield wrong("model", text)
    end = given.guidance_end if given.guidance is None else given.guidance
    if (given.guidance_start or 0.0) > 0:
        yield wrong("guidance_start", f"guidance_start is {given.guidance_start}; it must be 0: all steps are guided.")
    if end is not None and end < 1:
        yield wrong("guidance_end", f"guidance_end is {end}; it must be 1: all steps are guided.")
    if str(given.control_mode).rpartition(".")[2].strip().lower() not in BALANCED:
        yield wrong("control_mode", f"control_mode is {quoted(given.control_mode)}; it must be 0 or 'Balanced'.")
    if module == CANNY and not given.pixel_perfect:
        yield from _resolution_faults(given.processor_res, short_side)
    yield from _mode_faults(given)
    for name, why in UNUSED.items():
        if not (is_nothing(value := getattr(given, name)) or _is_ones(value)):
            yield wrong(name, f"{name} is given, but {why}; leave it out.")


def _is_ones(value: object) -> bool:
    """Whether a value is a list of factors that change nothing."""
    return isinstance(value, list) and all(each == 1 for each in value)


def _resolution_faults(resolution: float | None, short_side: int) -> Iterator[Problem]:
    if resolution is not None and resolution > 0 and resolution not in {*PROCESSOR_RES, short_side}:
        text = f"processor_res is {resolution:g}, but edges are found at the image's own size, whose short side is"
        yield wrong("processor_res", f"{text} {short_side}: leave it out, or set pixel_perfect.")


def _mode_faults(given: ControlNetUnit) -> Iterator[Problem]:
    resize = str(given.resize_mode).lower()
    if resize not in RESIZE_MODES and not any(word in resize for word in RESIZE_WORDS):
        text = f"resize_mode is {quoted(given.resize_mode)}, which is not a resize mode of ControlNet: leave it out."
        yield wrong("resize_mode", f"{text} The size follows the image.")
    if given.input_mode and "simple" not in given.input_mode.lower():
        yield wrong("input_mode", f"input_mode is {quoted(given.input_mode)}; it must be 'simple', for one image.")


def _files(given: ControlNetUnit, faults: Faults) -> tuple[bytes, list[Mask]]:
    """Decode the image file and the masks. Those that cannot be decoded are noted as faults."""
    image, mask = _pair(given.image or given.input_image)
    masks = {"mask": mask or given.mask, "mask_image": given.mask_image, REGION: given.effective_region_mask}
    file, files = b"", list[Mask]()
    if not image:
        faults.add(wrong(IMAGE, f"{IMAGE} is missing: send the image whose edges the new image keeps, in base64."))
    else:
        with faults.noted():
            file = input_image.from_base64(image, IMAGE)
    for name, text in masks.items():
        if text:
            with faults.noted():
                files.append(Mask(name, input_image.from_base64(text, name)))
    return file, files


def _pair(given: str | MaskedImage | list[str | None] | None) -> tuple[str | None, str | None]:
    """An image and its mask, in base64, or None."""
    match given:
        case MaskedImage():
            return given.image, given.mask
        case list():
            image, mask, *_ = [*given, None, None]
            return image, mask
        case _:
            return given, None
