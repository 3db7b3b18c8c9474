"""The kinds of request that are sent, and how each may end."""

from functools import cache

import numpy as np

from tests.chaos.attacks import attacks
from tests.chaos.kind import GOOD, Kind, good_body
from tests.chaos.profiles import DEADLINE_SECONDS
from tests.service.asking import Manner
from tests.service.running import file_of, png

HASTY_SECONDS = 2
IMAGES = 8
SIDE_PIXELS = (48, 320)  # of the images, from the smallest on

CLOSED = frozenset({"cut"})
HALF_CLOSED = CLOSED | {"busy"}  # refused before the server has seen that nothing more will come


def images() -> list[bytes]:
    """Input files: noise of several sizes, which no compression makes small, and one that compresses to nothing."""
    draw = np.random.default_rng(0)
    sides = np.linspace(*SIDE_PIXELS, IMAGES - 1).astype(int)
    return [png(64, 64), *(file_of(draw.integers(0, 256, (side, side + 16, 3), np.uint8)) for side in sides)]


@cache
def kinds() -> tuple[Kind, ...]:
    """All of them."""
    return (
        Kind("good", 55, GOOD),
        Kind("hasty", 8, GOOD | {"expired"}, headers={"Prefer": f"wait={HASTY_SECONDS}"}),
        Kind("slow sender", 5, GOOD, Manner.SLOW_SENDER),
        Kind("slow reader", 5, GOOD, Manner.SLOW_READER),
        Kind("half-closed", 4, HALF_CLOSED, Manner.HALF_CLOSED),
        Kind("leaves", 8, GOOD | {"left"}, leaves=True),
        Kind("leaves in its body", 3, CLOSED, Manner.LEAVES_IN_BODY),
        *_bad(),
        Kind("huge", 3, frozenset({"too-large"}), body=b" " * (3 * 2**20)),
        *attacks(),
    )


def _bad() -> list[Kind]:
    broken = {
        "malformed-json": b'{"request_id": 1',
        "invalid-field": b'{"request_id": 1, "text": "no image"}',
        "invalid-image": good_body(1, b"this is no image"),
    }
    cut = good_body(1, png(640, 480)[:-200])  # its header is sound: only the worker sees it
    return [
        *(Kind(f"bad: {end}", 3, frozenset({end, "busy"}), body=body) for end, body in broken.items()),
        Kind("bad: cut image", 3, frozenset({"invalid-image", "busy", "draining"}), body=cut),
    ]


def patience(kind: Kind, deadline: float = DEADLINE_SECONDS) -> float:
    """Seconds from the last byte sent within which an answer must come."""
    return HASTY_SECONDS if "Prefer" in kind.headers else deadline
