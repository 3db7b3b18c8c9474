"""A kind of request: how it is sent, and how it may end."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.service.asking import Manner

GOOD = frozenset({"done", "busy", "draining"})  # the latter two were not taken on


@dataclass(frozen=True)
class Kind:
    """A kind of request: how often it is sent beside the others, how, and what a client of a sound server sees.

    With a body of its own, `image` is the index of the image that must come back; None: whatever comes is taken.
    `counted`: by `contour_requests_total`, which has nothing of what makes no image. `source` is the address that it
    comes from: clients have their own, and no share of each other's.
    """

    name: str
    weight: float
    ends: frozenset[str]
    manner: Manner = Manner.PLAIN
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None: a good one
    leaves: bool = False
    path: str = "/generation/"
    image: int | None = None
    counted: bool = True
    source: str | None = None


def fields_of(index: int, image: bytes) -> dict[str, object]:
    """The fields of the request for an image; all that decides what comes back follows from its index."""
    return {
        "request_id": index,
        "text": f"a red circle and {index} blue squares",
        "input_image_base64": base64.b64encode(image).decode(),
        "random_seed": index,
    }


def good_body(index: int, image: bytes) -> bytes:
    """The same as JSON."""
    return json.dumps(fields_of(index, image)).encode()
