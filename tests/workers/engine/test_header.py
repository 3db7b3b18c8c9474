import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.seeds import file_of
from workers.engine.config import Sizing
from workers.engine.contract import BadImageError
from workers.engine.header import Header, output_size, read_header


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_that_declares(width: int, height: int) -> bytes:
    good = file_of(Image.new("RGB", (1, 1)), "PNG")
    return good[:16] + struct.pack(">II", width, height) + good[24:]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WebP", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {"exif": oriented(1)}),
    ],
)
def test_the_size_is_read_from_the_header(kind: str, options: dict[str, Any]) -> None:
    data = file_of(Image.new("RGB", (70, 30)), kind, **options)
    lossless = len(data) if options.get("lossless") else 0
    assert read_header(data) == Header(kind, 70, 30, lossless=lossless)  # type: ignore[arg-type]
    assert read_header(memoryview(data)) == read_header(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_on_its_side_swaps_width_and_height(kind: str, orientation: int) -> None:
    header = read_header(file_of(Image.new("RGB", (70, 30)), kind, exif=oriented(orientation)))
    assert (header.width, header.height) == ((70, 30) if orientation <= 4 else (30, 70))
    assert header.orientation == orientation


@pytest.mark.parametrize(
    "exif", [oriented(0), oriented(9), b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*", b"Exif\0\0"]
)
def test_an_orientation_that_makes_no_sense_is_upright(exif: bytes) -> None:
    assert read_header(file_of(Image.new("RGB", (70, 30)), "JPEG", exif=exif)).orientation == 1


def test_any_size_may_be_declared_and_costs_nothing() -> None:
    start = time.process_time()
    header = read_header(png_that_declares(2**31 - 1, 2**31 - 1))
    assert (header.width, header.height) == (2**31 - 1, 2**31 - 1)
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello, world", "this is text"),
        (file_of(Image.new("P", (8, 8)), "GIF"), "a GIF"),
        (file_of(Image.new("RGB", (8, 8)), "BMP"), "a BMP"),
        (file_of(Image.new("RGB", (8, 8)), "TIFF"), "a TIFF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
        (file_of(Image.new("RGB", (8, 8)), "PNG")[:20], "ends within its header"),
        (file_of(Image.new("RGB", (8, 8)), "JPEG")[:30], "ends within its header"),
        (file_of(Image.new("RGB", (8, 8)), "WebP")[:18], "ends within its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "does not begin with its header"),
        (b"RIFF\0\0\0\0WEBPjunk" + bytes(40), "does not begin with its header"),
        (b"\xff\xd8\xff\xd9", "does not declare its size"),
        (b"\xff\xd8\xff\xda" + bytes(40), "does not declare its size"),
        (b"\xff\xd8\xff\xe0\0\x02 junk", "header is invalid"),
        (png_that_declares(0, 8), "declares a size of 0 x 8"),
    ],
)
def test_files_that_are_not_images_are_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(BadImageError, match=says):
        read_header(data)


def jpeg_with(padding: bytes) -> bytes:
    """A good JPEG with something put between its frame header and its pixels."""
    good = file_of(Image.new("RGB", (8, 8)), "JPEG")
    scan = good.index(b"\xff\xda")
    return good[:scan] + padding + good[scan:]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 4_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\x02" * 1_000_000,
        jpeg_with(b"\xff" * 4_000_000),
        jpeg_with(b"\xff\xfe\0\x02" * 1_000_000),
        png_that_declares(8, 8)[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 400_000,
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10) + b"ANMF\0\0\0\0" * 400_000,
    ],
    ids=["fill bytes", "comments", "fill after the frame", "comments after the frame", "chunks", "RIFF chunks"],
)
def test_millions_of_empty_parts_are_refused(data: bytes) -> None:
    with pytest.raises(BadImageError, match=r"consists of more than \d+ parts"):
        read_header(data)


def test_a_large_image_cut_as_libpng_cuts_it_is_not_too_many_parts() -> None:
    pieces = png_that_declares(8, 8)[:33] + (struct.pack(">I4s", 8192, b"IDAT") + bytes(8196)) * 2000
    assert read_header(pieces).width == 8


