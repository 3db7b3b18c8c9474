"""JPEG files that lack their end marker, or use arithmetic coding, are read; those that lack pixels are refused."""

import base64
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.fuzz import seeds
from tests.workers.engine.images import noise
from workers.engine import codec, formats
from workers.engine.contract import BadImageError

file_of = partial(seeds.file_of, kind="JPEG", quality=90)
GRADIENT = Image.linear_gradient("L").resize((40, 28))
WHOLE = {
    "noise": file_of(noise("RGB", 21, 19)),
    "noise, progressive": file_of(noise("RGB", 21, 19), progressive=True),
    "noise, restarts": file_of(noise("RGB", 37, 19), restart_marker_blocks=1),
    "one colour": file_of(Image.new("RGB", (48, 48), (200, 30, 60))),
    "one colour, progressive": file_of(Image.new("RGB", (48, 48), (200, 30, 60)), progressive=True),
    "one colour, restarts": file_of(Image.new("L", (96, 96), 77), restart_marker_blocks=1),
    "a gradient of grey": file_of(GRADIENT, optimize=True),
    "a gradient of grey, progressive": file_of(GRADIENT, progressive=True),
    "CMYK": file_of(Image.new("CMYK", (24, 24), (10, 20, 30, 40))),
}


@pytest.mark.parametrize("missing", [1, 2], ids=["half", "whole"])
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_a_file_without_its_end_marker_is_read(data: bytes, missing: int) -> None:
    assert np.array_equal(codec.decode(data[:-missing]), codec.decode(data))


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_wherever_a_file_is_cut_it_is_refused_or_nothing_is_missing(data: bytes) -> None:
    whole, taken = codec.decode(data), []
    for length in range(len(data)):
        try:
            pixels = codec.decode(data[:length])
        except BadImageError:
            continue
        assert np.array_equal(pixels, whole)
        taken.append(length)
    # Of the last byte, that is bits which fill it up alone may be missing.
    assert taken[-2:] == [len(data) - 2, len(data) - 1]
    assert len(taken) <= 3


BETWEEN = {"bytes": b"\0\0\0", "no length": b"\xff\xfe\0\0", "a length of 1": b"\xff\xfe\0\1"}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_bytes_between_segments_are_skipped_as_in_browsers(data: bytes, between: bytes) -> None:
    at = data.index(b"\xff\xdb")
    assert np.array_equal(codec.decode(data[:at] + between + data[at:]), codec.decode(data))


def test_a_file_cut_between_two_scans_lacks_some() -> None:
    data = WHOLE["noise, progressive"]
    starts = [at for at in range(len(data)) if data[at : at + 2] == formats.START_OF_SCAN]
    assert [formats.has_all_scans(data[:at]) for at in (*starts, len(data))] == [False] * len(starts) + [True]


def test_scans_that_claim_too_much_bring_no_more_than_a_file_can_have() -> None:
    frame = b"\xff\xc0" + struct.pack(">HBHHB3B", 11, 8, 8, 8, 1, 1, 0x11, 0)
    many = b"\xff\xda" + struct.pack(">HB", 65_534, 255) + bytes((1, 0)) * 32_764 + b"\0\xff\0"
    assert formats.has_all_scans(b"\xff\xd8" + frame + many * 90)


def test_the_restart_that_comes_next_is_that_of_the_last_scan() -> None:
    assert formats.next_restart(b"\xff\xd5\xff\xda ab") == b"\xff\xd0"
    assert formats.next_restart(b"\xff\xda a \xff\xd0 b \xff\xd1 c") == b"\xff\xd2"
    assert formats.next_restart(b"\xff\xda a \xff\xd6 b \xff\xd7 c") == b"\xff\xd0"


# 32 x 16 pixels, red and blue, written by libjpeg-turbo: neither Pillow nor OpenCV writes this coding.
START = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYUGBIU"
    "FRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/"
)
ARITHMETIC = {
    "sequential": "yQARCAAQACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANlLDFuAlRPppY4TrhaA/9k=",
    "progressive": (
        "ygARCAAQACADASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8AsqwHNSZ9vY0jjyqA/8wABBAF/9oACAEBAAEFAsD/zAAEEQX/2gAIAQMBAT8B"
        "wP/MAAQRBf/aAAgBAgEBPwHA/8wABBAF/9oACAEBAAY/AsD/zAAEEAX/2gAIAQEAAT8hwP/aAAwDAQACAAMAAAAQ/VD/zAAEEQX/2gAIAQMBAT8QwP/M"
        "AAQRBf/aAAgBAgEBPxDA/8wABBAF/9oACAEBAAE/EMD/2Q=="
    ),
}


@pytest.mark.parametrize("data", ARITHMETIC.values(), ids=ARITHMETIC.keys())
def test_arithmetic_coding_is_read(data: str) -> None:
    pixels = codec.decode(base64.b64decode(START + data))
    assert pixels.shape == (16, 32, 3)
    assert pixels[:, :15].astype(int) == pytest.approx(np.full((16, 15, 3), (255, 0, 0)), abs=3)
    assert pixels[:, 17:].astype(int) == pytest.approx(np.full((16, 15, 3), (0, 0, 255)), abs=3)
