"""Reads format and size of an image file from its header, and estimates the memory to decode it.

Nothing is decompressed and nothing is allocated by the declared size, so an image may claim any size: the caller
compares it with its own limit. Pillow would warn of such claims (or, for WebP, allocate the canvas at once), so we read
the few bytes here. Layouts: PNG 3rd edition 5 and 11; ITU T.81 B.1; RFC 9649; Exif 2.32 4.6.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from math import ceil
from struct import pack, unpack_from
from typing import Literal, TypeAlias, assert_never

from workers.engine.config import Sizing
from workers.engine.contract import BadImageError
from workers.engine.file_kinds import kind_of

Format: TypeAlias = Literal["PNG", "JPEG", "WebP"]
Buffer: TypeAlias = bytes | memoryview
_Stored: TypeAlias = tuple[int, int, bytes, int]  # width, height, EXIF block and lossless bytes as they are in the file

PNG_SIGNATURE, PNG_CHUNK = b"\x89PNG\r\n\x1a\n", 12  # bytes of a chunk besides its body
_JPEG = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
SIDES_SWAPPED = 5  # orientations 5 to 8 swap the sides
BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length: TEM, RST0-7, SOI
_HEADER_ENDS = frozenset({0xD9, 0xDA})  # EOI, SOS
NOT_FRAMES = frozenset({0xC4, 0xC8, 0xCC})  # the markers among C0-CF that do not start a frame: DHT, JPG, DAC
# A file may have so many chunks or segments, and one more for each so many bytes (libpng cuts pixels into 8 KiB). A
# hostile file has millions of empty ones, which would keep Pillow busy for seconds.
_SOME_PARTS = 1000
_PART_BYTES = 4096
_GAP = 256  # bytes at most between two segments of a JPEG
# Bytes for each pixel while a file is decoded, in its costliest kind (`tests/bench/decoding.py` measures them):
_PNG_BYTES = 7  # Pillow's image of 4, and ours of 3
_WEBP_BYTES = 10  # BGRA, a plane of alpha, and the decoder's own pixels of 4 with their transforms
# A lossless WebP may bring five Huffman codes for each block of 4 x 4 pixels. libwebp makes tables of them all: 5.6 KB
# for a set that takes 20 bits of the file (codes of one symbol), and up to 20.6 KB for one that takes more.
_LOSSLESS = frozenset({b"VP8L", b"ALPH", b"ANMF"})
_SETS, _SET_BYTES, _TABLES_FOR_A_BYTE = 2**16, 20_600, 2_400
_JPEG_BYTES = 8  # coefficients of 2 bytes of a progressive CMYK file, at full size however small it is decoded
_JPEG_PIXEL_BYTES = 4  # Pillow's image at the size we decode to; afterwards no coefficients, but our image of 3
_JPEG_BLOCK = 32  # pixels: sides are rounded up to as many at most
_SCALED_BYTES = 6  # of the result, before and after it is turned
MAX_BYTES_PER_PIXEL = 13  # of any image: the worst is such a JPEG
DEFAULT_MAX_PIXELS = 40_000_000
BAND_PIXELS = 2**18  # are converted at a time
_FIXED_BYTES = 8 * 2**20  # what a band takes, on its way through up to six copies, and what libraries keep
_MAX_ENTRIES = 256  # of an EXIF directory, looked at; cameras write some 20, and there is room for 65,535


@dataclass(frozen=True, slots=True)
class Header:
    """An image's format, its size in pixels as a viewer shows it, and its EXIF orientation (1 to 8, 1 is upright).

    `lossless` is how many bytes of a WebP are coded losslessly: all of its pixels, or only their alpha.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    lossless: int = 0


def read_header(data: Buffer) -> Header:
    """The header of a PNG, JPEG or WebP file.

    Raises BadImageError, with a sentence for the client.
    """
    kind, read = _reader(data)
    try:
        width, height, exif, lossless = read(memoryview(data))
    except (struct.error, IndexError):
        raise BadImageError(
            f"The {kind} image is cut short: it has {len(data)} bytes and ends within its header."
        ) from None
    if width < 1 or height < 1:
        raise BadImageError(
            f"The {kind} image declares a size of {width} x {height} pixels; an image has at least one pixel."
        )
    orientation = _orientation(exif)
    if orientation >= SIDES_SWAPPED:
        width, height = height, width
    return Header(kind, width, height, orientation, lossless)


