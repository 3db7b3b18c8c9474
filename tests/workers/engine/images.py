"""Image files of every kind that is costly to decode, and what decoding one takes, measured in a process of its own."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Make: TypeAlias = Callable[[int, int, bytes], bytes]  # of width, height and EXIF block
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True, slots=True)
class Peak:
    """What decoding a file took: bytes of memory above what the process had before, seconds, and of these the most
    that another thread waited for the interpreter."""

    bytes: int
    seconds: float
    stall: float


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def saved(mode: str, kind: str, **options: Any) -> Make:
    """Noise in a mode of Pillow's, saved as a kind of file: nothing of it can be left out or shared by a decoder."""

    def make(width: int, height: int, block: bytes) -> bytes:
        file = BytesIO()
        noise(mode, width, height).save(file, kind, exif=block, **options)
        return file.getvalue()

    return make


def noise(mode: str, width: int, height: int) -> Image.Image:
    """Random pixels."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


def deep(channels: int) -> Make:
    """A PNG of 16 bits a channel."""

    def make(width: int, height: int, block: bytes) -> bytes:
        values = np.random.default_rng(0).integers(0, 2**16, (height, width, channels), np.uint16)
        return cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    return make


def interlaced(width: int, height: int, block: bytes) -> bytes:
    """An RGBA PNG in seven passes, which Pillow reads and does not write."""
    pixels = np.asarray(noise("RGBA", width, height))
    rows = b"".join(_passed(pixels[y::down, x::across]) for x, y, across, down in ADAM7)
    return png(struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 1), zlib.compress(rows, 1))


def _passed(pixels: NDArray[np.uint8]) -> bytes:
    height = len(pixels)
    return np.hstack([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)]).tobytes()


def png(header: bytes, pixels: bytes, *others: tuple[bytes, bytes], bad: bytes = b"") -> bytes:
    """A PNG of its chunks; `others` come before the pixels. Chunks with the name `bad` have a wrong checksum."""
    chunks = ((b"IHDR", header), *others, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body, name == bad) for name, body in chunks)


def _chunk(name: bytes, body: bytes, bad: bool) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ bad)


def deep_with_transparency(width: int, height: int, block: bytes) -> bytes:
    """A PNG of 16-bit RGB with a transparent colour, which is decoded twice."""
    data = deep(3)(width, height, block)
    transparency = png(b"", b"", (b"tRNS", bytes(6)))[20:38]
    return data[:33] + transparency + data[33:]


def without_end(width: int, height: int, block: bytes) -> bytes:
    """A progressive JPEG without its last marker, which is decoded three times."""
    return saved("CMYK", "JPEG", progressive=True)(width, height, block)[:-2]


def animation(width: int, height: int, block: bytes) -> bytes:
    """A WebP whose first frame covers all but two pixels of each side, so that it must be put on a canvas."""
    still = noise("RGBA", width - 2, height - 2)
    file = BytesIO()
    still.save(file, "WebP", lossless=True, exact=True, method=0, quality=0)
    pixels = file.getvalue()[12:]
    sides = [(side - 1).to_bytes(3, "little") for side in (still.width, still.height, width, height)]
    frame = bytes(6) + sides[0] + sides[1] + bytes(4) + pixels
    chunks = struct.pack("<4sII", b"VP8X", 10, 0x12) + sides[2] + sides[3]  # animated, with alpha
    chunks += struct.pack("<4sI", b"ANIM", 6) + bytes(6) + struct.pack("<4sI", b"ANMF", len(frame)) + frame
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WEBP") + chunks


def webp_of_many_codes(side: int) -> bytes:
    """A lossless WebP with a set of Huffman codes for every 4 x 4 pixels, in 4.5 bytes each; all pixels are 0.

    RFC 9649, section 3.7: an image of each block's set of codes, then the sets, each of five codes of one symbol.
    """
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> n & 1 for n in range(count))

    def code_of_bytes(others: int) -> None:  # 256 symbols of 8 bits each, and others that have no code
        put(0, 1)
        put(8, 4)  # 12 code lengths have a length themselves: 0 and 8, of one bit
        for length in (0, 0, 1, *[0] * 8, 1):
            put(length, 3)
        put(0, 1)
        bits.extend([1] * 256 + [0] * others)

    for value, count in ((0x2F, 8), (side - 1, 14), (side - 1, 14), (0, 4), (0, 2), (1, 1), (0, 3), (0, 1)):
        put(value, count)
    code_of_bytes(24)  # green
    code_of_bytes(0)  # red
    single = [1, 0, 0, 0]  # a code of one symbol, 0
    bits.extend(single * 3)
    blocks = (side // 4) ** 2
    for block in range(blocks):
        for value in (block & 255, block >> 8):
            bits.extend(int(bit) for bit in f"{value:08b}")
    bits.extend(single * 5 * blocks)
    body = np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
    body += bytes(len(body) % 2)
    return struct.pack("<4sI4s4sI", b"RIFF", 12 + len(body), b"WEBP", b"VP8L", len(body)) + body


_LOSSLESS = {"lossless": True, "exact": True, "method": 0, "quality": 0}
KINDS: Mapping[str, Make] = {
    "PNG RGB": saved("RGB", "PNG", compress_level=1),
    "PNG RGBA": saved("RGBA", "PNG", compress_level=1),
    "PNG grey, alpha": saved("LA", "PNG", compress_level=1),
    "PNG palette, tRNS": saved("P", "PNG", compress_level=1, transparency=7),
    "PNG grey, 16 bit": deep(1),
    "PNG RGBA, 16 bit": deep(4),
    "PNG RGB, 16 bit, tRNS": deep_with_transparency,
    "PNG RGBA, interlaced": interlaced,
    "JPEG": saved("RGB", "JPEG"),
    "JPEG progressive": saved("RGB", "JPEG", progressive=True, subsampling=0),
    "JPEG progressive CMYK": saved("CMYK", "JPEG", progressive=True),
    "JPEG progressive CMYK, without its end": without_end,
    "WebP": saved("RGB", "WebP", method=0),
    "WebP, alpha": saved("RGBA", "WebP", method=0),
    "WebP lossless": saved("RGB", "WebP", **_LOSSLESS),
    "WebP lossless, alpha": saved("RGBA", "WebP", **_LOSSLESS),
    "WebP animation": animation,
}

_SCRIPT = """
import json, sys, threading, time
import cv2
from pathlib import Path
from workers.engine import codec
from tests.workers.engine.images import small

cv2.setNumThreads(1)
data, size = Path(sys.argv[1]).read_bytes(), (int(sys.argv[2]), int(sys.argv[3]))
for each in small():
    codec.decode_to(each, 64, 64)
done, stalls = threading.Event(), [0.0]

def watch():
    while not done.is_set():
        began = time.perf_counter()
        time.sleep(0.001)
        stalls.append(time.perf_counter() - began)

def kib(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])

thread = threading.Thread(target=watch)
thread.start()
time.sleep(0.02)
del stalls[:]
Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
before, began = kib("VmRSS"), time.perf_counter()
codec.decode_to(data, *size)
seconds = time.perf_counter() - began
done.set()
thread.join()
print(json.dumps([1024 * (kib("VmHWM") - before), seconds, max(stalls, default=0.0)]))
"""


def small() -> list[bytes]:
    """A small file of each kind, for a process to load all that it needs."""
    return [make(64, 64, exif(1)) for make in KINDS.values()]


def measure(path: Path, size: tuple[int, int]) -> Peak:
    """Decode a file to a size in a new process."""
    arguments = [sys.executable, "-c", _SCRIPT, str(path), *map(str, size)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    return Peak(*json.loads(done.stdout))
