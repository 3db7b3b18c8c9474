"""Choose the form of an answer by the Accept header (RFC 9110, 12.5.1)."""

from collections.abc import Sequence

from starlette.requests import Request

from app.errors import Error, Problem, quoted

MAX_RANGES = 100  # of an Accept header; browsers send about ten, but a head has room for thirty thousand


def negotiated(request: Request, offers: Sequence[str]) -> str:
    """The offer that a request prefers. Raises Problem if it accepts none."""
    accept = ",".join(request.headers.getlist("accept"))
    if (kind := preferred(accept, offers)) is None:
        detail = f"Accept is {quoted(accept)}, but this can be answered by {', '.join(offers)} only."
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
