"""`POST /generation/`: a body in, a job through the pool, a reply out."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable
from itertools import count
from typing import TypeVar, assert_never

import msgspec
import pybase64
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.access import Access
from app.errors import Error, Problem, respond, routing_problem, whole_seconds
from app.metrics import Metrics
from app.settings import ServerConfig
from scheduler import messages as m
from workers.engine.config import Sizing
from workers.engine.contract import BadPictureError, Task
from workers.engine.header import Header, output_size, read_header
from workers.pool import Answer, Pool, Terms

log = logging.getLogger("contour.generation")

# A client that sets no deadline gets the longer of a minute and ten times what a picture is predicted to take, and five
# minutes while no worker has measured itself yet: it may still be loading.
AUTO_SECONDS = 60.0
AUTO_TIMES = 10.0
AUTO_LOADING_SECONDS = 300.0

SEED_MIN, SEED_MAX = -(2**63), 2**64 - 1  # what torch.Generator.manual_seed takes
QUOTE = ord('"')
WHITESPACE = b" \t\r\n\v\f"

T = TypeVar("T")


class GenerationRequest(msgspec.Struct, frozen=True):
    """The body. Integers may come as strings of digits; unknown fields are ignored."""

    request_id: int
    text: str
    input_image_base64: msgspec.Raw
    random_seed: int


class GenerationAnswer(msgspec.Struct, frozen=True):
    """The answer: `request_id` as it came, and a JPEG or PNG in standard base64."""

    request_id: int
    output_image_base64: str


_decoder = msgspec.json.Decoder(GenerationRequest, strict=False)


class Generation:
    """The endpoint. Everything about a request is checked before anything is queued."""

    def __init__(self, pool: Pool, access: Access, config: ServerConfig, sizing: Sizing, metrics: Metrics) -> None:
        self._pool = pool
        self._access = access
        self._config = config
        self._sizing = sizing
        self._metrics = metrics
        self._ids = count(1)
        self._run = secrets.token_hex(4)  # tells this process's request ids from another's

    async def respond(self, request: Request) -> Response:
        """Answer one request, with a picture or a problem; count and time it either way."""
        began = time.perf_counter()
        name = self._name()
        try:
            response = await self._generate(request, began)
            outcome = "done"
        except Problem as problem:
            response = respond(problem)
            outcome = problem.error.slug
        except (_ClientGoneError, ClientDisconnect):
            response = Response(status_code=499)  # nginx's code for it; nobody will read this
            outcome = "abandoned"
        except Exception:
            log.exception("request %s failed", name)
            response = respond(Problem(Error.INTERNAL, f"An unexpected error; the server's log has it under {name}."))
            outcome = Error.INTERNAL.slug
        self._metrics.request(outcome, time.perf_counter() - began)
        response.headers["X-Request-Id"] = name
        return response

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Starlette's handler for what its router raises; named and counted like what reaches the endpoint."""
        problem = routing_problem(request, error)
        self._metrics.refused(problem.error.slug)
        response = respond(problem)
        response.headers["X-Request-Id"] = self._name()
        return response

    def _name(self) -> str:
        return f"{self._run}-{next(self._ids)}"

    async def _generate(self, request: Request, began: float) -> Response:
        client = self._access.client(request)
        _check_media_type(request)
        wanted = _decode(await self._read(request))
        task = _task(wanted, self._config)
        header = _header(task, self._config.max_pixels)
        width, height = output_size(header.width, header.height, self._sizing)
        work = width * height / self._sizing.short_side**2
        deadline = time.monotonic() + self._patience(request, work)
        answer = await _unless_gone(request, self._pool.generate(task, Terms(deadline, work, client)))
        return self._reply(wanted.request_id, answer, time.perf_counter() - began)

    async def _read(self, request: Request) -> bytes:
        """The body, as long as it is within the limit; not a byte more is kept."""
        limit = self._config.max_body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(f"The body has {declared} bytes", limit, "bytes")
        chunks, length = [], 0
        async for chunk in request.stream():
            length += len(chunk)
            if length > limit:
                raise _too_large("The body goes on", limit, "bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _patience(self, request: Request, work: float) -> float:
        """Seconds that the client is prepared to wait: its own wish (RFC 7240), else the configuration's."""
        if (wish := _wait_preference(request)) is not None:
            return min(wish, self._config.max_deadline)
        if self._config.deadline != "auto":
            return self._config.deadline
        if (predicted := self._pool.core.predicted_seconds) is None:
            return AUTO_LOADING_SECONDS
        return max(AUTO_SECONDS, AUTO_TIMES * predicted * work)

    def _reply(self, request_id: int, answer: Answer, total: float) -> Response:
        match answer.outcome:
            case m.Done(image=image, queued=queued):
                stages = {
                    "queue": queued,
                    "prepare": image.prepare,
                    "denoise": image.denoise,
                    "decode": image.decode,
                    "encode": image.encode,
                }
                self._metrics.stages(stages)
                # Written around the base64 by hand: the picture passes through no JSON encoder.
                picture = pybase64.b64encode(answer.picture)
                body = b'{"request_id":%d,"output_image_base64":"%b"}' % (request_id, picture)
                timing = ", ".join(
                    f"{name};dur={seconds * 1e3:.2f}" for name, seconds in (*stages.items(), ("total", total))
                )
                return Response(body, headers={"Server-Timing": timing}, media_type="application/json")
            case m.Refused(reason):
                raise Problem(Error.INVALID_PICTURE, reason, "input_image_base64")
            case m.Broken(reason):
                raise Problem(Error.INTERNAL, f"The worker could not make this picture: {reason}")
            case m.Poisoned(losses):
                raise Problem(Error.POISONED, f"{losses} workers ended while they ran it; it is not tried again.")
            case m.Expired():
                raise Problem(Error.EXPIRED, "The picture was not done before the deadline of this request.")
            case m.Rejected(retry_after):
                detail = f"It could not be done before its deadline; try again in {whole_seconds(retry_after)} s."
                raise Problem(Error.BUSY, detail, retry_after=retry_after)
            case m.Overdrawn(retry_after):
                detail = f"Others are to find room as well; try again in {whole_seconds(retry_after)} s."
                raise Problem(Error.OVERDRAWN, detail, retry_after=retry_after)
            case m.Draining():
                raise Problem(Error.DRAINING, "Nothing new is taken; try another server, or this one when it is back.")
            case m.Abandoned():
                raise _ClientGoneError
            case _ as unreachable:
                assert_never(unreachable)


class _ClientGoneError(Exception):
    """The client closed its connection before the answer was there."""


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects.

    Raises _ClientGoneError.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _ClientGoneError
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_media_type(request: Request) -> None:
    """No type at all is taken for JSON; any other than JSON is named."""
    given = request.headers.get("content-type", "application/json")
    kind = given.partition(";")[0].strip().lower()
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem(Error.MEDIA_TYPE, f"The body is coded as {coding!r}; send it as it is.")
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(Error.MEDIA_TYPE, f"The body is {given!r}; send JSON with Content-Type: application/json.")


def _decode(body: bytes) -> GenerationRequest:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Problem(Error.INVALID_FIELD, f"{error}.", _blamed(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(Error.BROKEN_JSON, f"{error}.") from None
    except RecursionError:
        raise Problem(Error.BROKEN_JSON, "It is nested too deeply.") from None


def _task(wanted: GenerationRequest, config: ServerConfig) -> Task:
    if len(wanted.text) > config.max_text_chars:
        detail = f"text has {len(wanted.text)} characters; at most {config.max_text_chars} are taken."
        raise Problem(Error.INVALID_FIELD, detail, "text")
    if not SEED_MIN <= wanted.random_seed <= SEED_MAX:
        detail = f"random_seed is {wanted.random_seed}; it must be within {SEED_MIN} and {SEED_MAX}."
        raise Problem(Error.INVALID_FIELD, detail, "random_seed")
    picture = _picture(wanted.input_image_base64)
    if len(picture) > (limit := config.max_picture_bytes):
        raise _too_large(f"The picture has {len(picture)} bytes", limit, "bytes", "input_image_base64")
    return Task(picture, wanted.text, wanted.random_seed)


def _blamed(message: str) -> str | None:
    """The field that a message of msgspec speaks of: "... - at `$.text`" or "... missing required field `text`"."""
    _, _, path = message.rpartition(" `")
    name = path.rstrip("`").removeprefix("$.")
    return name if name in GenerationRequest.__struct_fields__ else None


def _picture(encoded: msgspec.Raw) -> bytes:
    """Decode standard base64 in a JSON string; a `data:` prefix and whitespace are tolerated."""
    json = memoryview(encoded)
    if json[0] == QUOTE:
        # What nearly everybody sends needs no JSON decoding: base64 has no escapes.
        with contextlib.suppress(ValueError):
            return pybase64.b64decode(json[1:-1], validate=True)
    text = _text(encoded)
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # As bytes: to translate a text that is not ASCII takes seconds, in which nobody else is heard.
        return pybase64.b64decode(text.encode("ascii").translate(None, WHITESPACE), validate=True)
    except ValueError as error:
        detail = f"input_image_base64 is not standard base64: {error}."
        raise Problem(Error.INVALID_FIELD, detail, "input_image_base64") from None


def _text(encoded: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(encoded, type=str)
    except msgspec.ValidationError as error:
        raise Problem(Error.INVALID_FIELD, f"{error} - at `$.input_image_base64`.", "input_image_base64") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(Error.BROKEN_JSON, f"{error}.") from None


def _header(task: Task, max_pixels: int) -> Header:
    """What the picture's own header declares; nothing is decoded for it."""
    try:
        header = read_header(task.picture)
    except BadPictureError as error:
        raise Problem(Error.INVALID_PICTURE, str(error), "input_image_base64") from None
    if header.width * header.height > max_pixels:
        raise _too_large(
            f"The picture is {header.width} x {header.height} pixels", max_pixels, "pixels in all", "input_image_base64"
        )
    return header


def _wait_preference(request: Request) -> float | None:
    """Seconds of `Prefer: wait=SECONDS`; None when there is no such preference or it makes no sense (RFC 7240, 2)."""
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and (digits := value.strip().strip('"')).isdecimal():
            return float(digits)
    return None


def _too_large(what: str, limit: int, unit: str, field: str | None = None) -> Problem:
    return Problem(Error.TOO_LARGE, f"{what}; at most {limit} {unit} are taken.", field)
