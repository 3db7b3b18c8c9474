"""What files cost. To decode: peak of memory above what the process had, and seconds, each in a new process.

    python -m tests.bench.decoding [--megapixels 4 16] [--short-side 512]
    python -m tests.bench.decoding --encode [--short-side 512]

Each kind of file, upright and on its side, decoded to its own size and as the engine does it.
`bound` is what `header.decoding_bytes` says; `stall` is how long another thread waited for the interpreter at most.

With `--encode`: milliseconds and size of a result's file, by the engine and by what else is installed (such as
simplejpeg), in turns.
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from io import BytesIO
from itertools import product
from math import isqrt
from pathlib import Path
from statistics import median
from typing import Any

import cv2
from PIL import Image

from tests.workers.engine.images import KINDS, exif, measure
from workers.engine import codec, formats
from workers.engine.codec import Pixels
from workers.engine.config import Output, Sizing
from workers.engine.contract import Format
from workers.engine.header import decoding_bytes, output_size, read_header

_HEAD = f"{'kind':<24}{'Mpx':>5}{'EXIF':>5}  {'to':<12}{'MiB':>7}{'bound':>7}{'bytes/px':>9}{'s':>7}{'stall ms':>9}"
_ENCODE_HEAD = f"{'encoder':<24}{'median ms':>10}{'least ms':>10}{'KiB':>7}"
_PHOTOGRAPH = Path(__file__).parents[2] / "example/demo_model/photographs/portrait.jpg"
_REPEATS = 50


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--short-side", type=int, default=512)
    parser.add_argument("--encode", action="store_true")
    options = parser.parse_args()
    if options.encode:
        _encode(options.short_side)
        return
    print(_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for kind, megapixels, orientation in product(KINDS, options.megapixels, (1, 6)):
            side = isqrt(megapixels * 10**6)
            path = Path(folder) / "image"
            path.write_bytes(KINDS[kind](side, side, exif(orientation)))
            for line in _lines(path, Sizing(short_side=options.short_side)):
                print(f"{kind:<24}{megapixels:>5}{orientation:>5}  {line}", flush=True)


def _lines(path: Path, sizing: Sizing) -> Iterator[str]:
    header = read_header(path.read_bytes())
    pixels = header.width * header.height
    for size in ((header.width, header.height), output_size(header.width, header.height, sizing)):
        peak, bound = measure(path, size), decoding_bytes(header, size)
        yield (
            f"{size[0]}x{size[1]:<6}{peak.bytes / 2**20:>8.0f}{bound / 2**20:>7.0f}{peak.bytes / pixels:>9.1f}"
            f"{peak.seconds:>7.2f}{1000 * peak.stall:>9.0f}"
        )


def _encode(side: int) -> None:
    photograph = codec.resize(codec.decode(_PHOTOGRAPH.read_bytes()), side, side)
    encoders = dict(_encoders(Output().quality))
    times: dict[str, list[float]] = {name: [] for name in encoders}
    sizes = {name: len(encode(photograph)) for name, encode in encoders.items()}
    for name, encode in [*encoders.items()] * _REPEATS:
        began = time.perf_counter()
        encode(photograph)
        times[name].append(1e3 * (time.perf_counter() - began))
    print(_ENCODE_HEAD)
    for name, each in times.items():
        print(f"{name:<24}{median(each):>10.2f}{min(each):>10.2f}{sizes[name] / 1024:>7.0f}")


def _encoders(quality: int) -> Iterator[tuple[str, Callable[[Pixels], bytes]]]:
    """The engine's first, of each format."""
    engine: dict[str, Format] = {"JPEG": "jpeg", "PNG": "png", "WebP": "webp"}
    others: dict[str, dict[str, Callable[[Pixels], bytes]]] = {
        "JPEG": {"Pillow": partial(_pillow, "JPEG", quality=quality, subsampling="4:2:0"), **_turbojpeg(quality)},
        "PNG": {
            "by zlib": partial(_png, partial(zlib.compress, level=1)),
            "OpenCV": partial(_opencv, ".png"),
            "Pillow": partial(_pillow, "PNG", compress_level=1),
        },
        "WebP": {"OpenCV": partial(_opencv, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)},
    }
    for kind, name in engine.items():
        yield f"{kind}: engine", partial(codec.encode, output=Output(quality=quality), file_format=name)
        yield from ((f"{kind}: {other}", encode) for other, encode in others[kind].items())


def _pillow(kind: str, pixels: Pixels, **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _opencv(suffix: str, *options: Any) -> bytes:
    *numbers, pixels = options
    return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), numbers)[1].tobytes()


def _png(deflate: Callable[[Any], bytes], pixels: Pixels) -> bytes:
    usual, formats.deflate = formats.deflate, deflate
    try:
        return formats.encode_png(pixels)
    finally:
        formats.deflate = usual


def _turbojpeg(quality: int) -> dict[str, Callable[[Pixels], bytes]]:
    """libjpeg-turbo's own interface, where a package for that is installed."""
    try:
        simplejpeg = import_module("simplejpeg")
    except ImportError:
        return {}
    return {"simplejpeg": lambda pixels: simplejpeg.encode_jpeg(pixels, quality, "RGB", "420", fastdct=False)}


if __name__ == "__main__":
    main()
