"""The table of request options, `PARAMS`: which values each takes, what it means, and what it is called where.

Requests, error messages, OpenAPI, the command line, the page, and AUTOMATIC1111's and OpenAI's interfaces all work by
it. To add an option, add a field to `RequestOptions` and a row to `PARAMS`; it reaches the engine if its
`EngineOptions` have a field of that name. What a request leaves out is as configured:
`workers.engine.contract.resolved`.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from app.errors import Error, Problem, quoted
from app.settings import Settings
from workers.engine.config import MAX_THRESHOLD, Canny, EngineConfig
from workers.engine.contract import (
    AS_CONFIGURED,
    ControlImage,
    Embedding,
    EngineOptions,
    Format,
    Resolved,
    canny_of,
    resolved,
)

SEED_MIN, SEED_MAX = -(2**63), 2**64 - 1  # 64 bits, signed or unsigned; each is another image
SEEDS = SEED_MAX + 1 - SEED_MIN
PRIORITY = 10
DRAWN_SEEDS = 2**32  # of which one is drawn if a request names none: short enough to be typed again
AS_THEY_ARE: Mapping[str, str] = {}


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The optional fields of a request. What is missing or null has its configured value."""

    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    control_scale: float | None = None
    canny_low: int | None = None
    canny_high: int | None = None
    control_image: ControlImage | None = None
    output_format: Format | None = None
    embed_metadata: Embedding | None = None
    temperature: float | None = None
    number_of_images: int | None = None
    priority: int | None = None


class RequestFields(RequestOptions, frozen=True, kw_only=True):
    """All fields but the image, as a form, a query or a command line has them."""

    text: str
    request_id: int = 0
    random_seed: int = 0


class GenerationRequest(RequestOptions, frozen=True, kw_only=True):
    """The body. Integers may come as strings of digits; unknown fields are ignored."""

    request_id: int
    text: str
    input_image_base64: msgspec.Raw
    random_seed: int


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field may have, from `low` (itself too, unless it is `open`) to `high`."""

    low: float
    high: float
    open: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.open else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        return f"above {self.low} and at most {self.high}" if self.open else f"from {self.low} to {self.high}"


def _steps(settings: Settings) -> Range:
    engine = settings.engine
    return Range(1, max(resolved(AS_CONFIGURED, engine).steps, engine.sampler.max_steps))


def _guidance(settings: Settings) -> Range:
    """A model configured without guidance has no room for the unconditional half of a batch."""
    guided = settings.engine.guidance_scale > 1 or settings.engine.kind == "echo"
    return Range(0, 50 if guided else 1)


def _images(settings: Settings) -> Range:
    return Range(1, settings.server.max_images)


Configured: TypeAlias = Callable[[Settings], Range]  # a range that the configuration decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A row of the table.

    `default` is what counts where neither a request nor the configuration says anything. `flags` are the command
    line's. `automatic1111` and `openai` are its names in those interfaces where they differ; `elsewhere` are those in
    other services, which are ignored with a warning.
    """

    meaning: str
    range: Range | Configured | None = None
    default: object = None
    flags: tuple[str, ...] = ()
    automatic1111: str = ""
    openai: str = ""
    elsewhere: tuple[str, ...] = ()


