"""What form of answer a client would like best, by its Accept header (RFC 9110, 12.5.1)."""

from collections.abc import Sequence

MAX_RANGES = 100  # of an Accept header, looked at; browsers send some ten, and a head has room for thirty thousand


def preferred(accept: str, offers: Sequence[str]) -> str:
    """The offer that a client likes best; of several, and for a client that likes none of them, the first of these."""
    ranges = [_range(part) for part in accept.split(",", MAX_RANGES)[:MAX_RANGES] if part.strip()]
    return max(offers, key=lambda offer: _quality(offer, ranges)) if ranges else offers[0]


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range that an offer is within."""
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
                return name, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0
