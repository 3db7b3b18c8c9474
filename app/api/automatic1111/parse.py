"""Parse the body of txt2img into this service's own parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.api.automatic1111.controlnet_unit import CANNY, IMAGE, Mask, module_of, parse_unit
from app.api.automatic1111.options import Options, Overrides, overridden
from app.api.automatic1111.scripts import SamplerArgs, Scripts, SeedArgs, is_nothing, read
from app.api.automatic1111.structs import ControlNetUnit, Txt2ImgRequest, wrong
from app.errors import Faults, quoted
from app.params import PARAMS, GenerationParams, OutputOptions, RequestFields, RequestOptions, Rules, drawn_seed
from app.parsing import aliases
from app.parsing.bodies import understood
from workers.engine.contract import Task
from workers.engine.metadata import Provenance

# Features that this service does not have. A request is refused only if one of them is on.
UNUSED = {
    "enable_hr": "images are generated at one size only",
    "restore_faces": "this service does not restore faces",
    "tiling": "this service does not make tileable images",
    "styles": "this service has no styles",
    "script_name": "the only script is ControlNet, in alwayson_scripts",
    "refiner_checkpoint": "this service has one model",
    "subseed_strength": "the noise of an image comes from one seed",
    "seed_resize_from_w": "the noise always has the size of the image",
    "seed_resize_from_h": "the noise always has the size of the image",
    "eta": "the sampler's noise is as configured",
    "s_churn": "the sampler's noise is as configured",
    "s_noise": "the sampler's noise is as configured",
    "s_min_uncond": "guidance is the same at all steps",
    "save_images": "this service saves nothing; the images are in the answer",
    "infotext": "this service does not read it; send its values as fields",
}
ONE_IS_DEFAULT = ("eta", "s_noise")
CALLED = {name: param.automatic1111 for name, param in PARAMS.items() if param.automatic1111}
# Names of fields in other APIs, and their names here.
ELSEWHERE = CALLED | {
    "input_image_base64": "image, in a unit of alwayson_scripts.controlnet.args",
    "request_id": "force_task_id",
    "output_format": "samples_format, in override_settings",
}
OTHERS = {*aliases.OURS, *ELSEWHERE} - {*Txt2ImgRequest.__struct_fields__}
UNSET = dict.fromkeys(OTHERS, msgspec.UNSET)
Body = aliases.with_others(Txt2ImgRequest, tuple(sorted(ELSEWHERE)))
DRAWN = (None, -1)


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed request; `request` is the body without its scripts. `made_from` is that of the first image.

    `masks` must be checked before images are generated. `notes` say which fields were not followed.
    """

    request: Txt2ImgRequest
    module: str
    params: GenerationParams
    made_from: Provenance
    masks: Sequence[Mask]
    notes: Sequence[str]


def parse(request: Txt2ImgRequest, rules: Rules, present: Options, faults: Faults) -> ParsedRequest:
    """Parse a body. `faults` are those found so far. Raises one Problem for all of them."""
    for name, why in UNUSED.items():
        if _is_on(name, value := getattr(request, name)):
            faults.add(wrong(name, f"{name} is {quoted(value)}, but {why}; leave it out."))
    overrides, scripts = Overrides("png", "none"), Scripts((), SeedArgs(), SamplerArgs())
    given, image, masks = ControlNetUnit(module=CANNY), b"", list[Mask]()
    with faults.noted():
        overrides = overridden(request.settings, present, rules.defaults["embed_metadata"])
    with faults.noted():
        # Longer ones are refused below.
        prompts = [(text or "")[: rules.max_text_chars] for text in (request.prompt, request.negative_prompt)]
        scripts = read(request.scripts, prompts)
        given, image, masks = parse_unit(scripts.units, rules.engine.size.short_side)
    others = aliases.warnings(aliases.sent_in(request) & OTHERS, ELSEWHERE)
    request, notes = _completed(request, scripts)
    fields = _fields(request, given, overrides)
    params = understood(fields, image, IMAGE, rules, OutputOptions("png", previews=True), CALLED, faults)
    made_from = Provenance.of(Task(image, params.text, params.seed, params.options))
    return ParsedRequest(request, module_of(given.module), params, made_from, masks, [*notes, *others])


def _is_on(name: str, value: object) -> bool:
    if isinstance(value, int | float):
        return value > 0 and not (value == 1 and name in ONE_IS_DEFAULT)
    return not is_nothing(value)


def _completed(request: Txt2ImgRequest, scripts: Scripts) -> tuple[Txt2ImgRequest, list[str]]:
    """Fill in fields from the scripts Seed and Sampler. The notes name contradictions.

    These scripts repeat fields of the request. If both are given, the field counts, as in the web UI's API.
    """
    repeated = {
        "seed": ("Seed", None if request.seed in DRAWN else request.seed, scripts.seed.seed),
        "steps": ("Sampler", request.steps, scripts.sampler.steps),
        "sampler_name": ("Sampler", request.sampler_name or request.sampler_index, scripts.sampler.sampler),
        "scheduler": ("Sampler", request.scheduler, scripts.sampler.scheduler),
    }
    missing = {name: said for name, (_, field, said) in repeated.items() if field is None and said is not None}
    notes = [
        f"The field {name} was used; the script {script} says otherwise."
        for name, (script, field, said) in repeated.items()
        if field is not None and said not in (None, -1, field) and name in ("seed", "steps")
    ]
    return msgspec.structs.replace(request, alwayson_scripts={}, **UNSET, **missing), notes


def _fields(request: Txt2ImgRequest, given: ControlNetUnit, overrides: Overrides) -> RequestFields:
    is_canny = module_of(given.module) == CANNY
    sent = msgspec.structs.asdict(request) | msgspec.structs.asdict(given)
    ours: dict[str, Any] = {name: sent.get(CALLED.get(name, name)) for name in RequestOptions.__struct_fields__}
    ours |= {
        "output_format": overrides.file_format,
        "embed_metadata": overrides.embed_metadata,
        "number_of_images": (request.batch_size or 1) * (request.n_iter or 1),
        "control_image": "photo" if is_canny else "edges",
        "canny_low": threshold(given.threshold_a) if is_canny else None,
        "canny_high": threshold(given.threshold_b) if is_canny else None,
    }
    seed = drawn_seed() if request.seed is None or request.seed in DRAWN else request.seed
    return RequestFields(text=request.prompt or "", random_seed=seed, **ours)


def threshold(given: float | None) -> int | None:
    """A negative threshold means the configured one, which is None."""
    return None if given is None or given < 0 else round(given)
