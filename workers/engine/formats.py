"""PNG, JPEG and WebP files as browsers show them: what Pillow and OpenCV do not do themselves, or too slowly."""

import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from struct import pack, unpack_from
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from workers.engine.contract import BadImageError
from workers.engine.header import (
    BARE_MARKERS,
    NOT_FRAMES,
    PNG_CHUNK,
    PNG_SIGNATURE,
    Buffer,
    is_sound,
    parts,
    png_chunk,
    png_chunks,
    riff_chunks,
    uint24,
)

# ---------------------------------------------------------------------------------------------------------------- PNG
# Pillow refuses a file for a wrong checksum in a chunk that its pixels do not need, decompresses texts of up to 64 MiB,
# and looks for a transparent colour among pixels that it has scaled to 8 bits. So it is given a file of the chunks that
# make the pixels, and the transparent colour as it is after scaling (PNG 3rd edition, 5 and 11.3.1.1).

Colour: TypeAlias = tuple[int, int, int]

deflate: Callable[[Any], bytes]
try:
    from isal import isal_zlib
except ImportError:  # there is no wheel for this platform
    deflate = partial(zlib.compress, level=1)
else:
    deflate = partial(isal_zlib.compress, level=2)  # as small as zlib's level 1 in a third of the time or less

_DEPTH, _COLOUR = 24, 25  # where they are in a file
_GREY, _RGB, _PALETTE = 0, 2, 3
_UP = 2  # a filter
_TRANSPARENCY_BYTES = {_GREY: 2, _RGB: 6, _PALETTE: 1}  # at least; other types of colour have alpha, and no tRNS
_ANCILLARY = 0x20  # of a name's first letter: it is a small one
_TO_8_BITS = {2: 0x55, 4: 0x11}


def open_png(data: Buffer, *, low_bytes: bool = False) -> PngImageFile:
    """Open an image without loading its pixels; with `low_bytes`, the low bytes of 16-bit RGB instead of the high ones.

    Transparency of 16-bit RGB is left out: see `deep_transparency`.
    """
    image = PngImageFile(BytesIO(essential(data)))
    if _png_kind(data) == (16, _RGB):
        image.info.pop("transparency", None)
    elif data[_COLOUR] == _GREY and "transparency" in image.info:
        image.info["transparency"] *= _TO_8_BITS.get(data[_DEPTH], 1)
    if low_bytes:
        # Samples are big-endian: what is the high byte of a little-endian one is the low byte of these.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return image


def deep_transparency(data: Buffer) -> tuple[Colour, Colour] | None:
    """The high and the low bytes of the transparent colour of 16-bit RGB; None for other files.

    Pillow keeps only the high bytes of such pixels, but those that differ in the low ones are not transparent.
    """
    found = _png_transparency(data) if _png_kind(data) == (16, _RGB) else None
    if found is None:
        return None
    red, low_red, green, low_green, blue, low_blue = found[1][:6]
    return (red, green, blue), (low_red, low_green, low_blue)