PARAMS: Mapping[str, Param] = {
    "request_id": Param(
        meaning="A number that comes back with the answer.",
        elsewhere=("id", "requestId"),
    ),
    "text": Param(
        meaning="The prompt.",
        flags=("prompt",),
        automatic1111="prompt",
        openai="prompt",
        elsewhere=("prompt", "positive_prompt", "caption", "inputs"),
    ),
    "input_image_base64": Param(
        meaning="The image whose edges are kept.",
        elsewhere=(
            *("image", "input_image", "image_base64", "image_b64", "init_image", "init_images", "images", "image_url"),
            "inputImageBase64",
        ),
    ),
    "random_seed": Param(
        meaning="The same seed gives the same image.",
        range=Range(SEED_MIN, SEED_MAX),
        flags=("--seed",),
        automatic1111="seed",
        openai="seed",
        elsewhere=("seed", "randomSeed"),
    ),
    "negative_prompt": Param(
        meaning="What the image should not show.",
        flags=("--negative",),
        elsewhere=("negative", "neg_prompt", "n_prompt", "negativePrompt"),
    ),
    "steps": Param(
        meaning="Denoising steps.",
        range=_steps,
        flags=("--steps",),
        elsewhere=("num_inference_steps", "num_steps", "inference_steps", "sampling_steps", "ddim_steps"),
    ),
    "guidance_scale": Param(
        meaning="How closely the prompt is followed (classifier-free guidance).",
        range=_guidance,
        flags=("--guidance-scale",),
        automatic1111="cfg_scale",
        elsewhere=("cfg_scale", "cfg", "guidance", "guidanceScale"),
    ),
    "control_scale": Param(
        meaning="How closely the edges are followed.",
        range=Range(0, 2),
        flags=("--control-scale",),
        automatic1111="weight",
        elsewhere=(
            *("controlnet_conditioning_scale", "conditioning_scale", "control_strength", "control_weight"),
            "controlnet_scale",
        ),
    ),
    "canny_low": Param(
        meaning="Canny's lower threshold: an edge continues while its strength is above it.",
        range=Range(1, MAX_THRESHOLD),
        flags=("--canny-low",),
        automatic1111="threshold_a",
        elsewhere=("low_threshold", "canny_low_threshold", "threshold_low", "threshold_a"),
    ),
    "canny_high": Param(
        meaning="Canny's upper threshold: an edge starts where its strength is above it.",
        range=Range(1, MAX_THRESHOLD),
        flags=("--canny-high",),
        automatic1111="threshold_b",
        elsewhere=("high_threshold", "canny_high_threshold", "threshold_high", "threshold_b"),
    ),
    "control_image": Param(
        meaning="What the image is: a `photo`, whose edges are found, or `edges`, an edge map: white lines on black.",
        default="photo",
        flags=("--control-image",),
    ),
    "temperature": Param(
        meaning="Divides the logits of the softmax in the ControlNet's attention layers.",
        range=Range(0, 1, open=True),
        flags=("--temperature",),
    ),
    "number_of_images": Param(
        meaning="How many images to generate, each with the next seed.",
        range=_images,
        default=1,
        flags=("-n", "--number"),
        automatic1111="batch_size times n_iter",
        openai="n",
        elsewhere=("num_images", "n", "num_images_per_prompt", "batch_size", "num_outputs", "num_samples"),
    ),
    "priority": Param(
        meaning="Of the requests of one client, those of higher priority start first. Below 0 is background work: "
        "others' requests go first, but leave it a tenth of the work.",
        range=Range(-PRIORITY, PRIORITY),
        default=0,
    ),
    "output_format": Param(
        meaning="The image file's format, else that of `Accept`, else as configured. The two must agree.",
        elsewhere=("format", "image_format", "file_format", "response_format"),
    ),
    "embed_metadata": Param(
        meaning="What the image file says about itself: `full`: all parameters; `source`: that a model made it; "
        "`none`: nothing.",
    ),
}
TEXTS = ("text", "negative_prompt")
OF_THE_ENGINE = tuple(name for name in RequestOptions.__struct_fields__ if hasattr(AS_CONFIGURED, name))


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Options that follow from the answer's type: the format of the image files, and whether previews are made."""

    file_format: Format | None = None
    previews: bool = False


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """A request that was understood, whatever form it came in, and is within its limits.

    The first image is made with `seed`, the next with the next. `blamed` is what the client calls its image, for
    messages. `warnings` name fields that were sent but are ignored.
    """

    request_id: int
    image: bytes
    text: str
    seed: int
    options: EngineOptions
    number_of_images: int = 1
    priority: int = 0
    blamed: str | None = None
    warnings: tuple[str, ...] = ()

    def seeds(self) -> list[int]:
        return seeds(self.seed, self.number_of_images)


