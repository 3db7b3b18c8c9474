"""python -m workers.engine.tryout: try the sampler and the LoRAs of a configuration, without loading the model.

Reads a (located) engine section as JSON and writes the problems: [[key, text], ...]. LoRAs are fused into networks on
torch's meta device, which have shapes but no weights.
"""

import inspect
import logging
import re
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from workers.console import command
from workers.engine.config import EngineConfig, Sampler
from workers.engine.model_checks import read_object
from workers.engine.weights import folder_of, named_loras
from workers.schema import allowed, nearest, show

Found = tuple[tuple[str, ...], str]
USUAL_STEPS = 20
PACKAGES = re.compile(r"scipy|torchsde")
# Options that diffusers declares as text, though they are one of several words.
_WORDS: Mapping[str, Any] = {
    "beta_schedule": typing.Literal["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": typing.Literal["epsilon", "sample", "v_prediction"],
    "timestep_spacing": typing.Literal["linspace", "leading", "trailing"],
}


def main() -> None:
    """Write the answer to standard output, and nothing else."""
    logging.disable()
    warnings.simplefilter("ignore")
    engine = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    sys.stdout.buffer.write(msgspec.json.encode([*_sampler_problems(engine), *_lora_problems(engine)]))


def _folder(engine: EngineConfig) -> Path:
    assert engine.model is not None
    folder = folder_of("model", engine.model)
    assert folder is not None
    return folder


# ------------------------------------------------------------------------------------------------------------- sampler


def _sampler_problems(engine: EngineConfig) -> Iterator[Found]:
    base = read_object(_folder(engine) / "scheduler" / "scheduler_config.json")
    sampler, key = engine.sampler, ("engine", "sampler")
    wrong = [((*key, "options", name), text) for name, text in _option_problems(sampler)]
    yield from wrong
    if not wrong and (error := _failure(sampler, base)) is not None:
        part, text = _blame(sampler, base, error)
        yield (*key, *part), text


def _option_problems(sampler: Sampler) -> Iterator[tuple[str, str]]:
    """Names that the scheduler does not have, and values of another type."""
    import diffusers

    known = inspect.signature(getattr(diffusers, sampler.name)).parameters
    for name, value in sampler.options.items():
        if name not in known:
            listed = ", ".join(sorted(known))
            yield name, f"is not an option of {sampler.name}{nearest(name, known)} Allowed: {listed}"
        elif (kind := _kind(name, known[name].annotation)) is not None and not _fits(value, kind):
            yield name, f"is {show(value)}, but must be {allowed(kind)}"


def _kind(name: str, annotation: Any) -> Any:
    """The type of an option, if it is one that a configuration can say."""
    if annotation is str:
        return _WORDS.get(name, str)
    members = [annotation] if typing.get_origin(annotation) is typing.Literal else typing.get_args(annotation)
    plain = all(
        member in (bool, int, float, str, type(None)) or typing.get_origin(member) is typing.Literal
        for member in members
    )
    return annotation if plain and (members or annotation in (bool, int, float)) else None


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _failure(sampler: Sampler, base: Mapping[str, Any]) -> Exception | None:
    """Return the exception that diffusers or the matrix's proof raises with a sampler; None if it works."""
    from workers.engine.model import plans_of

    try:
        plans_of(replace(sampler, max_steps=1), dict(base))
    except Exception as error:  # noqa: BLE001 - schedulers raise anything when a number is not for them
        return error
    return None


def _blame(sampler: Sampler, base: Mapping[str, Any], error: Exception) -> tuple[tuple[str, ...], str]:
    """Find the key to blame by leaving out one after another; return it with the message."""
    if package := PACKAGES.search(str(error)):
        text = f"needs the package {package[0]}, which is not installed: {command('-m', 'pip', 'install', package[0])}"
        option = next((name for name in sampler.options if _works(sampler, base, without=name)), None)
        return (("name",), f"is {sampler.name}, which {text}") if option is None else (("options", option), text)
    for option, value in sampler.options.items():
        if _works(sampler, base, without=option):
            text = f"is {show(value)}, which {sampler.name} does not accept here: leave it out"
            return ("options", option), text
    if _failure(replace(sampler, steps=USUAL_STEPS), base) is None:
        return ("steps",), f"is {sampler.steps}, which {sampler.name} cannot take: choose another number"
    if sampler.options:
        return ("options",), f"do not work together with {sampler.name}: leave them out one by one"
    text = "which does not work with this model's scheduler/scheduler_config.json"
    advice = ": set engine.sampler.options: {clip_sample: false}" * _works(sampler, {**base, "clip_sample": False})
    return ("name",), f"is {sampler.name}, {text}{advice or '; choose another'}"


def _works(sampler: Sampler, base: Mapping[str, Any], without: str | None = None) -> bool:
    options = {name: value for name, value in sampler.options.items() if name != without}
    return _failure(replace(sampler, options=options), base) is None


# --------------------------------------------------------------------------------------------------------------- LoRAs


def _lora_problems(engine: EngineConfig) -> Iterator[Found]:
    if not engine.loras:
        return
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from workers.engine.lora import LoraError, fuse

    folder = _folder(engine)
    text = read_object(folder / "text_encoder" / "config.json")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_object(folder / "unet" / "config.json"))
        known = CLIPTextConfig.__annotations__
        encoder = CLIPTextModel(CLIPTextConfig(**{key: text[key] for key in known if key in text}))
    for name, lora in named_loras(engine):
        place = folder_of(name, lora)
        assert place is not None
        try:
            fuse(place / lora.file, lora.scale, unet, encoder)
        except LoraError as error:
            yield ("engine", *name.split("."), "file"), f"cannot be used: {error}"


if __name__ == "__main__":
    main()