def essential(data: Buffer) -> bytes:
    """A PNG file of the chunks that its pixels need: the critical ones, and tRNS where browsers use it."""
    view, found = memoryview(data), _png_transparency(data)
    kept = [view[: len(PNG_SIGNATURE)]]
    for at, name, body in png_chunks(view):
        if not name[0] & _ANCILLARY or (found and found[0] == at):
            kept.append(view[at : at + len(body) + PNG_CHUNK])
    return b"".join(kept)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of RGB pixels [height, width, 3]. Each row is stored as its difference to the one above (filter type 2)."""
    height, width = pixels.shape[:2]
    flat, rows = pixels.reshape(height, -1), np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0], rows[0, 1:] = _UP, flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    chunks = (b"IHDR", pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)), (b"IDAT", deflate(rows)), (b"IEND", b"")
    return b"".join((PNG_SIGNATURE, *(png_chunk(name, body) for name, body in chunks)))


def _png_kind(data: Buffer) -> tuple[int, int]:
    """Bit depth and type of colour."""
    return data[_DEPTH], data[_COLOUR]


def _png_transparency(data: Buffer) -> tuple[int, bytes] | None:
    """Place and body of the tRNS chunk that counts: the first sound one before the pixels."""
    view, (depth, colour) = memoryview(data), _png_kind(data)
    in_order = colour != _PALETTE
    for at, name, body in png_chunks(view):
        if name == b"IDAT":
            return None
        in_order |= name == b"PLTE"
        long_enough = name == b"tRNS" and len(body) >= _TRANSPARENCY_BYTES.get(colour, len(view))
        if in_order and long_enough and is_sound(view, at, name, body) and not _is_out_of_range(body, depth, colour):
            return at, bytes(body)
    return None


def _is_out_of_range(body: memoryview, depth: int, colour: int) -> bool:
    """Whether a grey of 1, 2 or 4 bits exceeds its depth. With more bits, browsers ignore those beyond."""
    return colour == _GREY and depth < 8 and int(unpack_from(">H", body)[0]) >= 1 << depth


# --------------------------------------------------------------------------------------------------------------- JPEG
# The markers among compressed data: how many scans there are, and whether they are complete (ITU T.81 B.1 and B.2).

START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_RESTARTS = tuple(bytes((0xFF, 0xD0 + n)) for n in range(8))
# Any marker but those among compressed data: a byte of 255 is followed by 0 there, or by the number of a restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_SOME_MARKERS = 10_000  # of a file
_COMPONENTS, _COEFFICIENTS = 4, 64  # at most, of a file that can be read; of a block


def jpeg_scans(data: Buffer) -> int:
    """The scans of a JPEG file. What follows its end does not count: phones append a film there."""
    return sum(marker == START_OF_SCAN[1] for marker, _ in _markers(data))


def has_all_scans(data: Buffer) -> bool:
    """Whether the scans of a JPEG file bring all coefficients of all components, to their last bit (T.81 B.2.3)."""
    missing = {(0, 0)}  # until there is a frame
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
    """The next restart marker in the last scan of a JPEG file that was cut there."""
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


# --------------------------------------------------------------------------------------------------------------- WebP
# OpenCV decodes a still image straight into its result. An animation would take it four canvases (Pillow too), so the
# first frame is cut out and decoded as a still image (RFC 9649).

_ANIMATED, _ALPHA = 0x02, 0x10  # flags of the VP8X chunk
_FRAME_HEADER = 16  # bytes of an ANMF chunk before the frame's own chunks
_LEAST_BYTES = 32  # OpenCV takes no file of fewer, though there are some, of a single colour
_DAMAGED = "The WebP image is damaged or cut short; send the whole file, or save it again."

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would log each file that it cannot read


def decode_webp(data: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    """BGR or BGRA pixels of a file that declares a size (width, height). Raises BadImageError."""
    if data[12:16] == b"VP8X" and data[20] & _ANIMATED:
        return _first_frame(memoryview(data), size)
    return _still_webp(data, size)


def _still_webp(data: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        file = bytes(data).ljust(_LEAST_BYTES, b"\0")  # no copy, if there is nothing to do
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImageError(_DAMAGED) from error
    if pixels is None:
        raise BadImageError(_DAMAGED)
    if pixels.shape[1::-1] != size:
        raise BadImageError("The WebP image declares more than one size; save it again.")
    return pixels.astype(np.uint8, copy=False)


def _first_frame(data: memoryview, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The first frame on a white canvas. An animation's background is ignored, as in browsers."""
    frame = next((body for name, body in riff_chunks(data) if name == b"ANMF"), memoryview(b""))
    if len(frame) < _FRAME_HEADER:
        raise BadImageError(_DAMAGED)
    x, y, width, height = 2 * uint24(frame, 0), 2 * uint24(frame, 3), uint24(frame, 6) + 1, uint24(frame, 9) + 1
    if x + width > size[0] or y + height > size[1]:
        raise BadImageError("The WebP image has a frame larger than itself; save it again.")
    pixels = _still_webp(_webp_file(frame), (width, height))
    if (width, height) == size:
        return pixels
    canvas = np.full((size[1], size[0], pixels.shape[2]), 255, np.uint8)
    canvas[y : y + height, x : x + width] = pixels
    return canvas


def _webp_file(frame: memoryview) -> bytes:
    """A WebP file of one frame of an animation."""
    chunks = frame[_FRAME_HEADER:]
    extended = pack("<4sII", b"VP8X", 10, _ALPHA) + bytes(frame[6:12])
    return b"".join((pack("<4sI4s", b"RIFF", 4 + len(extended) + len(chunks), b"WEBP"), extended, chunks))
