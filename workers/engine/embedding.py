"""Puts metadata into an image file: a text with what made the image, and XMP that says that a model made it.

The text is kept where AUTOMATIC1111's web UI writes it and where it, ComfyUI and others look for it: in the text chunk
`parameters` of a PNG, in EXIF's UserComment of a JPEG or WebP. The XMP is the same for all images. Layouts: PNG 3rd
edition 11.3.3; Exif 2.32 4.5 and 4.6; RFC 9649 2.7; XMP part 3, 1.1.

The blocks are put into the file as it was encoded, so its pixels stay as they are. OpenCV's `imencodeWithMetadata` does
not serve: 5.0 writes a JPEG's XMP without the header that marks it, and a PNG's with bytes of other memory after it.
"""

import struct
import zlib
from struct import pack

from workers.engine.header import PNG_SIGNATURE, read_header

KEYWORD = "parameters"
EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"  # two tags, and what begins a comment in UTF-16
# IPTC's word for what a trained model has made; cameras' own images and composites have others.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()

_LONG, _UNDEFINED = 4, 7  # types of EXIF values
_IFD_BYTES = 2 + 12 + 4  # of a directory with one entry
_TIFF_HEADER = pack(">2sHI", b"MM", 42, 8)
_JPEG, _JPEG_EXIF, _JPEG_XMP = b"\xff\xd8", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_MAX_SEGMENT = 0xFFFF  # bytes of a JPEG segment, with the two of its length
# UTF-16 units that fit into the EXIF of a JPEG.
JPEG_UNITS = (_MAX_SEGMENT - 2 - len(_JPEG_EXIF + _TIFF_HEADER + UNICODE) - 2 * _IFD_BYTES) // 2
_PNG_HEADER = len(PNG_SIGNATURE) + 25  # IHDR is always first, and always as long
_WEBP_EXIF, _WEBP_XMP, _WEBP_ALPHA = 0x08, 0x04, 0x10  # flags of VP8X
_LOSSLESS_ALPHA = 0x10  # of the last byte of a VP8L header


def embed(file: bytes, text: str | None) -> bytes:
    """The PNG, JPEG or WebP file with the XMP in it, and a text if there is one; a JPEG may have no room for it.

    Raises BadImageError for another file.
    """
    blocks, view = _blocks(file, text), memoryview(file)
    if file.startswith(PNG_SIGNATURE):
        at = _PNG_HEADER
    elif file.startswith(_JPEG):
        has_jfif = file[2:4] == b"\xff\xe0"  # which comes first, by its own rules
        at = 4 + struct.unpack_from(">H", file, 4)[0] if has_jfif else 2
    else:
        return _webp(file, _WEBP_XMP if text is None else _WEBP_XMP | _WEBP_EXIF, blocks)
    return b"".join((view[:at], blocks, view[at:]))


def holds(file: bytes, text: str) -> bool:
    """Whether a file has its text and XMP as `embed` writes them, not as another program saved it."""
    return _blocks(file, text) in file


def _blocks(file: bytes, text: str | None) -> bytes:
    """The blocks to put into a file, by its format."""
    if text is not None:
        text = text.replace("\0", "\ufffd")  # it would end the text for some readers
    if file.startswith(PNG_SIGNATURE):
        return _PNG_XMP if text is None else _png_text(text) + _PNG_XMP
    exif = b"" if text is None else _exif(text)
    if not file.startswith(_JPEG):
        return _riff(b"EXIF", exif) + _WEBP_XMP_CHUNK if exif else _WEBP_XMP_CHUNK
    has_room = 0 < len(exif) <= _MAX_SEGMENT - 2 - len(_JPEG_EXIF)
    return _segment(_JPEG_EXIF + exif) + _JPEG_XMP_SEGMENT if has_room else _JPEG_XMP_SEGMENT


def _png_text(text: str) -> bytes:
    try:
        return _chunk(b"tEXt", KEYWORD.encode() + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _international(KEYWORD, text.encode(errors="replace"))


def _international(keyword: str, text: bytes) -> bytes:
    """Text in UTF-8: not compressed, of no language, under no translated keyword."""
    return _chunk(b"iTXt", keyword.encode() + b"\0" * 5 + text)


def _chunk(name: bytes, body: bytes) -> bytes:
    return b"".join((pack(">I4s", len(body), name), body, pack(">I", zlib.crc32(body, zlib.crc32(name)))))


def _segment(body: bytes) -> bytes:
    """An APP1 segment."""
    return pack(">2sH", b"\xff\xe1", len(body) + 2) + body


def _webp(file: bytes, flags: int, blocks: bytes) -> bytes:
    """Turn the encoder's file of one chunk into one of several, which begins with a list of them."""
    header, view = read_header(file), memoryview(file)
    name = file[12:16]
    if name == b"VP8X":
        flags, view = flags | file[20], view[18:]
    elif name == b"VP8L" and file[24] & _LOSSLESS_ALPHA:
        flags |= _WEBP_ALPHA
    width, height = (header.width - 1).to_bytes(3, "little"), (header.height - 1).to_bytes(3, "little")
    body = (b"WEBP", pack("<4sII", b"VP8X", 10, flags), width, height, view[12:], blocks)
    return b"".join((pack("<4sI", b"RIFF", sum(map(len, body))), *body))


def _riff(name: bytes, body: bytes) -> bytes:
    return pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)


def _exif(text: str) -> bytes:
    """A block of EXIF with a UserComment, in UTF-16 of the block's own byte order, which is big-endian."""
    comment = UNICODE + text.encode("utf-16-be", "replace")
    first = _ifd(EXIF_IFD, _LONG, 1, len(_TIFF_HEADER) + _IFD_BYTES)
    second = _ifd(USER_COMMENT, _UNDEFINED, len(comment), len(_TIFF_HEADER) + 2 * _IFD_BYTES)
    return b"".join((_TIFF_HEADER, first, second, comment))


def _ifd(tag: int, kind: int, count: int, value: int) -> bytes:
    """A directory of one entry, and none after it; a value of more than four bytes is an offset."""
    return pack(">HHHIII", 1, tag, kind, count, value, 0)


_PNG_XMP = _international("XML:com.adobe.xmp", XMP)
_JPEG_XMP_SEGMENT = _segment(_JPEG_XMP + XMP)
_WEBP_XMP_CHUNK = _riff(b"XMP ", XMP)