def output_size(width: int, height: int, sizing: Sizing) -> tuple[int, int]:
    """(width, height) in pixels of the image that is made from one of `width` x `height`.

    The rule of ControlNet's own demo (lllyasviel/ControlNet, annotator/util.py, `resize_image`): the short side becomes
    `short_side`, then both are rounded to multiples. An image too long for `long_side` is made smaller as a whole.
    Rounding moves a side by half a multiple at most. Raises BadImageError where the short side would be less than
    that: a whole multiple, which is the least, would then stretch it without bound.
    """
    longest = _longest(sizing)
    if max(width, height) * sizing.multiple > 2 * longest * min(width, height):
        raise BadImageError(_too_long(width, height, sizing))
    scale = min(sizing.short_side / min(width, height), longest / max(width, height))
    return _rounded(width * scale, sizing), _rounded(height * scale, sizing)


def decoding_bytes(header: Header, size: tuple[int, int]) -> int:
    """An upper bound of the memory it takes to decode an image and to scale it to a size.

    The file itself and `table_bytes` are not counted.
    """
    pixels, scaled = header.width * header.height, _SCALED_BYTES * size[0] * size[1]
    match header.format:
        case "PNG":
            return max(_PNG_BYTES * pixels, 3 * pixels + scaled) + _FIXED_BYTES
        case "WebP":
            return max(_WEBP_BYTES * pixels, 4 * pixels + scaled) + _FIXED_BYTES
        case "JPEG":
            return _jpeg_bytes(header, size, scaled) + _FIXED_BYTES
        case unknown:
            assert_never(unknown)


def table_bytes(header: Header) -> int:
    """An upper bound of a lossless WebP's memory for its codes: up to 1.3 GiB, whatever its pixels."""
    sets = min(_SETS, ceil(header.width / 4) * ceil(header.height / 4))
    return min(sets * _SET_BYTES, header.lossless * _TABLES_FOR_A_BYTE)


def _jpeg_bytes(header: Header, size: tuple[int, int], scaled: int) -> int:
    scale = jpeg_scale(header, size)
    decoded = ceil(header.width / scale) * ceil(header.height / scale)
    coefficients = ceil(header.width / _JPEG_BLOCK) * ceil(header.height / _JPEG_BLOCK) * _JPEG_BLOCK**2
    return max(_JPEG_BYTES * coefficients + _JPEG_PIXEL_BYTES * decoded, 7 * decoded, 3 * decoded + scaled)


def jpeg_scale(header: Header, size: tuple[int, int]) -> int:
    """The factor by which a JPEG shrinks while it is decoded, so that no side is shorter than in `size`: 1, 2, 4 or 8.

    Pillow's `draft` chooses the same.
    """
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or _fits(header, size, scale))


def _fits(header: Header, size: tuple[int, int], scale: int) -> bool:
    return header.width >= scale * size[0] and header.height >= scale * size[1]


