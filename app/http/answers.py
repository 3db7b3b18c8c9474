"""Shared by endpoints: the type of the answer by the Accept header, warnings in headers, and clients that leave."""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Iterable, Sequence
from itertools import accumulate, islice
from typing import TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from app.errors import ClientGoneError, Error, Problem, quoted

HEADER_WARNINGS, HEADER_CHARS = 4, 1000  # of them; of each
HEADER_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # all printable ASCII but the percent sign
MAX_RANGES = 100  # of an Accept header; browsers send about ten, but a head has room for thirty thousand

T = TypeVar("T")


def negotiated(request: Request, offers: Sequence[str]) -> str:
    """The offer that a request prefers (RFC 9110, 12.5.1). Raises Problem if it accepts none."""
    accept = ",".join(request.headers.getlist("accept"))
    if (kind := preferred(accept, offers)) is None:
        detail = f"Accept is {quoted(accept)}, but this is available only as {', '.join(offers)}."
        raise Problem(Error.NOT_ACCEPTABLE, detail)
    return kind


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """The offer that a client prefers, the first of several equal ones, or None if it accepts none."""
    ranges = [_range(part) for part in accept.split(",", MAX_RANGES)[:MAX_RANGES] if part.partition(";")[0].strip()]
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    return best if _quality(best, ranges) > 0 else None


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that matches an offer."""
    for wildcard in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        for name, quality in ranges:
            if name == wildcard:
                return quality
    return 0.0


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(max(0.0, float(value)), 1.0)  # in this order, as NaN is then 0
            except ValueError:
                return name, 0.0
    return name, 1.0


def with_warnings(response: Response, warnings: Iterable[str]) -> Response:
    """Add warnings to the headers of an answer."""
    for warning in islice(warnings, HEADER_WARNINGS):
        response.headers.append("X-Contour-Warning", _in_header(warning))
    return response


def _in_header(warning: str) -> str:
    """Encode a sentence for a header: ASCII, the rest percent-encoded, cut to a length that every proxy passes on."""
    characters = [quote(character, safe=HEADER_SAFE) for character in warning]
    most = bisect_right(list(accumulate(map(len, characters))), HEADER_CHARS)
    return "".join(characters[:most])


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it when the client disconnects. Raises ClientGoneError then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
