"""WebP files to pixels, with few copies.

OpenCV decodes a still image straight into its result. An animation would take it four canvases (Pillow too), so the
first frame is cut out and decoded as a still image. Layout: RFC 9649.
"""

from struct import pack

import cv2
import numpy as np
from numpy.typing import NDArray

from workers.engine.contract import BadPictureError
from workers.engine.header import Buffer, riff_chunks, uint24

_ANIMATED, _ALPHA = 0x02, 0x10  # flags of the VP8X chunk
_FRAME_HEADER = 16  # bytes of an ANMF chunk before the frame's own chunks
_LEAST_BYTES = 32  # OpenCV takes no file of fewer, though there are some, of a single colour
_DAMAGED = "The WebP image is damaged or cut short; send the whole file, or save it anew."

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would log each file that it cannot read


def decode(data: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    """BGR or BGRA pixels of a file that declares a size (width, height). Raises BadPictureError."""
    if data[12:16] == b"VP8X" and data[20] & _ANIMATED:
        return _first_frame(memoryview(data), size)
    return _still(data, size)


def _still(data: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        file = bytes(data).ljust(_LEAST_BYTES, b"\0")  # no copy, if there is nothing to do
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadPictureError(_DAMAGED) from error
    if pixels is None:
        raise BadPictureError(_DAMAGED)
    if pixels.shape[1::-1] != size:
        raise BadPictureError("The WebP image declares more than one size; save it anew.")
    return pixels.astype(np.uint8, copy=False)


def _first_frame(data: memoryview, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The first frame on a white canvas. What an animation says of its background is ignored, as browsers do."""
    frame = next((body for name, body in riff_chunks(data) if name == b"ANMF"), memoryview(b""))
    if len(frame) < _FRAME_HEADER:
        raise BadPictureError(_DAMAGED)
    x, y, width, height = 2 * uint24(frame, 0), 2 * uint24(frame, 3), uint24(frame, 6) + 1, uint24(frame, 9) + 1
    if x + width > size[0] or y + height > size[1]:
        raise BadPictureError("The WebP image has a frame larger than itself; save it anew.")
    pixels = _still(_file(frame), (width, height))
    if (width, height) == size:
        return pixels
    canvas = np.full((size[1], size[0], pixels.shape[2]), 255, np.uint8)
    canvas[y : y + height, x : x + width] = pixels
    return canvas


def _file(frame: memoryview) -> bytes:
    """A WebP file of one frame of an animation."""
    chunks = frame[_FRAME_HEADER:]
    extended = pack("<4sII", b"VP8X", 10, _ALPHA) + bytes(frame[6:12])
    return b"".join((pack("<4sI4s", b"RIFF", 4 + len(extended) + len(chunks), b"WEBP"), extended, chunks))
