"""The fields of a request as schemas: what their structs say, and the limits that are checked after them."""

from collections.abc import Mapping
from typing import Any

from app.description.nodes import BINARY, Node, nullable
from app.fields import Range, Rules
from app.settings import Settings

DIGITS = r"^-?(0|[1-9][0-9]*)$"
MEANINGS = {
    "request_id": "It comes back with the answer.",
    "text": "The prompt.",
    "random_seed": "The same seed gives the same picture.",
    "negative_prompt": "What the picture should not show.",
    "steps": "Denoising steps.",
    "guidance_scale": "How closely the prompt is followed (classifier-free guidance).",
    "control_scale": "How closely the edges are followed.",
    "canny_low": "Canny's lower threshold: an edge goes on where it is above it.",
    "canny_high": "Canny's upper threshold: an edge begins where it is above it.",
    "control_image": (
        "What the image is: a `photo`, in which edges are found, or `edges`, white on black, used as they are."
    ),
    "output_format": "The image file's format, else that of `Accept`, else as configured. Both must not differ.",
    "embed_metadata": (
        "What the image file tells of itself: `full`: all that made it; `source`: a model made it; `none`: nothing."
    ),
    "temperature": "Divides the logits of the softmax in the ControlNet's attention layers.",
    "number_of_images": "So many pictures are made, each with the next seed.",
    "priority": (
        "Of the requests of one client, those of higher priority start first. Below 0 is background work: others' "
        "requests go first, but leave it a tenth of the work."
    ),
}
NOTHING: Mapping[str, str] = {}


class FieldSchemas:
    """The schemas of the fields, with the ranges and the defaults of a configuration."""

    def __init__(self, settings: Settings) -> None:
        self.rules = Rules.of(settings)
        self._defaults = _defaults(settings, self.rules)

    def body(self, generated: Node, required: list[str]) -> Node:
        """The properties of a body of JSON, from those that msgspec makes of its struct; those required come first."""
        made = {name: self.json(name, node) for name, node in generated.items() if name in MEANINGS}
        encoded = {**BINARY, "format": "byte", "minLength": 1, "description": self._picture("in base64")}
        encoded["description"] += "; URL-safe or not, padded or not, with white space, as a `data:` URI."
        return {name: made.get(name, encoded) for name in dict.fromkeys([*required, *generated])}

    def texts(self, generated: Node, called: Mapping[str, str] = NOTHING) -> Node:
        """Fields that are a text each: in a form, or in a query. `called` has our names of those that differ."""
        return {name: self._plain(called.get(name, name), node) for name, node in generated.items()}

    def file(self) -> Node:
        """The picture as a file."""
        return {**BINARY, "description": self._picture("as a file") + "."}

    def json(self, name: str, generated: Node) -> Node:
        """A field of JSON, from what msgspec makes of it."""
        plain = self._plain(name, generated)
        meaning = {"description": plain.pop("description")}
        if name in {"request_id", "random_seed"}:
            plain = {"anyOf": [plain, {"type": "string", "pattern": DIGITS}]}
        return meaning | (nullable(plain) if "anyOf" in generated else plain)

    def _plain(self, name: str, generated: Node) -> Node:
        """Of a field that may be null, what it is otherwise."""
        node = generated.get("anyOf", [generated])[0]
        if name not in MEANINGS:
            return dict(node)
        kind = {key: node[key] for key in ("type", "enum") if key in node}
        node = {"description": MEANINGS[name], "type": "string", **kind} | self._limits(name)
        default = generated.get("default")
        default = self._defaults.get(name, default)
        return node if default is None else node | {"default": default}

    def _limits(self, name: str) -> Node:
        if name in {"text", "negative_prompt"}:
            return {"maxLength": self.rules.max_text_chars}
        return _bounds(self.rules.ranges[name]) if name in self.rules.ranges else {}

    def _picture(self, how: str) -> str:
        rules = self.rules
        return f"A PNG, JPEG or WebP {how}, of at most {rules.max_picture_bytes} bytes and {rules.max_pixels} pixels"


def _bounds(allowed: Range) -> Node:
    return {"exclusiveMinimum" if allowed.open else "minimum": allowed.low, "maximum": allowed.high}


def _defaults(settings: Settings, rules: Rules) -> dict[str, Any]:
    """What a field is as if it were, where a request leaves it out."""
    engine = settings.engine
    return {
        "negative_prompt": engine.prompt.negative,
        "steps": rules.steps,
        "guidance_scale": engine.guidance_scale,
        "control_scale": engine.control_scale,
        "canny_low": engine.canny.low,
        "canny_high": engine.canny.high,
        "control_image": "photo",
        "embed_metadata": rules.embed_metadata,
        "temperature": 1.0,
        "number_of_images": 1,
        "priority": 0,
    }
