"""A request's body, in each of its forms: JSON, a form, or the image alone with the other fields in the query.

All text is UTF-8, whatever a client says of it: any other codec would be of the client's choice, and Python has some
that take seconds for a megabyte, or that make text of which no UTF-8 can be made again.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qsl

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app import pictures
from app.errors import QUOTED_CHARS, Error, Problem, plain, quoted
from app.fields import AS_THEY_ARE, JSON_VALUES, Fields, GenerationRequest, Rules, Wanted, options
from workers.engine.contract import Format

UTF8_BYTES, SHORT_TEXT_BYTES = 4, 2**16  # of a character, at most; of a text that is refused in words of its own
FORM_TYPE_CHARS = 500  # of a form's Content-Type, looked at: more than its name and the longest boundary take
MAX_LENGTH_DIGITS = 18  # of a Content-Length that is worth reading
FORM_FILE = "input_image"  # what a form calls the picture
MAX_PARTS = 32  # of a form or a query: more than there are fields
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, 5.1.1
# Bodies above this are decoded by a thread: the event loop answers others meanwhile.
LARGE_BYTES = 2**20
VALUE_STARTS = (b",", b"[", b"{")  # every value in JSON but the first follows one of these
FEW = 100  # that are looked for one by one
# Escapes are decoded slowly. Base64 in lines, or with its slashes escaped as PHP does it, has half as many at most.
ESCAPES, MAX_ESCAPES = (b"\\",), 1_000_000
PICTURES = ("image/png", "image/jpeg", "image/jpg", "image/webp")  # by their type; what they are, their content decides
TYPES = (
    "JSON (application/json), a form (multipart/form-data), or the picture itself (image/png, image/jpeg, image/webp)"
)

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
P = ParamSpec("P")

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
        fields = await json_body(request, rules, _json, flat=True)
        image = await in_thread_if_large(len(fields.input_image_base64), pictures.decoded, fields.input_image_base64)
        return understood(fields, image, pictures.JSON_NAME, rules, answering)
    if kind == "multipart/form-data":
        texts, files = await form(request, rules)
        if (picture := dict(files).get(FORM_FILE)) is None:
            raise Problem(Error.INVALID_FIELD, f"The form has no file {FORM_FILE}.", FORM_FILE)
        return understood(converted(texts, Fields), picture, FORM_FILE, rules, answering)
    if kind in PICTURES:
        fields_of_query = converted(query(request), Fields)
        return understood(fields_of_query, await read(request, rules.max_body_bytes), None, rules, answering)
    raise unsupported(kind, TYPES)


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
        1 if fields.number_of_images is None else fields.number_of_images,
        fields.priority or 0,
        blamed,
    )


def media_type(request: Request) -> str:
    """The type of the body, without parameters; empty where none is named. Raises Problem for one that is coded."""
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem(Error.MEDIA_TYPE, f"The body is coded as {quoted(coding)}; send it as it is.")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(kind: str, types: str) -> Problem:
    """The problem of a body that is of none of some types.

    A type is asked for even where only JSON makes sense: a page of another origin can send a body without one, or a
    form, but no JSON, without asking first (Fetch, "CORS-safelisted request-header").
    """
    found = f"is {quoted(kind)}" if kind else "has no Content-Type"
    return Problem(Error.MEDIA_TYPE, f"The body {found}; send {types}, and say so in Content-Type.")


def is_json(kind: str) -> bool:
    """Whether a media type is JSON's, or one of those that build on it."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read(request: Request, most: int) -> bytes:
    """The body, if it has at most `most` bytes; not a byte more is kept. Raises Problem."""
    return b"".join([chunk async for chunk in _chunks(request, most)])


async def json_body(
    request: Request,
    rules: Rules,
    decoder: "msgspec.json.Decoder[T]",
    most: int | None = None,
    *,
    flat: bool = False,
) -> T:
    """A body of JSON of at most `most` bytes, or as many as any body may have. Raises Problem.

    `flat`: what is decoded has no lists and no mappings. Then nothing is built of a value that is not asked for, and a
    body that is not large need not be searched for how many there are.
    """
    if not is_json(kind := media_type(request)):
        raise unsupported(kind, "JSON (application/json)")
    body = await read(request, rules.max_body_bytes if most is None else most)
    values = None if flat and len(body) <= LARGE_BYTES else rules.max_json_values
    return await in_thread_if_large(len(body), parsed_json, body, decoder, values)


# One, so that one large body at a time takes the memory and the interpreter's lock that decoding needs.
_large_bodies = ThreadPoolExecutor(1, "large-bodies")


async def in_thread_if_large(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, whose time goes with `size` bytes; not on the event loop's time if these are many."""
    if size <= LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_large_bodies, partial(work, *args, **kwargs))


