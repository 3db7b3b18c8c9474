"""Image files to pixels and back. Pixels are RGB, uint8, [height, width, 3]."""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TypeAlias, assert_never

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from workers.engine.config import MAX_THRESHOLD, Canny, Output
from workers.engine.contract import BadImageError
from workers.engine.contract import Format as FileFormat
from workers.engine.formats import (
    END_OF_IMAGE,
    START_OF_SCAN,
    decode_webp,
    deep_transparency,
    encode_png,
    has_all_scans,
    jpeg_scans,
    next_restart,
    open_png,
)
from workers.engine.header import (
    BAND_PIXELS,
    SIDES_SWAPPED,
    Buffer,
    Header,
    read_header,
)

Pixels: TypeAlias = NDArray[np.uint8]

_MAX_PIXELS = 178_956_970  # where Pillow would call it a bomb; a guard for callers without a limit of their own
# JPEG's own limit. A WebP of 210 bytes may declare 13,697,032 x 8 pixels and keeps libwebp busy for minutes.
_MAX_SIDE = 65_535
# Each scan of a progressive JPEG goes over all pixels, some 2 ns for each, and takes a few bytes: 200 KB can hold 1,000
# scans of 40 million pixels, a minute. Encoders make some ten scans.
_MAX_SCANNED_PIXELS, _MAX_SCANS = 10**9, 100
DENSITY = (0.04, 0.12)  # of an image's pixels are edges under automatic thresholds
RUNS = 5  # of Canny at most, to find those thresholds: enough for any from 0.3 to 3.6 times the configured ones

_OTHER_DATA = bytes([0xA5, 0x3C, 0x96, 0x5B]) * 16  # than the zeros that libjpeg adds; from its first bit on
_THUMBNAIL_SIDE, _THUMBNAIL = 128, Output(format="jpeg", quality=80)
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error)


def decode(data: Buffer) -> Pixels:
    """Pixels of a PNG, JPEG or WebP file as a viewer shows them, at their own size; see `decode_to`."""
    header = read_header(data)
    return decode_to(data, header.width, header.height)


def decode_to(data: Buffer, width: int, height: int) -> Pixels:
    """Pixels of a PNG, JPEG or WebP file as a viewer shows them, scaled to a size; of an animation, the first frame.

    Alpha is composited on white, 16 bits become 8, EXIF orientation is applied, colour profiles are ignored. Takes at
    most `header.decoding_bytes` of memory: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough, and
    a rotated image is turned after it is scaled. Raises BadImageError, with a sentence for the client.
    """
    header = read_header(data)
    size = (height, width) if header.orientation >= SIDES_SWAPPED else (width, height)
    with _explained(header):
        return _upright(_scaled(data, header, size), header.orientation)


def alpha_range(data: Buffer) -> tuple[int, int]:
    """The least and the greatest alpha of an image file, of 0 to 255. Raises BadImageError."""
    header = read_header(data)
    with _explained(header):
        if header.format == "WebP":
            pixels = decode_webp(data, _stored_size(header))
            return (int(pixels[..., 3].min()), int(pixels[..., 3].max())) if pixels.shape[2] == 4 else (255, 255)
        image = _loaded(open_png(data), header) if header.format == "PNG" else Image.new("L", (1, 1))
        if not _has_alpha(image) or image.mode.startswith("I"):
            return 255, 255
        bands = (image.crop((0, band.start, image.width, band.stop)) for band in _bands(image.height, image.width))
        lows, highs = zip(*(band.convert("RGBA").getchannel("A").getextrema() for band in bands), strict=True)
        return min(lows), max(highs)


@contextmanager
def _explained(header: Header) -> Iterator[None]:
    """Refuse an image that is too large, and turn a library's errors of a damaged one into BadImageError."""
    if header.width * header.height > _MAX_PIXELS or max(header.width, header.height) > _MAX_SIDE:
        raise BadImageError(f"The image is too large: {header.width} x {header.height} pixels.")
    try:
        yield
    except BadImageError:
        raise
    except _UNREADABLE as error:
        raise BadImageError(
            f"The {header.format} image is damaged or cut short; send the whole file, or save it again."
        ) from error


