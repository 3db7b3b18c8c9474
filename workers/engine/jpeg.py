"""The markers of a JPEG file among its compressed data: how many scans it has, and whether they are all there.

Layout: ITU T.81 B.1 and B.2.
"""

import re
from collections.abc import Iterator
from struct import unpack_from

from workers.engine.header import BARE_MARKERS, NOT_FRAMES, Buffer, parts

START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_RESTARTS = tuple(bytes((0xFF, 0xD0 + n)) for n in range(8))
# Any marker but those among compressed data: a byte of 255 is followed by 0 there, or by the number of a restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_SOME_MARKERS = 10_000  # of a file
_COMPONENTS, _COEFFICIENTS = 4, 64  # at most, of a file that can be read; of a block


def scans(data: Buffer) -> int:
    """The scans of a JPEG file. What follows its end does not count: phones append a film there."""
    return sum(marker == START_OF_SCAN[1] for marker, _ in _markers(data))


def has_all_scans(data: Buffer) -> bool:
    """Whether the scans of a JPEG file bring all coefficients of all components, to their last bit (T.81 B.2.3)."""
    missing = {(0, 0)}  # until a frame says more
    for marker, body in _markers(data):
        if 0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES:
            missing = {(component, n) for component in body[6::3][:_COMPONENTS] for n in range(_COEFFICIENTS)}
        elif marker == START_OF_SCAN[1]:
            first, last, bits = body[-3:]
            if bits & 15 == 0:  # else a later scan brings the lowest bits
                missing -= {
                    (component, n)
                    for component in body[1:-3:2][:_COMPONENTS]
                    for n in range(first, min(last + 1, _COEFFICIENTS))
                }
    return not missing


def next_restart(data: bytes) -> bytes:
    """The restart marker that comes next in the last scan of a JPEG file that was cut there, if it has any."""
    scan = data.rfind(START_OF_SCAN)
    last = max(range(8), key=lambda n: data.rfind(_RESTARTS[n], scan))
    return _RESTARTS[(last + 1) % 8 if data.rfind(_RESTARTS[last], scan) >= 0 else 0]


def _markers(data: Buffer) -> Iterator[tuple[int, memoryview]]:
    """Marker and body of each segment of a JPEG file up to its end, among its scans too."""
    view, at = memoryview(data), 2
    for _ in parts(view, "JPEG", _SOME_MARKERS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == END_OF_IMAGE or found.end() + 2 > len(data):
            return
        at, marker = found.end(), found[0][1]
        length = 0 if marker in BARE_MARKERS else int(unpack_from(">H", data, at)[0])
        yield marker, view[at + 2 : at + length]
        at += length
