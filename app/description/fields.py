"""The fields of a request as schemas: what their structs say, and the limits that are checked after them."""

from collections.abc import Mapping

from app.description.nodes import BINARY, Node, nullable
from app.params import PARAMS, TEXTS, Range
from app.pictures import JSON_NAME
from app.rules import Rules
from app.settings import Settings

DIGITS = r"^-?(0|[1-9][0-9]*)$"
NOTHING: Mapping[str, str] = {}


class FieldSchemas:
    """The schemas of the fields, with the ranges and the defaults of a configuration."""

    def __init__(self, settings: Settings) -> None:
        self.rules = Rules.of(settings)

    def body(self, generated: Node, required: list[str]) -> Node:
        """The properties of a body of JSON, from those that msgspec makes of its struct; those required come first."""
        made = {name: self.json(name, node) for name, node in generated.items() if name != JSON_NAME}
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
        if name not in PARAMS:
            return dict(node)
        kind = {key: node[key] for key in ("type", "enum") if key in node}
        node = {"description": PARAMS[name].meaning, "type": "string", **kind} | self._limits(name)
        default = generated.get("default")
        default = self.rules.defaults.get(name, default)
        return node if default is None else node | {"default": default}

    def _limits(self, name: str) -> Node:
        if name in TEXTS:
            return {"maxLength": self.rules.max_text_chars}
        return _bounds(self.rules.ranges[name]) if name in self.rules.ranges else {}

    def _picture(self, how: str) -> str:
        rules = self.rules
        return f"A PNG, JPEG or WebP {how}, of at most {rules.max_picture_bytes} bytes and {rules.max_pixels} pixels"


def _bounds(allowed: Range) -> Node:
    return {"exclusiveMinimum" if allowed.open else "minimum": allowed.low, "maximum": allowed.high}
