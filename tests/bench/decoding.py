"""The cost of decoding an image: peak of memory above what the process had, and seconds, each in a new process.

    python -m tests.bench.decoding [--megapixels 4 16] [--short-side 512]

Each kind of file, upright and on its side, decoded to its own size and as the engine does it.
`bound` is what `header.decoding_bytes` says; `stall` is how long another thread waited for the interpreter at most.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import product
from math import isqrt
from pathlib import Path

from tests.workers.engine.images import KINDS, exif, measure
from workers.engine.config import Sizing
from workers.engine.header import decoding_bytes, output_size, read_header

_HEAD = f"{'kind':<24}{'Mpx':>5}{'EXIF':>5}  {'to':<12}{'MiB':>7}{'bound':>7}{'bytes/px':>9}{'s':>7}{'stall ms':>9}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--short-side", type=int, default=512)
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