def parsed_json(body: bytes, decoder: "msgspec.json.Decoder[T]", max_values: int | None = JSON_VALUES) -> T:
    """JSON of at most about `max_values` values. Raises Problem, which names the field to blame."""
    # Counted before anything is built of it: a decoder checks the length of a list when the list is there.
    if max_values is not None and _count(body, VALUE_STARTS) > max_values:
        raise Problem(Error.BROKEN_JSON, f"It holds more than {max_values} values; no request needs so many.")
    if len(body) > MAX_ESCAPES and _count(body, ESCAPES) > MAX_ESCAPES:
        raise Problem(Error.BROKEN_JSON, f"It holds more than {MAX_ESCAPES} escaped characters; send them in UTF-8.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(Error.BROKEN_JSON, f"{error}.") from None
    except RecursionError:
        raise Problem(Error.BROKEN_JSON, "It is nested too deeply.") from None


def _count(body: bytes, characters: Iterable[bytes]) -> int:
    """How many of some characters there are; one pass for each, between which other threads may run."""
    return sum([_count_one(body, character) for character in characters])


def _count_one(body: bytes, character: bytes) -> int:
    """As `body.count`, and ten times as fast where there are few, as in a body that is nearly all base64."""
    at = -1
    for found in range(FEW):
        at = body.find(character, at + 1)  # memchr, by vectors; count looks at each byte by itself
        if at < 0:
            return found
    return body.count(character)


def query(request: Request) -> dict[str, str]:
    """The fields of the query, of several of a name the last. Raises Problem for what is not UTF-8."""
    try:
        text = request.scope["query_string"].decode()
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS))
    except UnicodeDecodeError:
        raise Problem(Error.INVALID_FIELD, "The query is not UTF-8; percent-encode text in UTF-8.") from None
    except ValueError:
        raise Problem(Error.INVALID_FIELD, f"The query has more than {MAX_PARTS} fields.") from None


async def form(request: Request, rules: Rules) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """The fields of a form, of several of a name the last; and its files, with their names. Raises Problem."""
    parser = _FormParser(
        _form_type(request),
        _chunks(request, rules.max_body_bytes),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=UTF8_BYTES * rules.max_text_chars + SHORT_TEXT_BYTES,  # of a text; the body bounds files
    )
    try:
        parts = await parser.parse()
    except MultiPartException as error:
        raise Problem(Error.BROKEN_FORM, f"It cannot be read: {error.message}") from None
    texts = {name: value for name, value in parts.multi_items() if isinstance(value, str)}
    files = [(name, await value.read()) for name, value in parts.multi_items() if isinstance(value, UploadFile)]
    await parts.close()
    return texts, [(name, file) for name, file in files if file]  # an empty one is what browsers send for none


def _form_type(request: Request) -> Headers:
    """The type of a form with nothing but its boundary. Raises Problem for a boundary that RFC 2046 does not allow."""
    _, parameters = parse_options_header(request.headers["content-type"][:FORM_TYPE_CHARS])
    boundary = parameters.get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        detail = "Its Content-Type needs a boundary of 1 to 70 characters (RFC 2046); an HTTP library makes one."
        raise Problem(Error.BROKEN_FORM, detail)
    return Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})


class _FormParser(MultiPartParser):
    """Takes text as UTF-8 only. Keeps files in memory, where the body's limit bounds them: there may be no disk."""

    spool_max_size = 2**30

    def on_part_end(self) -> None:
        """A part is there. Starlette's own would take text that is not UTF-8 for Latin-1."""
        part = self._current_part
        if part.file is not None:
            super().on_part_end()
            return
        try:
            self.items.append((part.field_name, part.data.decode()))
        except UnicodeDecodeError:
            raise MultiPartException(f"the field {quoted(part.field_name)} is not UTF-8.") from None


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > MAX_LENGTH_DIGITS or int(declared) > limit):
        raise pictures.too_large(f"The body has {plain(declared)} bytes", limit, "bytes")
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limit:
            raise pictures.too_large("The body goes on", limit, "bytes")
        yield chunk


def converted(given: Mapping[str, object], kind: type[S]) -> S:
    """The fields of a form or a query, where numbers are texts as well, and an empty one is not set. Raises Problem."""
    optional = {field.encode_name for field in msgspec.structs.fields(kind) if not field.required}
    try:
        filled = {name: value for name, value in given.items() if value != "" or name not in optional}
        return msgspec.convert(filled, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: msgspec.ValidationError) -> Problem:
    """The problem of a field of a wrong type. msgspec quotes a wrong value whole, between its own words."""
    message = str(error)
    short = message if len(message) <= QUOTED_CHARS * 2 else f"{message[:QUOTED_CHARS]}...{message[-QUOTED_CHARS:]}"
    return Problem(Error.INVALID_FIELD, f"{short}.", _blamed(message))


def _blamed(message: str) -> str | None:
    """The field that a message of msgspec speaks of: "... - at `$.text`" or "... missing required field `text`"."""
    before, _, path = message.rpartition(" `")
    name = path.rstrip("`").removeprefix("$.")
    return name if before and name.isidentifier() else None
