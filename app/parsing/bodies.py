"""A request's body, in each of its forms: JSON, a form, or the image alone with the other fields in the query.

All text is UTF-8, whatever a client says of it: any other codec would be of the client's choice, and Python has some
that take seconds for a megabyte, or that make text of which no UTF-8 can be made again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from app.errors import Error, Faults, Problem, plain, quoted
from app.params import (
    AS_THEY_ARE,
    GenerationParams,
    GenerationRequest,
    OutputOptions,
    RequestFields,
    Rules,
    engine_options,
)
from app.parsing import aliases, forms, input_image
from app.parsing.fields import of_fields
from app.parsing.json import parsed_json

UTF8_BYTES = 4  # of a character, at most
MAX_LENGTH_DIGITS = 18  # of a Content-Length that is worth reading
BODY = "body"  # the name of the body in errors
FORM_FILE = "input_image"  # what a form calls the image
FORM, URL_ENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
# Bodies above this size are decoded in a thread, while the event loop answers others.
LARGE_BYTES = 2**20
IMAGE_TYPES = (
    "image/png",
    "image/jpeg",
    "image/jpg",
    "image/webp",
)  # the content decides which it is
TYPES = "JSON (application/json), a form (multipart/form-data), or the image itself (image/png, image/jpeg, image/webp)"

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
P = ParamSpec("P")

_json = msgspec.json.Decoder(aliases.with_others(GenerationRequest), strict=False)


async def generation_params(request: Request, rules: Rules, output: OutputOptions) -> GenerationParams:
    """Parse a request into parameters, whatever form its body has. Raises Problem."""
    kind, faults = media_type(request), Faults()
    if is_json(kind) or kind == FORM:
        _refuse_query(request)
    if is_json(kind):
        fields = await json_body(request, rules, _json, flat=True, faults=faults)
        image = await image_of_json(fields.input_image_base64, faults)
        made = understood(fields, image, input_image.JSON_NAME, rules, output, faults=faults)
        return _with_warnings(made, aliases.sent_in(fields))
    if kind == FORM:
        texts, files = await form(request, rules)
        given = converted(texts, RequestFields, faults, rules.ranges)
        file = b""
        with faults.noted():
            file = await image_of_form(texts, files, FORM_FILE, (FORM_FILE, input_image.JSON_NAME))
        made = understood(given, file, FORM_FILE, rules, output, faults=faults)
        sent = {name for name, content in (*texts.items(), *files) if content} - {FORM_FILE, input_image.JSON_NAME}
        return _with_warnings(made, sent, {input_image.JSON_NAME: FORM_FILE})
    if kind in IMAGE_TYPES:
        texts = query(request)
        given = converted(texts, RequestFields, faults, rules.ranges)
        file = await image_alone(request, rules)
        made = understood(given, file, None, rules, output, faults=faults)
        return _with_warnings(made, {name for name, text in texts.items() if text})
    raise unsupported(kind, TYPES)


def _refuse_query(request: Request) -> None:
    """Refuse fields in the query beside a body that has fields of its own. Raises Problem."""
    if not request.scope["query_string"]:
        return
    for name, text in query(request).items():
        if text and name in RequestFields.__struct_fields__:
            detail = f"{name} is in the query, which counts only if the body is the image itself. Put it into the body."
            raise Problem(Error.INVALID_FIELD, detail, name)


def _with_warnings(
    params: GenerationParams, sent: set[str], called: Mapping[str, str] = AS_THEY_ARE
) -> GenerationParams:
    """Add a warning for each field that was sent by another service's name."""
    warnings = tuple(aliases.warnings(sent, called))
    return replace(params, warnings=warnings) if warnings else params


async def image_of_json(encoded: msgspec.Raw, faults: Faults) -> bytes:
    """Decode the image of a JSON body. If there is none, note a fault and return nothing."""
    try:
        return await in_thread_if_large(len(encoded), input_image.decoded, encoded)
    except Problem as problem:
        faults.add(problem)
        return b""


async def image_of_form(
    texts: Mapping[str, str], files: Sequence[tuple[str, bytes]], name: str, names: Collection[str]
) -> bytes:
    """The one image of a form, by one of some names: a file, or base64 in a text field. Raises Problem."""
    image = forms.image(texts, files, name, names)
    work = partial(input_image.from_base64, image) if isinstance(image, str) else partial(input_image.from_file, image)
    return await in_thread_if_large(len(image), work, name)


async def image_alone(request: Request, rules: Rules) -> bytes:
    """Read a body that is the image itself. Raises Problem."""
    body = await read(request, rules.max_body_bytes)
    return await in_thread_if_large(len(body), input_image.from_file, body, None)