def drawn_seed() -> int:
    """A random seed, for a request without one."""
    return secrets.randbelow(DRAWN_SEEDS)


def seeds(first: int, images: int) -> list[int]:
    """The seeds of several images; the greatest is followed by the least."""
    return [(first - SEED_MIN + n) % SEEDS + SEED_MIN for n in range(images)]


def engine_options(fields: RequestOptions, output: OutputOptions, embed_metadata: Embedding = "none") -> EngineOptions:
    """The engine's options for some fields. `output` and `embed_metadata` apply unless the fields say otherwise."""
    said = {name: value for name in OF_THE_ENGINE if (value := getattr(fields, name)) is not None}
    return EngineOptions(
        negative=fields.negative_prompt,
        format=fields.output_format or output.file_format,
        previews=output.previews,
        **{"embed_metadata": embed_metadata, **said},
    )


# Values in a body of JSON: requests of real clients have a few hundred; a million would be gigabytes of objects.
JSON_VALUES, COMMAS_IN_TEXTS = 10_000, 4


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits. `ranges` and `defaults` are by the name of an option; a default applies if a request leaves the
    option out."""

    max_body_bytes: int
    max_image_bytes: int
    max_pixels: int
    max_text_chars: int
    max_json_values: int
    engine: EngineConfig
    ranges: Mapping[str, Range]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        server, engine = settings.server, settings.engine
        ranges = {name: param.range for name, param in PARAMS.items() if param.range is not None}
        always = {name: param.default for name, param in PARAMS.items() if param.default is not None}
        return cls(
            server.max_body_bytes,
            server.max_image_bytes,
            settings.max_pixels,
            server.max_text_chars,
            JSON_VALUES + COMMAS_IN_TEXTS * server.max_text_chars,
            engine,
            {name: each if isinstance(each, Range) else each(settings) for name, each in ranges.items()},
            {**always, **resolved(AS_CONFIGURED, engine)._asdict(), "embed_metadata": server.embed_metadata},
        )

    def resolved(self, options: EngineOptions) -> Resolved:
        return resolved(options, self.engine)

    def canny(self, options: EngineOptions) -> Canny:
        return canny_of(options, self.engine)

    def faults(
        self, fields: RequestFields | GenerationRequest, called: Mapping[str, str] = AS_THEY_ARE
    ) -> Iterator[Problem]:
        """The fields that are out of range. `called` has an API's own names of fields."""
        for name in TEXTS:
            if (text := getattr(fields, name)) is not None:
                yield from self._text_faults(text, called.get(name, name))
        yield from self.number_faults({name: getattr(fields, name) for name in self.ranges}, called)
        if fields.control_image == "edges":
            yield from _edge_map_faults(fields, called)

    def number_faults(
        self, numbers: Mapping[str, float | None], called: Mapping[str, str] = AS_THEY_ARE
    ) -> Iterator[Problem]:
        """The numbers that are out of range; None is always in range."""
        for name, number in numbers.items():
            if number is not None and number not in (allowed := self.ranges[name]):
                blamed = called.get(name, name)
                yield Problem(Error.INVALID_FIELD, f"{blamed} is {quoted(number)}; it must be {allowed}.", blamed)

    def _text_faults(self, text: str, blamed: str) -> Iterator[Problem]:
        if len(text) > self.max_text_chars:
            detail = f"{blamed} has {len(text)} characters; at most {self.max_text_chars} are allowed."
            yield Problem(Error.INVALID_FIELD, detail, blamed)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            detail = f"{blamed} has half of a surrogate pair ({code}), which is not a character; send it as UTF-8."
            yield Problem(Error.INVALID_FIELD, detail, blamed)


def _edge_map_faults(fields: RequestOptions, called: Mapping[str, str]) -> Iterator[Problem]:
    names = [called.get(name, name) for name in ("canny_low", "canny_high") if getattr(fields, name) is not None]
    if names:
        detail = f"control_image is edges: no edges are detected in an edge map. Leave out {' and '.join(names)}."
        yield Problem(Error.INVALID_FIELD, detail, names[0])
