"""Parse the body of an edit, a form or JSON, into this service's own parameters."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request

from app.api.openai.structs import EditForm
from app.errors import Error, Faults, Problem
from app.params import PARAMS, GenerationParams, OutputOptions, RequestFields, RequestOptions, Rules, drawn_seed
from app.parsing import aliases, bodies, input_image
from app.parsing.fields import given_in, loose, of_fields
from app.parsing.json import broken

FIELDS = ("images", "image", "image[]")
NULL, EMPTY, NOTHING = b"null", b'""', (b"[]", b"{}")
PROMPT = "prompt"  # may be empty
EXAMPLE = '{"image_url": "data:image/png;base64,..."}'
IMAGE = "image"
IMAGES = (IMAGE, "image[]")  # the second is for several
MASK, MARKUP = "mask", "markup"
MARKS = "Markup is not supported: only the prompt and the image's edges count. Leave it out."
TYPES = "a form (multipart/form-data) or JSON (application/json)"
CALLED = {name: param.openai for name, param in PARAMS.items() if param.openai} | {"input_image_base64": IMAGE}
OTHERS = {*aliases.NAMES, *CALLED} - {*EditForm.__struct_fields__, *FIELDS, MASK}
_json_fields = loose(EditForm, (*FIELDS, MASK, MARKUP, *sorted(OTHERS)))


@dataclass(frozen=True, slots=True)
class Edit:
    """A parsed request: its fields, the image and the client's name for it, a mask, and the names of other fields."""

    form: EditForm
    image: bytes
    blamed: str
    mask: bytes
    others: Collection[str]


async def parse(request: Request, rules: Rules, faults: Faults) -> Edit:
    """Parse a body, a form or JSON. Faults of its fields are added to `faults`."""
    kind = bodies.media_type(request)
    if bodies.is_json(kind):
        return await _json(request, rules, faults)
    if kind != "multipart/form-data":
        raise bodies.unsupported(kind, TYPES)
    texts, files = await bodies.form(request, rules)
    given = {name for name, text in texts.items() if text} | {name for name, _ in files}
    form, image, mask = bodies.converted(texts, EditForm, faults, rules.ranges), b"", b""
    if MARKUP in given:
        faults.add(Problem(Error.INVALID_FIELD, MARKS, MARKUP))
    with faults.noted():
        image = await bodies.image_of_form(texts, files, IMAGE, IMAGES)
    if MASK in given:
        with faults.noted():
            mask = await bodies.image_of_form(texts, files, MASK, (MASK,))
    return Edit(form, image, IMAGE, mask, given & OTHERS)


async def _json(request: Request, rules: Rules, faults: Faults) -> Edit:
    given = given_in(await bodies.json_body(request, rules, _json_fields))
    size = sum(map(len, given.values()))
    return await bodies.in_thread_if_large(size, _of_json, given, faults, rules)


def _of_json(given: Mapping[str, msgspec.Raw], faults: Faults, rules: Rules) -> Edit:
    given = {name: value for name, value in given.items() if _is_given(name, value)}
    image, blamed, mask = b"", FIELDS[0], b""
    try:
        if MARKUP in given and _is_set(given[MARKUP]):
            faults.add(Problem(Error.INVALID_FIELD, MARKS, MARKUP))
        form = of_fields(given, EditForm, faults, rules.ranges)
        with faults.noted():
            image, blamed = _image_of(given)
        if MASK in given and _is_set(given[MASK]):
            with faults.noted():
                mask, _ = _file(MASK, given[MASK])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise broken(b"".join(map(bytes, given.values())), error) from None
    return Edit(form, image, blamed, mask, given.keys() & OTHERS)


def params_of(edit: Edit, rules: Rules, faults: Faults) -> GenerationParams:
    """This service's own parameters for an edit. Raises one Problem for all faults."""
    form = edit.form
    for name, other in (("n", "number_of_images"), ("seed", "random_seed")):
        one, two = getattr(form, name), getattr(form, other)
        if None not in (one, two) and one != two:
            detail = f"{name} is {one}, but {other} is {two}, which means the same; send one of them."
            faults.add(Problem(Error.INVALID_FIELD, detail, name))
    ours = {name: getattr(form, name) for name in RequestOptions.__struct_fields__}
    if form.n is not None:
        ours["number_of_images"] = form.n
    given, called = form.seed, CALLED
    if form.seed is None:
        given, called = form.random_seed, CALLED | {"random_seed": "random_seed"}
    fields = RequestFields(text=form.prompt, random_seed=drawn_seed() if given is None else given, **ours)
    output = OutputOptions(form.output_format, previews=form.stream and form.partial_images > 0)
    understood = bodies.understood(fields, edit.image, edit.blamed, rules, output, called, faults)
    quality = None if form.output_compression is None else max(form.output_compression, 1)
    ignored = tuple(aliases.warnings(edit.others, CALLED))
    return replace(understood, options=replace(understood.options, quality=quality), warnings=ignored)


# ------------------------------------------------------------------------------ OpenAI's references to images


def _image_of(given: Mapping[str, msgspec.Raw]) -> tuple[bytes, str]:
    """The one image of a body, and its path in the body. Raises Problem."""
    found = [each for name in FIELDS if name in given for each in _references(name, given[name])]
    if len(found) != 1:
        detail = f"The body has {len(found)} images; send one, as images: [{EXAMPLE}]."
        raise Problem(Error.INVALID_FIELD, detail, FIELDS[0])
    ((name, value),) = found
    return _file(name, value)


def _file(name: str, value: msgspec.Raw) -> tuple[bytes, str]:
    """The image file of a reference, and its path in the body. Raises Problem."""
    text, name = _text(name, value)
    return input_image.from_base64(text, name), name


def _is_given(name: str, value: msgspec.Raw) -> bool:
    """Whether a field is there and has a value."""
    start = bytes(memoryview(value)[:5])
    return start != NULL and (start != EMPTY or name == PROMPT) and (start not in NOTHING or name not in FIELDS)


def _is_set(value: msgspec.Raw) -> bool:
    """Whether a field has a value; an object with only nulls has none."""
    read = msgspec.json.decode(value)
    return any(read.values()) if isinstance(read, dict) else bool(read)


def _references(name: str, value: msgspec.Raw) -> Iterator[tuple[str, msgspec.Raw]]:
    """Each image of a field, with its path."""
    if bytes(memoryview(value)[:1]) == b"[":
        for n, each in enumerate(msgspec.json.decode(value, type=list[msgspec.Raw])):
            yield f"{name}[{n}]", each
    else:
        yield name, value


def _text(name: str, value: msgspec.Raw) -> tuple[str, str]:
    """The text of a reference that has the image, and its path. Raises Problem."""
    found: Any = msgspec.json.decode(value)
    if isinstance(found, dict):
        if found.get("file_id"):
            detail = f"{name}.file_id names a file, but this service keeps no files; send {EXAMPLE}."
            raise Problem(Error.INVALID_FIELD, detail, f"{name}.file_id")
        name, found = f"{name}.image_url", found.get("image_url")
    if isinstance(found, dict):
        name, found = f"{name}.url", found.get("url")
    if not isinstance(found, str):
        raise Problem(Error.INVALID_FIELD, f"{name} must be text with the image in it: {EXAMPLE}.", name)
    return found, name
