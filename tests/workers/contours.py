"""Images in which there are edges, strong ones and weak ones, and what the codec itself finds in them."""

import cv2
import numpy as np
from PIL import Image, ImageDraw

from tests.fuzz.seeds import file_of
from workers.engine import codec
from workers.engine.codec import Pixels
from workers.engine.config import Canny, Sizing
from workers.engine.header import output_size, read_header

SIDEWAYS = 6  # an EXIF orientation


def drawing(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Shapes of several colours on a ground that grows lighter; no two quarters are alike."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.5, height * 0.6), fill=(220, 35, 40))
    draw.rectangle((width * 0.55, height * 0.2, width * 0.9, height * 0.5), fill=(130, 150, 140))
    draw.polygon([(width * 0.2, height * 0.9), (width * 0.4, height * 0.65), (width * 0.7, height * 0.95)], fill="navy")
    return image.convert(mode)


def files() -> dict[str, bytes]:
    """A file of each kind, by what is special about it."""
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS
    clear = drawing(120, 90, "RGBA")
    clear.paste((0, 0, 0, 0), (60, 0, 120, 90))
    return {
        "a PNG": file_of(drawing(200, 150), "PNG"),
        "a JPEG": file_of(drawing(301, 199), "JPEG"),
        "a WebP": file_of(drawing(90, 130), "WEBP"),
        "a PNG with alpha": file_of(clear, "PNG"),
        "a WebP with alpha": file_of(clear, "WEBP", lossless=True),
        "a JPEG that lies on its side": file_of(drawing(160, 97), "JPEG", exif=exif.tobytes()),
        "a long PNG of grey": file_of(drawing(33, 257, "L"), "PNG"),
        "a palette": file_of(drawing(127, 127, "P"), "PNG"),
        "16 bits": file_of(Image.fromarray(np.asarray(drawing(80, 60, "L"), np.uint16) * 257), "PNG"),
        "one pixel": file_of(drawing(1, 1), "PNG"),
    }


def size_of(image: bytes, sizing: Sizing) -> tuple[int, int]:
    """(width, height) at which the model sees it."""
    header = read_header(image)
    return output_size(header.width, header.height, sizing)


def expected(image: bytes, size: tuple[int, int], canny: Canny) -> Pixels:
    """The edges, as the codec finds them in this process."""
    return codec.edges(codec.decode_to(image, *size), canny)


def pixels_of(png: bytes) -> Pixels:
    """A PNG of grey, which is not converted: [height, width]."""
    assert png.startswith(b"\x89PNG")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels.astype(np.uint8)