def _scaled(data: Buffer, header: Header, size: tuple[int, int]) -> Pixels:
    if header.format == "PNG":
        return resize(_png_pixels(data, header), *size)
    if header.format == "JPEG":
        return resize(_pixels(_jpeg(data, header, size)), *size)
    pixels = decode_webp(data, _stored_size(header))
    if pixels.shape[2] == 4:
        _composite(pixels)
    return resize(pixels, *size)[:, :, 2::-1]  # BGR, and perhaps a fourth channel


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Lanczos up, area down, as in ControlNet's demo (lllyasviel/ControlNet, annotator/util.py)."""
    old_height, old_width = pixels.shape[:2]
    if (old_width, old_height) == (width, height):
        return pixels
    grows = min(width, height) > min(old_width, old_height)
    method = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    return cv2.resize(pixels, (width, height), interpolation=method).astype(np.uint8, copy=False)


def edges(pixels: Pixels, canny: Canny) -> Pixels:
    """Canny edges of RGB pixels: 255 on an edge and 0 elsewhere, [height, width]."""
    return edges_and_thresholds(pixels, canny)[0]


def edges_and_thresholds(pixels: Pixels, canny: Canny) -> tuple[Pixels, tuple[int, int]]:
    """Find `edges`, and return the thresholds (low, high) that were used, too.

    Automatic thresholds move together until the share of edges is within DENSITY. Each move goes half as far as the one
    before, on a logarithmic scale. If no run gets there, the nearest one counts, and the first of equals: a blank image
    keeps the configured thresholds. They are whole numbers, so a request that names them gets the same edges.
    """
    thresholds, factor, move = (canny.low, canny.high), 1.0, 2.0
    tried: list[tuple[float, Pixels, tuple[int, int]]] = []
    for _ in range(RUNS):
        found = cv2.Canny(pixels, *thresholds).astype(np.uint8, copy=False)
        if not canny.auto:
            return found, thresholds
        share = np.count_nonzero(found) / found.size
        tried.append((max(DENSITY[0] - share, share - DENSITY[1], 0.0), found, thresholds))
        if not tried[-1][0]:
            break
        factor = factor * move if share > DENSITY[1] else factor / move
        move **= 0.5
        thresholds = _scaled_threshold(canny.low, factor), _scaled_threshold(canny.high, factor)
    _, found, thresholds = min(tried, key=lambda each: each[0])
    return found, thresholds


def _scaled_threshold(threshold: int, factor: float) -> int:
    return min(max(round(threshold * factor), 1), MAX_THRESHOLD)


def grey(pixels: Pixels) -> Pixels:
    """RGB pixels as grey levels [height, width]; those of a grey image stay as they are."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def encode(pixels: Pixels, output: Output, file_format: FileFormat | None = None, quality: int | None = None) -> bytes:
    """The image file of RGB pixels; `output` has the default format and quality.

    A PNG has no quality.
    """
    match file_format or output.format:
        case "png":
            return encode_png(pixels)
        case "webp":
            file = BytesIO()
            Image.fromarray(pixels).save(file, "WebP", quality=quality or output.quality, method=0)  # the fastest
            return file.getvalue()
        case "jpeg":
            bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            return _written(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, quality or output.quality)
        case _ as unreachable:
            assert_never(unreachable)


def encode_grey(pixels: Pixels) -> bytes:
    """A PNG of grey pixels [height, width]."""
    return _written(".png", pixels)


def _written(suffix: str, pixels: MatLike, *options: int) -> bytes:
    written, file = cv2.imencode(suffix, pixels, options)
    if not written:
        raise RuntimeError(f"OpenCV cannot write {pixels.shape} as {suffix}")
    return file.tobytes()


def thumbnail(pixels: Pixels) -> bytes:
    """A small JPEG of RGB pixels, of at most _THUMBNAIL_SIDE a side."""
    scale = min(1.0, _THUMBNAIL_SIDE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return encode(resize(pixels, width, height), _THUMBNAIL)


def _png_pixels(data: Buffer, header: Header) -> Pixels:
    pixels = _pixels(_loaded(open_png(data), header))
    if found := deep_transparency(data):
        # In a second pass, so that there is one image of Pillow's in memory at a time.
        high, low = found
        image = _loaded(open_png(data, low_bytes=True), header)
        for band in _bands(image.height, image.width):
            lows = np.asarray(image.crop((0, band.start, image.width, band.stop)))
            pixels[band][(pixels[band] == high).all(axis=2) & (lows == low).all(axis=2)] = 255
    return pixels


def _stored_size(header: Header) -> tuple[int, int]:
    """(width, height) as they are in the file, before it is turned."""
    return (header.height, header.width) if header.orientation >= SIDES_SWAPPED else (header.width, header.height)


def _loaded(image: ImageFile.ImageFile, header: Header, size: tuple[int, int] | None = None) -> Image.Image:
    """The image with its pixels; a JPEG's are decoded at no less than a size (width, height) that is enough."""
    # Two readers that disagree on the size could be used to smuggle a large image past the limit.
    if image.size != _stored_size(header):
        raise BadImageError(f"The {header.format} image declares more than one size; save it again.")
    if size and isinstance(image, JpegImageFile):
        image.draft(None, size)
    image.load()
    return image


