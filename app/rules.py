"""The limits of requests, by the configuration: sizes, lengths and ranges; and what is wrong with a request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import Error, Faults, Problem, quoted
from app.params import AS_THEY_ARE, PARAMS, TEXTS, GenerationRequest, Range, RequestFields, RequestOptions
from app.settings import Settings
from workers.engine.config import EngineConfig
from workers.engine.contract import AS_CONFIGURED, Options, Resolved, resolved

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

    def resolved(self, options: Options) -> Resolved:
        """Complete options with the configured values."""
        return resolved(options, self.engine)

    def check(self, fields: RequestFields) -> None:
        """Raise one Problem for all fields that are out of range."""
        found = Faults()
        for problem in self.faults(fields):
            found.add(problem)
        found.check()

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
        detail = f"control_image is edges: no edges are searched for in an edge map. Leave out {' and '.join(names)}."
        yield Problem(Error.INVALID_FIELD, detail, names[0])
