"""Schemas of what is sent and answered: msgspec's of the structs, and of each option what the table of them says."""

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from types import ModuleType
from typing import Any, TypeAlias

import msgspec

from app.api.automatic1111 import structs as automatic
from app.api.automatic1111.controlnet_unit import IMAGE, MODULES, NONE
from app.api.automatic1111.detect import DetectAnswer, DetectRequest
from app.api.automatic1111.options import Options, catalogue
from app.api.edges import EdgesRequest
from app.api.generation import JSON, GenerationAnswer
from app.api.health import Aliveness, Readiness
from app.api.openai import structs as openai
from app.api.openai.parse import FIELDS
from app.api.openai.parse import IMAGE as EDITED_IMAGE
from app.api.page import PageSettings
from app.errors import ProblemBody
from app.http import events
from app.params import PARAMS, TEXTS, GenerationRequest, RequestFields, Rules
from app.parsing.bodies import FORM_FILE
from app.parsing.input_image import JSON_NAME
from app.settings import Settings

Node: TypeAlias = dict[str, Any]

BINARY: Node = {"type": "string", "format": "binary"}
TEXT: Node = {"type": "string"}
DIGITS = r"^-?(0|[1-9][0-9]*)$"
STRUCTS = (
    *(GenerationRequest, RequestFields, GenerationAnswer, EdgesRequest, ProblemBody, PageSettings),
    *(Aliveness, Readiness, *events.NAMES),
)
IN_OPENAI = {param.openai: name for name, param in PARAMS.items() if param.openai}
IN_AUTOMATIC = {param.automatic1111 or name: name for name, param in PARAMS.items()}


def reference(name: str) -> Node:
    return {"binary": BINARY, "text": TEXT}.get(name, {"$ref": f"#/components/schemas/{name}"})


def struct_of(value: object) -> type[msgspec.Struct] | None:
    """The struct that a value is, or the items of a list are."""
    first = value[0] if isinstance(value, list) and value else value
    return type(first) if isinstance(first, msgspec.Struct) else None


