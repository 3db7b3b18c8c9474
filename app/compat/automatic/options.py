"""The web UI's settings, of which one is read by nearly every client: which model there is. Requests change none."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from app.compat.automatic.errors import wrong
from app.errors import quoted

MODEL = "sd_model_checkpoint"
# Of what is saved, shown and named on the web UI's machine: nothing of that is done here, and pictures stay the same.
HARMLESS = ("directories_", "do_not_", "enable_pnginfo", "grid_", "outdir_", "return_", "samples_", "save_", "show_")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings are."""

    sd_model_checkpoint: str
    sd_vae: Literal["Automatic"] = "Automatic"
    CLIP_stop_at_last_layers: Literal[1] = 1
    samples_format: Literal["png"] = "png"
    live_previews_enable: Literal[True] = True
    live_previews_image_format: Literal["jpeg"] = "jpeg"
    control_net_unit_count: Literal[1] = 1


def check(wanted: Mapping[str, Any], options: Options) -> None:
    """Raises Problem where a setting is wanted that would make other pictures, or that is not known."""
    present = msgspec.structs.asdict(options)
    for name, value in wanted.items():
        if name.startswith(HARMLESS) or name.startswith("live_preview") or value is None:
            continue
        if name not in present:
            raise wrong(name, f"There is no setting {quoted(name)} here; leave it out.")
        if _plain(name, value) != present[name]:
            text = f"{name} is {present[name]!r} here and cannot be changed by a request, to {quoted(value)} for one."
            raise wrong(name, text)


def _plain(name: str, value: object) -> object:
    """A model without its hash and its file's suffix, as clients name it."""
    if name == MODEL and isinstance(value, str):
        return value.partition(" [")[0].removesuffix(".safetensors").removesuffix(".ckpt")
    return value