def test_an_exif_directory_is_not_read_to_its_claimed_end() -> None:
    entry = struct.pack(">HHIHxx", 0x0100, 3, 1, 6)
    turned = struct.pack(">HHIHxx", 0x0112, 3, 1, 6)
    for before, orientation in ((20, 6), (60_000, 1)):
        directory = struct.pack(">2sHIH", b"MM", 42, 8, 65_535) + entry * before + turned
        chunk = struct.pack(">I4s", len(directory), b"eXIf") + directory
        checksum = struct.pack(">I", zlib.crc32(chunk[4:]))
        assert read_header(png_that_declares(8, 8)[:33] + chunk + checksum).orientation == orientation
        assert read_header(png_that_declares(8, 8)[:33] + chunk + bytes(4)).orientation == 1


@given(st.sampled_from(["PNG", "JPEG", "WebP"]), st.data())
def test_whatever_is_damaged_it_answers_or_refuses(kind: str, draw: st.DataObject) -> None:
    data = bytearray(file_of(Image.new("RGB", (20, 10)), kind, exif=oriented(6)))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    with suppress(BadImageError):
        assert read_header(bytes(data)).width >= 1


@pytest.mark.parametrize(
    ("given_size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((100, 100), (512, 512)),
        ((1024, 768), (704, 512)),  # 682.7 rounds up
        ((768, 1024), (512, 704)),
        ((4000, 3000), (704, 512)),
        ((4000, 1000), (1024, 256)),  # too long: made smaller as a whole
        ((3200, 100), (1024, 64)),  # the short side comes to 32, half a multiple
        ((1, 1), (512, 512)),
    ],
)
def test_sizes_follow_the_demos_rule(given_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert output_size(*given_size, Sizing(short_side=512, long_side=1024, multiple=64)) == expected


def sizings() -> st.SearchStrategy[Sizing]:
    """As a configuration may have them: both sides multiples, the short one not above the long one."""

    def sizing(multiple: Literal[8, 16, 32, 64], sides: tuple[int, int]) -> Sizing:
        short, long = (side // multiple * multiple for side in sorted(sides))
        return Sizing(short_side=short, long_side=long, multiple=multiple)

    multiples: st.SearchStrategy[Literal[8, 16, 32, 64]] = st.sampled_from([8, 16, 32, 64])
    return st.builds(sizing, multiples, st.tuples(st.integers(64, 2048), st.integers(64, 4096)))


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    """Any; and those about as long as the longest that work."""
    near = st.builds(lambda short, ratio: (short, round(short * ratio)), st.integers(1, 10**5), st.floats(1, 2100))
    either = near | near.map(lambda sides: sides[::-1])
    return st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)) | either


@given(shapes(), sizings())
def test_each_side_is_rounded_to_the_nearest_multiple_or_the_shape_is_refused(
    shape: tuple[int, int], sizing: Sizing
) -> None:
    multiple, longest = sizing.multiple, 2 * sizing.long_side // sizing.multiple
    if max(shape) > longest * min(shape):
        with pytest.raises(BadImageError, match=f"shapes up to {longest}:1 work"):
            output_size(*shape, sizing)
        return
    made = output_size(*shape, sizing)
    assert all(side % multiple == 0 and multiple <= side <= sizing.long_side for side in made)
    assert (made[0] >= made[1]) == (shape[0] >= shape[1]) or made[0] == made[1]
    # Some image of the shape that was sent is, on each side, within half a multiple of what is made.
    most = min((side + multiple / 2) / sent for side, sent in zip(made, shape, strict=True))
    least = max((side - multiple / 2) / sent for side, sent in zip(made, shape, strict=True))
    assert least <= most * (1 + 1e-9)


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [((5000, 100), "(50:1)"), ((100, 5000), "(1:50)"), ((3201, 100), "(32.1:1)"), ((1, 10**6), "(1:1000000)")],
)
def test_a_shape_that_would_be_stretched_is_refused_with_those_that_work(shape: tuple[int, int], ratio: str) -> None:
    with pytest.raises(BadImageError) as refused:
        output_size(*shape, Sizing(short_side=256, long_side=512, multiple=32))
    assert str(refused.value) == (
        f"This image is {shape[0]} x {shape[1]} {ratio}; with a short side of 256 and a long side of 512 pixels, "
        "shapes up to 32:1 work. Crop it or add borders."
    )


def test_reading_headers_imports_neither_torch_nor_a_codec() -> None:
    code = (
        "import sys; import workers.engine.header, workers.engine.config, workers.engine.contract; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'cv2', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_pillow_reads_the_same_sizes() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WebP"):
        for _ in range(20):
            size = (int(rng.integers(1, 300)), int(rng.integers(1, 300)))
            header = read_header(file_of(Image.new("RGB", size), kind))
            assert (header.width, header.height) == size
