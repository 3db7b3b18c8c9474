"""The image of an edit that comes as JSON: OpenAI's references to images, if they have the image in them."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from app import input_image
from app.errors import Error, Problem

FIELDS = ("images", "image", "image[]")
NULL, EMPTY, NOTHING = b"null", b'""', (b"[]", b"{}")
PROMPT = "prompt"  # may be empty
EXAMPLE = '{"image_url": "data:image/png;base64,..."}'


def image(given: Mapping[str, msgspec.Raw]) -> tuple[bytes, str]:
    """The one image of a body, and its path in the body. Raises Problem."""
    found = [each for name in FIELDS if name in given for each in _references(name, given[name])]
    if len(found) != 1:
        detail = f"The body has {len(found)} images; send one, as images: [{EXAMPLE}]."
        raise Problem(Error.INVALID_FIELD, detail, FIELDS[0])
    ((name, value),) = found
    return file(name, value)


def file(name: str, value: msgspec.Raw) -> tuple[bytes, str]:
    """The image file of a reference, and its path in the body. Raises Problem."""
    text, name = _text(name, value)
    return input_image.from_base64(text, name), name


def is_given(name: str, value: msgspec.Raw) -> bool:
    """Whether a field is there and has a value."""
    start = bytes(memoryview(value)[:5])
    return start != NULL and (start != EMPTY or name == PROMPT) and (start not in NOTHING or name not in FIELDS)


def is_set(value: msgspec.Raw) -> bool:
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
