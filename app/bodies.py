"""A request's body, in each of its forms: JSON, a form, or the picture alone with the other fields in the query."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app import pictures
from app.errors import Error, Problem
from app.fields import AS_THEY_ARE, Fields, GenerationRequest, Rules, Wanted, options
from workers.engine.contract import Format

FORM_FILE = "input_image"  # what a form calls the picture
MAX_PARTS = 32  # of a form: more than there are fields
PICTURES = ("image/png", "image/jpeg", "image/jpg", "image/webp")  # by their type; what they are, their content decides
TYPES = (
    "JSON (application/json), a form (multipart/form-data), or the picture itself (image/png, image/jpeg, image/webp)"
)

T = TypeVar("T")

_json = msgspec.json.Decoder(GenerationRequest, strict=False)


@dataclass(frozen=True, slots=True)
class Answering:
    """What the form of the answer asks of the pictures: their files' format, and whether somebody watches them."""

    file_format: Format | None = None
    previews: bool = False


async def wanted(request: Request, rules: Rules, answering: Answering) -> Wanted:
    """What a request asks for, whatever form it comes in. Raises Problem."""
    kind = media_type(request)
    if is_json(kind):
        return from_json(await read(request, rules), rules, answering)
    if kind == "multipart/form-data":
        texts, files = await form(request, rules)
        if (picture := dict(files).get(FORM_FILE)) is None:
            raise Problem(Error.INVALID_FIELD, f"The form has no file {FORM_FILE}.", FORM_FILE)
        return understood(converted(texts, Fields), picture, FORM_FILE, rules, answering)
    if kind in PICTURES:
        picture = await read(request, rules)
        return understood(converted(request.query_params, Fields), picture, None, rules, answering)
    raise Problem(Error.MEDIA_TYPE, f"The body is {kind!r}; send {TYPES}, and say so in Content-Type.")


def from_json(body: bytes, rules: Rules, answering: Answering) -> Wanted:
    """What a body of JSON asks for. Raises Problem."""
    fields = parsed_json(body, _json)
    return understood(fields, pictures.decoded(fields.input_image_base64), pictures.JSON_NAME, rules, answering)


def understood(
    fields: Fields | GenerationRequest,
    picture: bytes,
    blamed: str | None,
    rules: Rules,
    answering: Answering,
    called: Mapping[str, str] = AS_THEY_ARE,
) -> Wanted:
    """What some fields ask for. `called` is what an interface calls them, `blamed` what it calls the picture.

    Raises Problem.
    """
    rules.check(fields, called)
    return Wanted(
        fields.request_id,
        picture,
        fields.text,
        fields.random_seed,
        options(fields, answering.file_format, previews=answering.previews),
        fields.number_of_images,
        fields.priority,
        blamed,
    )


def media_type(request: Request) -> str:
    """The type of the body, without parameters; JSON where none is named. Raises Problem for one that is coded."""
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem(Error.MEDIA_TYPE, f"The body is coded as {coding!r}; send it as it is.")
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a media type is JSON's, or one of those that build on it."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read(request: Request, rules: Rules) -> bytes:
    """The body, as long as it is within the limit; not a byte more is kept. Raises Problem."""
    return b"".join([chunk async for chunk in _chunks(request, rules.max_body_bytes)])


def parsed_json(body: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """A body of JSON. Raises Problem, which names the field to blame."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Problem(Error.INVALID_FIELD, f"{error}.", _blamed(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(Error.BROKEN_JSON, f"{error}.") from None
    except RecursionError:
        raise Problem(Error.BROKEN_JSON, "It is nested too deeply.") from None


async def form(request: Request, rules: Rules) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """The fields of a form, of several of a name the last; and its files, with their names. Raises Problem."""
    parser = _FormParser(
        request.headers,
        _chunks(request, rules.max_body_bytes),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=rules.max_body_bytes,
    )
    try:
        parts = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        reason = error.message if isinstance(error, MultiPartException) else f"{error}"
        raise Problem(Error.BROKEN_FORM, f"It cannot be read: {reason}") from None
    texts = {name: value for name, value in parts.multi_items() if isinstance(value, str)}
    files = [(name, await value.read()) for name, value in parts.multi_items() if isinstance(value, UploadFile)]
    await parts.close()
    return texts, files


class _FormParser(MultiPartParser):
    """Keeps files in memory, where the body's limit bounds them: there may be no disk to write to."""

    spool_max_size = 2**30


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise pictures.too_large(f"The body has {declared} bytes", limit, "bytes")
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limit:
            raise pictures.too_large("The body goes on", limit, "bytes")
        yield chunk


def converted(given: Mapping[str, object], kind: type[T]) -> T:
    """The fields of a form or a query, where numbers are texts as well. Raises Problem."""
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(Error.INVALID_FIELD, f"{error}.", _blamed(str(error))) from None


def _blamed(message: str) -> str | None:
    """The field that a message of msgspec speaks of: "... - at `$.text`" or "... missing required field `text`"."""
    before, _, path = message.rpartition(" `")
    name = path.rstrip("`").removeprefix("$.")
    return name if before and name.isidentifier() else None
