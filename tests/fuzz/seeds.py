"""Good files and good bodies, for mutations to start from: every format and every mode that is taken."""

import base64
import json
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

ANIMATED: dict[str, Any] = {"save_all": True, "duration": 40}
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes that Pillow writes."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """A small image in which no two columns are alike."""
    return Image.linear_gradient("L").resize((24, 16)).convert(mode)


def frames(mode: str = "RGB") -> dict[str, Any]:
    """The options that make an animation of three frames."""
    return ANIMATED | {"append_images": [gradient(mode).rotate(90), gradient(mode).rotate(180)]}


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(depth: int, colour: int, interlaced: bool = False) -> bytes:
    """A black PNG of 8 x 8 pixels of any depth and colour type, also those that Pillow does not write."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    widths = [1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8] if interlaced else [8] * 8
    rows = b"".join(bytes(1 + -(-width * samples * depth // 8)) for width in widths)
    head = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, interlaced)
    palette = png_chunk(b"PLTE", bytes(range(48))) + png_chunk(b"tRNS", bytes(16)) if colour == 3 else b""
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + palette + pixels + png_chunk(b"IEND", b"")


def images() -> list[bytes]:
    """Files of all formats, GIF too, which is to be refused."""
    return [
        *(file_of(gradient(mode), "PNG") for mode in ("RGB", "RGBA", "LA", "P", "1", "I;16")),
        *(png(16, colour) for colour in (0, 2, 4, 6)),
        *(png(depth, 3) for depth in (1, 2, 4)),
        png(8, 2, interlaced=True),
        file_of(gradient(), "PNG", exif=TURNED, transparency=(0, 0, 0)),
        file_of(gradient(), "PNG", **frames()),
        *(file_of(gradient(mode), "JPEG") for mode in ("RGB", "L", "CMYK")),
        file_of(gradient(), "JPEG", progressive=True, exif=TURNED, icc_profile=bytes(200)),
        *(file_of(gradient(mode), "WEBP", lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (False, True)),
        file_of(gradient(), "WEBP", exif=TURNED),
        file_of(gradient(), "WEBP", **frames()),
        file_of(gradient(), "GIF", **frames()),
    ]


def bodies() -> list[bytes]:
    """Bodies of requests, with an image and every liberty that is taken."""
    encoded = base64.b64encode(file_of(gradient(), "PNG")).decode()
    plain = {"request_id": 1, "text": "a red circle", "input_image_base64": encoded, "random_seed": 5}
    liberties = {
        "request_id": "-12",
        "text": "赤い\u202e🎈\0\n",
        "input_image_base64": f"data:image/png;base64,{encoded[:40]}\r\n{encoded[40:]}",
        "random_seed": 2**64 - 1,
        "more": {"a": [1.5e300, None, True, {"b": []}]},
    }
    return [
        json.dumps(plain).encode(),
        json.dumps(liberties).encode(),
        json.dumps(liberties, ensure_ascii=False).encode(),
    ]