class Schemas:
    """The schemas of a configuration: `named` are all that the description refers to, `query` those of options in a
    query."""

    def __init__(self, settings: Settings) -> None:
        self._rules = Rules.of(settings)
        self.named = _made(STRUCTS)
        fields = self.named.pop(RequestFields.__name__)
        self.query = {name: self._option(name, node) for name, node in fields["properties"].items()}
        for body in (self.named[GenerationRequest.__name__], self.named[EdgesRequest.__name__]):
            properties = {name: self._in_json(name, node) for name, node in body["properties"].items()}
            body["properties"] = {name: properties[name] for name in dict.fromkeys([*body["required"], *properties])}
        self.named["GenerationForm"] = self._form(FORM_FILE, self.query, fields["required"])
        kinds = {name: struct.__name__ for struct, name in events.NAMES.items()}
        self.named["GenerationEvent"] = _event(kinds | {"done": "GenerationAnswer", "error": "ProblemBody"})
        self.named |= self._openai() | self._automatic(settings)
        for node in self.named.values():
            node["description"] = cleandoc(node.get("description", ""))

    def _openai(self) -> Node:
        made = _made(_in(openai), "OpenAI.")
        form = made["OpenAI.EditForm"]
        ours = IN_OPENAI.values()  # said once, by its name there
        texts = {
            name: self._option(IN_OPENAI.get(name, name), node)
            for name, node in form["properties"].items()
            if name not in ours
        }
        needed = form["required"]
        form |= self._form(EDITED_IMAGE, texts, needed)
        where = " in base64, usually within a `data:` URI; no image is fetched from elsewhere."
        url = self._file("as a file", where) | {"format": "byte", "minLength": 1}
        one = {"type": "object", "properties": {"image_url": url}, "required": ["image_url"]}
        images = {"type": "array", "items": one, "minItems": 1, "maxItems": 1}
        texts = {name: node if name in needed else _nullable(node) for name, node in texts.items()}
        body = {"type": "object", "properties": {FIELDS[0]: images, **texts}, "required": [FIELDS[0], *needed]}
        kinds = {
            "image_edit.partial_image": "OpenAI.PartialImageEvent",
            "image_edit.completed": "OpenAI.CompletedEvent",
            "error": "OpenAI.ErrorAnswer",
        }
        return made | {"OpenAI.EditBody": body, "OpenAI.EditEvent": _event(kinds)}

    def _automatic(self, settings: Settings) -> Node:
        listed = [struct for value in catalogue(settings).values() if (struct := struct_of(value))]
        made = _made([*_in(automatic), DetectRequest, DetectAnswer, Options, *listed], "Automatic.")
        fields, unit = made["Automatic.Txt2ImgRequest"]["properties"], made["Automatic.ControlNetUnit"]
        for name in fields.keys() & IN_AUTOMATIC.keys():
            fields[name] = self._in_json(IN_AUTOMATIC[name], fields[name])
        for name in unit["properties"].keys() & IN_AUTOMATIC.keys():
            ours = IN_AUTOMATIC[name]
            unit["properties"][name]["description"] = f"{PARAMS[ours].meaning} In this service's own API: `{ours}`."
        unit["properties"] |= {IMAGE: BINARY | {"format": "byte"}, "module": {"enum": list(MODULES), "default": NONE}}
        unit["required"] = [IMAGE]
        return made

    def _form(self, file: str, texts: Node, required: Sequence[str]) -> Node:
        properties = {file: self._file("as a file"), **texts}
        return {"type": "object", "properties": properties, "required": [file, *required]}

    def _in_json(self, name: str, generated: Node) -> Node:
        """A field of JSON, from what msgspec makes of it."""
        if name == JSON_NAME:
            text = self._file("in base64", "; URL-safe or not, padded or not, with white space, as a `data:` URI.")
            return text | {"format": "byte", "minLength": 1}
        node = self._option(name, generated)
        meaning = {"description": node.pop("description")}
        if name in {"request_id", "random_seed"}:
            node = {"anyOf": [node, {**TEXT, "pattern": DIGITS}]}
        return meaning | (_nullable(node) if "anyOf" in generated else node)

    def _option(self, name: str, generated: Node) -> Node:
        """A field that is a text of a form or a query, or in JSON what it is if it is not null."""
        node: Node = dict(generated.get("anyOf", [generated])[0])
        if name not in PARAMS:
            return node
        kind: Node = {key: node[key] for key in ("type", "enum") if key in node}
        node = {"description": PARAMS[name].meaning, **TEXT, **kind, **self._limits(name)}
        default = self._rules.defaults.get(name, generated.get("default"))
        return node if default is None else node | {"default": default}

    def _limits(self, name: str) -> Node:
        if name in TEXTS:
            return {"maxLength": self._rules.max_text_chars}
        if (allowed := self._rules.ranges.get(name)) is None:
            return {}
        return {"exclusiveMinimum" if allowed.open else "minimum": allowed.low, "maximum": allowed.high}

    def _file(self, how: str, more: str = ".") -> Node:
        most = f"{self._rules.max_image_bytes} bytes and {self._rules.max_pixels} pixels"
        return {**BINARY, "description": f"A PNG, JPEG or WebP {how}, of at most {most}{more}"}


def _in(module: ModuleType) -> list[type]:
    found = (each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__)
    return [each for each in found if issubclass(each, msgspec.Struct)]


def _made(structs: Sequence[type], prefix: str = "") -> Node:
    """The schemas of structs, and of those within them."""
    _, made = msgspec.json.schema_components(structs, ref_template=f"#/components/schemas/{prefix}{{name}}")
    return {prefix + name: node for name, node in made.items()}


def _nullable(node: Node) -> Node:
    default = {"default": node["default"]} if "default" in node else {}
    return {"anyOf": [{key: value for key, value in node.items() if key != "default"}, {"type": "null"}], **default}


def _event(kinds: Mapping[str, str]) -> Node:
    """Before OpenAPI 3.2, a stream's schema is that of each event in it: its name, and a struct as JSON."""
    return {"oneOf": [_one_event(*kind) for kind in kinds.items()]}


def _one_event(name: str, data: str) -> Node:
    encoded = {**TEXT, "contentMediaType": JSON, "contentSchema": reference(data)}
    return {"type": "object", "properties": {"event": {"const": name}, "data": encoded}, "required": ["event", "data"]}