def default_max_pixels(decode_bytes: int) -> int:
    """The largest image, of any format, that can be decoded in so many bytes."""
    return min(DEFAULT_MAX_PIXELS, decode_bytes // MAX_BYTES_PER_PIXEL)


def _longest(sizing: Sizing) -> int:
    """The longest side that is a multiple."""
    return max(sizing.long_side // sizing.multiple, 1) * sizing.multiple


def _rounded(side: float, sizing: Sizing) -> int:
    return min(max(round(side / sizing.multiple), 1) * sizing.multiple, _longest(sizing))


def _too_long(width: int, height: int, sizing: Sizing) -> str:
    tenths = -(-10 * max(width, height) // min(width, height))  # rounded up: it is more than what works
    ratio = f"{tenths // 10}.{tenths % 10}".removesuffix(".0")
    return (
        f"This image is {width} x {height} ({f'{ratio}:1' if width > height else f'1:{ratio}'}); with a short side of "
        f"{sizing.short_side} and a long side of {sizing.long_side} pixels, shapes up to "
        f"{2 * _longest(sizing) // sizing.multiple}:1 work. Crop it or add borders."
    )


# ------------------------------------------------------------------------------------------------------------- formats


def _reader(data: Buffer) -> tuple[Format, Callable[[memoryview], _Stored]]:
    start = bytes(data[:16])
    if start.startswith(PNG_SIGNATURE):
        return "PNG", _read_png
    if start.startswith(_JPEG):
        return "JPEG", _read_jpeg
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP", _read_webp
    if not start:
        raise BadImageError("The image is empty (0 bytes); send a PNG, JPEG or WebP file.")
    raise BadImageError(f"The image must be a PNG, JPEG or WebP file; this is {kind_of(data)}.")


def parts(data: memoryview, kind: Format, some: int = _SOME_PARTS) -> Iterator[None]:
    """Iterate as often as a file of this length may have parts, then raise BadImageError."""
    most = some + len(data) // _PART_BYTES
    yield from repeat(None, most)
    raise BadImageError(f"The {kind} image consists of more than {most} parts; save it again with another program.")


def _read_png(data: memoryview) -> _Stored:
    if bytes(data[12:16]) != b"IHDR":
        raise BadImageError("The PNG image is damaged: it does not begin with its header.")
    width, height = unpack_from(">II", data, 16)
    exif = [body for at, name, body in png_chunks(data) if name == b"eXIf" and is_sound(data, at, name, body)]
    return width, height, bytes(exif[0]) if exif else b"", 0


def png_chunks(data: memoryview) -> Iterator[tuple[int, bytes, memoryview]]:
    """Place, name and body of each chunk of a PNG file."""
    at, last = len(PNG_SIGNATURE), len(data) - 8
    for _ in parts(data, "PNG"):
        if at > last:
            return
        length, name = unpack_from(">I4s", data, at)
        yield at, name, data[at + 8 : at + 8 + length]
        at += PNG_CHUNK + length


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return b"".join((pack(">I4s", len(body), name), body, pack(">I", zlib.crc32(body, zlib.crc32(name)))))


def is_sound(data: memoryview, at: int, name: bytes, body: memoryview) -> bool:
    """Whether the checksum of a chunk is right. Raises struct.error where it is cut off."""
    (checksum,) = unpack_from(">I", data, at + 8 + len(body))
    return bool(checksum == zlib.crc32(body, zlib.crc32(name)))


def _read_jpeg(data: memoryview) -> _Stored:
    exif, size = b"", None
    for marker, body in _jpeg_segments(data):
        if marker == 0xE1 and not exif and bytes(body[:6]) == b"Exif\0\0":
            exif = bytes(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES:
            size = size or unpack_from(">xHH", body)
    if size is None:
        raise BadImageError("The JPEG image is damaged: it does not declare its size.")
    height, width = size
    return width, height, exif, 0


def _jpeg_segments(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 2
    for _ in parts(data, "JPEG"):
        fill, marker = data[at], data[at + 1]
        if fill != 0xFF:
            at = _next_marker(data, at)
        elif marker == 0xFF:
            at += 1
        elif marker in BARE_MARKERS:
            at += 2
        elif marker in _HEADER_ENDS:
            return
        else:
            (length,) = unpack_from(">H", data, at + 2)
            yield marker, data[at + 4 : at + 2 + length]
            at += max(2 + length, 4)  # a length counts its own two bytes


def _next_marker(data: memoryview, at: int) -> int:
    """The place of the next byte of 255: some cameras leave other bytes between segments, which decoders skip."""
    found = bytes(data[at : at + _GAP]).find(0xFF)
    if found < 0:
        raise BadImageError("The JPEG image is damaged: its header is invalid.")
    return at + found


def _read_webp(data: memoryview) -> _Stored:
    match bytes(data[12:16]):
        case b"VP8X":
            width, height, chunks = uint24(data, 24) + 1, uint24(data, 27) + 1, [*riff_chunks(data)]
            exif = [body for name, body in chunks if name == b"EXIF"]
            lossless = sum(len(body) for name, body in chunks if name in _LOSSLESS)
            return width, height, bytes(exif[0]) if exif else b"", lossless
        case b"VP8L":
            (bits,) = unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, b"", len(data)
        case b"VP8 ":
            width, height = unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF, b"", 0
        case _:
            raise BadImageError("The WebP image is damaged: it does not begin with its header.")


def riff_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Name and body of each chunk of a WebP file."""
    at, last = 12, len(data) - 8
    for _ in parts(data, "WebP"):
        if at > last:
            return
        name, length = unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def uint24(data: memoryview, at: int) -> int:
    """A little-endian number of three bytes."""
    low, high = unpack_from("<HB", data, at)
    return int(low | high << 16)


# ---------------------------------------------------------------------------------------------------------------- EXIF


def _orientation(exif: bytes) -> int:
    """The orientation tag of the first directory of an EXIF block; 1 where there is none or it makes no sense."""
    exif = exif.removeprefix(b"Exif\0\0")  # some writers of WebP repeat JPEG's prefix
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = unpack_from(f"{order}I", exif, 4)
        (entries,) = unpack_from(f"{order}H", exif, at)
        for entry in range(min(entries, _MAX_ENTRIES)):
            tag, _kind, _count, value = unpack_from(f"{order}HHIH", exif, at + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