def understood(
    fields: RequestFields | GenerationRequest,
    image: bytes,
    blamed: str | None,
    rules: Rules,
    output: OutputOptions,
    called: Mapping[str, str] = AS_THEY_ARE,
    faults: Faults | None = None,
) -> GenerationParams:
    """Complete parameters from fields. `called` has an API's own names of fields; `blamed` is its name of the image.

    `faults` are those found so far. Raises one Problem for all of them.
    """
    faults = Faults() if faults is None else faults
    faults.add(*rules.faults(fields, called))
    if faults:  # otherwise the image is checked later
        with faults.noted():
            if image:  # a missing one is a fault already
                input_image.measured(image, rules, blamed or BODY)
        faults.check()
    return GenerationParams(
        fields.request_id,
        image,
        fields.text,
        fields.random_seed,
        engine_options(fields, output, rules.defaults["embed_metadata"]),
        1 if fields.number_of_images is None else fields.number_of_images,
        fields.priority or 0,
        blamed,
    )


def media_type(request: Request) -> str:
    """The body's media type, without parameters, or an empty string. Raises Problem for a Content-Encoding."""
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem(
            Error.MEDIA_TYPE,
            f"The body is compressed ({quoted(coding)}); send it uncompressed, without Content-Encoding.",
        )
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(kind: str, types: str) -> Problem:
    """The problem of a body that is of none of some types.

    A type is asked for even where only JSON makes sense: a page of another origin can send a body without one, or a
    form, but no JSON, without asking first (Fetch, "CORS-safelisted request-header").
    """
    found = f"is {quoted(kind)}" if kind else "has no Content-Type"
    if kind == URL_ENCODED:
        found += " (curl -d sends it unless -H sets another)"
    return Problem(Error.MEDIA_TYPE, f"The body {found}; send {types}, and name the type in Content-Type.")


def is_json(kind: str) -> bool:
    """Whether a media type is JSON or based on it (+json)."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read(request: Request, most: int) -> bytes:
    """Read a body of at most `most` bytes; no more are kept. Raises Problem."""
    return b"".join([chunk async for chunk in _chunks(request, most)])


async def json_body(
    request: Request,
    rules: Rules,
    decoder: "msgspec.json.Decoder[T]",
    most: int | None = None,
    *,
    flat: bool = False,
    faults: Faults | None = None,
) -> T:
    """A body of JSON of at most `most` bytes, or as many as any body may have. Raises Problem.

    Fields of wrong types are added to `faults`, if there are some to add to; what they are then, `fields` says.
    `flat`: what is decoded has no lists and no mappings. Then nothing is built of a value that is not asked for, and a
    body that is not large need not be searched for how many there are.
    """
    if not is_json(kind := media_type(request)):
        raise unsupported(kind, "JSON (application/json)")
    body = await read(request, rules.max_body_bytes if most is None else most)
    values = None if flat and len(body) <= LARGE_BYTES else rules.max_json_values
    return await in_thread_if_large(len(body), parsed_json, body, decoder, values, faults, rules.ranges)


# One thread: large bodies are decoded one at a time, as each takes memory and the interpreter's lock.
_large_bodies = ThreadPoolExecutor(1, "large-bodies")


async def in_thread_if_large(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work`, in a thread if `size`, which its time depends on, is large."""
    if size <= LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_large_bodies, partial(work, *args, **kwargs))


def query(request: Request) -> dict[str, str]:
    """The fields of the query; the last one of several with a name counts. Raises Problem for what is not UTF-8."""
    try:
        text = request.scope["query_string"].decode()
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=forms.MAX_PARTS))
    except UnicodeDecodeError:
        raise Problem(Error.INVALID_FIELD, "The query is not UTF-8; percent-encode text in UTF-8.") from None
    except ValueError:
        raise Problem(Error.INVALID_FIELD, f"The query has more than {forms.MAX_PARTS} fields.") from None


async def form(request: Request, rules: Rules) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """The fields of a form and its files; the last field of several with a name counts. Raises Problem."""
    chunks = _chunks(request, rules.max_body_bytes)
    return await forms.parsed(request.headers["content-type"], chunks, UTF8_BYTES * rules.max_text_chars)


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > MAX_LENGTH_DIGITS or int(declared) > limit):
        raise _too_long(f"The body has {plain(declared)} bytes", limit)
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limit:
            raise _too_long("The body is longer", limit)
        yield chunk


def _too_long(what: str, limit: int) -> Problem:
    return input_image.too_large(what, limit, "bytes", "server.max_body_bytes", input_image.SMALLER)


def converted(
    given: Mapping[str, object], kind: type[S], faults: Faults | None = None, ranges: Mapping[str, object] = AS_THEY_ARE
) -> S:
    """The fields of a form or a query, where numbers are texts as well, and an empty one is not set.

    Raises Problem; but fields of wrong types are added to `faults`, if there are some to add to.
    """
    optional = {field.encode_name for field in msgspec.structs.fields(kind) if not field.required}
    filled = {name: value for name, value in given.items() if value != "" or name not in optional}
    try:
        return msgspec.convert(filled, kind, strict=False)
    except msgspec.ValidationError:
        found = Faults() if faults is None else faults
        made = of_fields(filled, kind, found, ranges)
    if faults is None:
        found.check()
    return made
