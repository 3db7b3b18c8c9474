"""Names the kind of a file that is not a PNG, JPEG or WebP, by its first bytes, so that an error can say what to do.

Signatures: the formats' own specifications, as collected in PRONOM and in file(1).
"""

import re
from typing import TypeAlias

Buffer: TypeAlias = bytes | memoryview

OTHER = "a file of another kind"
_START_BYTES = 512  # looked at; a text may begin with space, a declaration and comments
_BRANDS = {  # of ISO media files (ISO/IEC 14496-12, 4.3), which all begin with a box `ftyp`
    **dict.fromkeys((b"avif", b"avis", b"avio"), "an AVIF image"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "a HEIC image, as phones save them"
    ),
    **dict.fromkeys((b"j2ki", b"mif1", b"mif2", b"msf1"), "a HEIF image"),
    b"crx ": "a raw photograph (CR3)",
    b"qt  ": "a QuickTime video",
    b"M4A ": "an MP4 audio file",
}
_SIGNATURES = (
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image or a raw photograph"),
    (b"FUJIFILMCCD-RAW", "a raw photograph (RAF)"),
    (b"IIU\0", "a raw photograph (RW2)"),
    (b"IIRO", "a raw photograph (ORF)"),
    (b"MM\0*", "a TIFF image or a raw photograph"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"II\xbc\x01", "a JPEG XR image"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DDS image"),
    (b"v/1\1", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"PK\3\4", "a ZIP archive or an office document"),
    (b"PK\5\6", "an empty ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"),
    (b"FLV\1", "a Flash video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"\0\0\1\xb3", "an MPEG video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAV file"}
_MOVIE = (b"moov", b"mdat", b"wide", b"free", b"skip")  # boxes that begin an old QuickTime video
_PATTERNS = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"BM.{4}\0\0\0\0", "a BMP image"),  # its two letters alone begin many a text
        (rb"G.{187}G.{187}G", "an MPEG video"),
        # A first byte that was replaced, doubled or dropped, or other line ends.
        (
            rb"(?:\x89|\xc2\x89|\xe2\x80\xb0|\xef\xbf\xbd|\t|\?)?PNG[\r\n]"
            rb"|\xc3\xbf\xc3\x98\xc3\xbf|(?:\xef\xbf\xbd){3,4}.{0,6}(?:JFIF|Exif)",
            "an image whose bytes were changed by a conversion to text: send the file unchanged",
        ),
    )
)
_LATE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff[\xdb\xe0\xe1]|RIFF....WEBP", re.DOTALL)
_MARKUP = (
    (re.compile(rb"<svg[\s>]", re.IGNORECASE), "an SVG drawing"),
    (re.compile(rb"<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\A\s*<\?xml|\A\s*<[a-z]", re.IGNORECASE), "XML"),
    (re.compile(rb"\AP[1-7][\s#]"), "a Netpbm image"),
    (
        re.compile(rb"\A\s*(?:data:|iVBORw0KGgo|/9j/|UklGR)", re.IGNORECASE),  # of a PNG, a JPEG and a WebP
        "an image that is still encoded as base64 text: decode it, or encode it only once",
    ),
    (re.compile(rb"\A\s*[{\[]"), "JSON text"),
    (re.compile(rb"\A(?:\xff\xfe|\xfe\xff)"), "text in UTF-16"),
    (
        re.compile(rb"\A\s*(?:[a-z][a-z0-9+.-]*:/|www\.)\S+\s*\Z", re.IGNORECASE),
        "a URL: no image is fetched, send the file itself",
    ),
    (
        re.compile(rb"\A\s*@?[^\s<>{}]{1,200}\.[a-z][a-z0-9]{1,4}\s*\Z", re.IGNORECASE),
        "the name of a file: send the file itself (by curl with @ before its name)",
    ),
)


def kind_of(data: Buffer) -> str:
    """The kind of a file, for a sentence ("a GIF image"), or OTHER."""
    start = bytes(data[:_START_BYTES])
    if not start.strip(b"\0"):
        return "nothing but zeros"
    for magic, name in _SIGNATURES:
        if start.startswith(magic):
            return name
    if start[4:8] == b"ftyp":
        return _media(start)
    if start[4:8] in _MOVIE:
        return "a QuickTime video"
    if start[:4] == b"RIFF":
        return _RIFF.get(start[8:12], "a RIFF file")
    for pattern, name in _PATTERNS:
        if pattern.match(start):
            return name
    if late := _LATE.search(start):
        return f"an image after {late.start()} other bytes: leave them out"
    return _text(start) or OTHER


def _media(start: bytes) -> str:
    """An ISO media file, by its brand or else by one of those that it is compatible with."""
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, min(len(start), 64), 4))]
    generic = (b"mif1", b"msf1")  # "some HEIF": HEIC and AVIF both say so, and say more among the others
    known = [brand for brand in brands if brand in _BRANDS]
    return next((_BRANDS[brand] for brand in (*(b for b in known if b not in generic), *known)), "an MP4 video")


def _text(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf")
    for pattern, name in _MARKUP:
        if pattern.search(text):
            return name
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if error.start < _START_BYTES - 6:  # else a character that is cut at our end
            return None
    return "text" if not re.search(rb"[\0-\x08\x0e-\x1f]", text) else None