def _jpeg(data: Buffer, header: Header, size: tuple[int, int]) -> Image.Image:
    try:
        return _loaded(_open_jpeg(data, header), header, size)
    except OSError as error:
        # Without its frames, which hold an image that is in memory until they are gone.
        failure = error.with_traceback(None)
    if "truncated" not in str(failure) or not has_all_scans(data):
        raise failure
    return _jpeg_without_end(data, header, size, failure)


def _jpeg_without_end(data: Buffer, header: Header, size: tuple[int, int], failure: OSError) -> Image.Image:
    """A JPEG file that lacks its end marker and nothing else: what follows its data is then of no effect.

    libjpeg replaces missing data by zeros and only warns, which Pillow hides. So the file is decoded twice, once with
    other data added, which changes pixels that are missing. Only one image is in memory at a time.
    """
    cut = bytes(data).rstrip(b"\xff")  # half a marker
    changed = _digest(_loaded(_open_jpeg(_continued(cut), header), header, size))
    image = _loaded(_open_jpeg(cut + END_OF_IMAGE, header), header, size)
    if _digest(image) != changed:
        raise failure
    return image


def _continued(cut: bytes) -> bytes:
    """The cut file with other data appended, and the same again after its next restart marker."""
    return b"".join((cut, _OTHER_DATA, next_restart(cut), _OTHER_DATA, END_OF_IMAGE))


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.blake2b()
    for band in _bands(image.height, image.width):
        digest.update(image.crop((0, band.start, image.width, band.stop)).tobytes())
    return digest.digest()


def _open_jpeg(data: Buffer, header: Header) -> ImageFile.ImageFile:
    # The plugins are called by name: Image.open would warn of large images, which the front end has judged already.
    most = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // (header.width * header.height))
    # To walk over all markers takes time: it is not needed where there are few of these bytes anywhere.
    if bytes(data).count(START_OF_SCAN) > most and (scans := jpeg_scans(data)) > most:
        raise BadImageError(f"The JPEG image has too many scans ({scans}); save it again.")
    return JpegImageFile(BytesIO(data))


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows to convert at a time, so that a large image is not in memory several times over."""
    rows = max(BAND_PIXELS // width, 1)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _pixels(image: Image.Image) -> Pixels:
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for band in _bands(height, width):
        pixels[band] = np.asarray(_rgb(image.crop((0, band.start, width, band.stop))))
    return pixels


def _composite(pixels: Pixels) -> None:
    """Composite four channels, alpha last, on white, in place."""
    for band in _bands(*pixels.shape[:2]):
        pixels[band] = np.asarray(_on_white(Image.fromarray(pixels[band])))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16(image)
    if _has_alpha(image):
        return _on_white(image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _grey16(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint16)
    eight = (grey >> 8).astype(np.uint8)
    eight[grey == image.info.get("transparency", -1)] = 255
    return Image.fromarray(eight).convert("RGB")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (Exif 2.32 4.6.4): 2 to 4 mirror and turn, 5 to 8 swap the sides first."""
    if orientation >= SIDES_SWAPPED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
