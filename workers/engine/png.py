"""PNG files, read by Pillow as browsers show them.

Pillow refuses a file for a wrong checksum in a chunk that its pixels do not need, decompresses texts of up to 64 MiB,
and looks for a transparent colour among pixels that it has scaled to 8 bits. So it is given a file of the chunks that
make the pixels, and the transparent colour as it is after scaling. PNG 3rd edition, 5 and 11.3.1.1.
"""

from io import BytesIO
from struct import unpack_from
from typing import TypeAlias

from PIL.PngImagePlugin import PngImageFile

from workers.engine.header import PNG_CHUNK, PNG_SIGNATURE, Buffer, is_sound, png_chunks

Colour: TypeAlias = tuple[int, int, int]

_DEPTH, _COLOUR = 24, 25  # where they are in a file
_GREY, _RGB, _PALETTE = 0, 2, 3
_TRANSPARENCY_BYTES = {_GREY: 2, _RGB: 6, _PALETTE: 1}  # at least; other types of colour have alpha, and no tRNS
_ANCILLARY = 0x20  # of a name's first letter: it is a small one
_TO_8_BITS = {2: 0x55, 4: 0x11}


def open_png(data: Buffer, *, low_bytes: bool = False) -> PngImageFile:
    """The image, yet to be loaded; of 16-bit RGB the low bytes instead of the high ones, where they are wanted.

    Transparency of 16-bit RGB is left out: see `deep_transparency`.
    """
    image = PngImageFile(BytesIO(essential(data)))
    if _kind(data) == (16, _RGB):
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
    found = _transparency(data) if _kind(data) == (16, _RGB) else None
    if found is None:
        return None
    red, low_red, green, low_green, blue, low_blue = found[1][:6]
    return (red, green, blue), (low_red, low_green, low_blue)


def essential(data: Buffer) -> bytes:
    """A PNG file of the chunks that its pixels need: the critical ones, and tRNS where browsers heed it."""
    view, found = memoryview(data), _transparency(data)
    kept = [view[: len(PNG_SIGNATURE)]]
    for at, name, body in png_chunks(view):
        if not name[0] & _ANCILLARY or (found and found[0] == at):
            kept.append(view[at : at + len(body) + PNG_CHUNK])
    return b"".join(kept)


def _kind(data: Buffer) -> tuple[int, int]:
    """Bit depth and type of colour."""
    return data[_DEPTH], data[_COLOUR]


def _transparency(data: Buffer) -> tuple[int, bytes] | None:
    """Where the tRNS chunk is that counts, and its body: the first one that is sound, before the pixels."""
    view, (depth, colour) = memoryview(data), _kind(data)
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
    """Whether no grey of 1, 2 or 4 bits is this one. Of greater depths browsers ignore the bits beyond."""
    return colour == _GREY and depth < 8 and int(unpack_from(">H", body)[0]) >= 1 << depth
