"""The fields of a request: what they are called, which values are taken here, and what they mean to an engine."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from app.errors import Error, Faults, Problem, quoted
from app.settings import Settings
from workers.engine.config import Sizing
from workers.engine.contract import ControlImage, Embedding, Format, Options

SEED_MIN, SEED_MAX = -(2**63), 2**64 - 1  # 64 bits, signed or unsigned; each is another image
SEEDS = SEED_MAX + 1 - SEED_MIN
PRIORITY = 10
# Values in a body of JSON: requests of real clients have a few hundred; a million would be gigabytes of objects.
JSON_VALUES, COMMAS_IN_TEXTS = 10_000, 4
DRAWN_SEEDS = 2**32  # of which one is drawn for who names none: short enough to be typed again
AS_THEY_ARE: Mapping[str, str] = {}


class OptionalFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may say besides. What is missing or null is as configured."""

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


class Fields(OptionalFields, frozen=True, kw_only=True):
    """All fields but the picture, as a form or a query brings them."""

    text: str
    request_id: int = 0
    random_seed: int = 0


class GenerationRequest(OptionalFields, frozen=True, kw_only=True):
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that was understood: `images` pictures are wanted, the first made with `seed`, the next with the next.

    `blamed` is what the client calls its picture. `warnings` tell of fields that were sent and are ignored.
    """

    request_id: int
    picture: bytes
    text: str
    seed: int
    options: Options
    images: int = 1
    priority: int = 0
    blamed: str | None = None
    warnings: tuple[str, ...] = ()

    def seeds(self) -> list[int]:
        """The seed of each picture."""
        return seeds(self.seed, self.images)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is taken here, by the configuration. `steps` is what a picture takes unless its request says otherwise."""

    max_body_bytes: int
    max_picture_bytes: int
    max_pixels: int
    max_text_chars: int
    max_json_values: int
    sizing: Sizing
    steps: int
    ranges: Mapping[str, Range]
    file_format: Format
    embed_metadata: Embedding
    keeps_size: bool = False  # images come back at the size that they came with

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """Those of a configuration."""
        server, engine = settings.server, settings.engine
        steps = engine.echo.steps if engine.kind == "echo" else engine.sampler.steps
        guided = engine.guidance_scale > 1 or engine.kind == "echo"
        ranges = {
            "random_seed": Range(SEED_MIN, SEED_MAX),
            "steps": Range(1, max(steps, engine.sampler.max_steps)),
            "guidance_scale": Range(0, 50 if guided else 1),
            "control_scale": Range(0, 2),
            "canny_low": Range(1, 2000),
            "canny_high": Range(1, 2000),
            "temperature": Range(0, 1, open=True),
            "number_of_images": Range(1, server.max_images),
            "priority": Range(-PRIORITY, PRIORITY),
        }
        return cls(
            server.max_body_bytes,
            server.max_picture_bytes,
            settings.max_pixels,
            server.max_text_chars,
            JSON_VALUES + COMMAS_IN_TEXTS * server.max_text_chars,
            engine.size,
            steps,
            ranges,
            engine.output.format,
            server.embed_metadata,
            keeps_size=engine.kind == "echo",
        )

    def check(self, fields: Fields | GenerationRequest) -> None:
        """Raises Problem for all that is out of its range."""
        found = Faults()
        for problem in self.faults(fields):
            found.add(problem)
        found.check()

    def faults(self, fields: Fields | GenerationRequest, called: Mapping[str, str] = AS_THEY_ARE) -> list[Problem]:
        """What is out of its range. `called` is what an interface calls fields."""
        found: list[Problem] = []
        for name in ("text", "negative_prompt"):
            if (text := getattr(fields, name)) is not None:
                found += self._text_faults(text, called.get(name, name))
        for name, allowed in self.ranges.items():
            if (number := getattr(fields, name)) is not None and number not in allowed:
                found.append(_out_of_range(called.get(name, name), number, allowed))
        if fields.control_image == "edges":
            found += _edge_map_faults(fields, called)
        return found

    def number_faults(
        self, numbers: Mapping[str, float | None], called: Mapping[str, str] = AS_THEY_ARE
    ) -> Iterator[Problem]:
        """Those of some fields that are out of their ranges; None is in any."""
        for name, number in numbers.items():
            if number is not None and number not in self.ranges[name]:
                yield _out_of_range(called.get(name, name), number, self.ranges[name])

    def _text_faults(self, text: str, blamed: str) -> list[Problem]:
        found = []
        if len(text) > self.max_text_chars:
            detail = f"{blamed} has {len(text)} characters; at most {self.max_text_chars} are taken."
            found.append(Problem(Error.INVALID_FIELD, detail, blamed))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            detail = f"{blamed} has half of a surrogate pair ({code}), which is no character; send it as UTF-8."
            found.append(Problem(Error.INVALID_FIELD, detail, blamed))
        return found


def _out_of_range(blamed: str, number: float, allowed: Range) -> Problem:
    return Problem(Error.INVALID_FIELD, f"{blamed} is {quoted(number)}; it must be {allowed}.", blamed)


def _edge_map_faults(fields: OptionalFields, called: Mapping[str, str]) -> Iterator[Problem]:
    names = [called.get(name, name) for name in ("canny_low", "canny_high") if getattr(fields, name) is not None]
    if names:
        detail = f"control_image is edges: no edges are searched for in an edge map. Leave out {' and '.join(names)}."
        yield Problem(Error.INVALID_FIELD, detail, names[0])


def drawn_seed() -> int:
    """For a request that names none."""
    return secrets.randbelow(DRAWN_SEEDS)


def seeds(first: int, images: int) -> list[int]:
    """The seed of each of several pictures; after the greatest comes the least."""
    return [(first - SEED_MIN + n) % SEEDS + SEED_MIN for n in range(images)]


def options(
    fields: OptionalFields,
    file_format: Format | None = None,
    *,
    previews: bool = False,
    embed_metadata: Embedding = "none",
) -> Options:
    """What they mean to an engine. `file_format` and `embed_metadata` hold where the fields say nothing else."""
    return Options(
        negative=fields.negative_prompt,
        steps=fields.steps,
        guidance_scale=fields.guidance_scale,
        control_scale=fields.control_scale,
        canny_low=fields.canny_low,
        canny_high=fields.canny_high,
        control_image=fields.control_image or "photo",
        temperature=1.0 if fields.temperature is None else fields.temperature,
        format=fields.output_format or file_format,
        previews=previews,
        embed_metadata=fields.embed_metadata or embed_metadata,
    )
