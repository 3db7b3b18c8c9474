"""PNG files of every depth and type of colour are shown as the specification and a browser show them on white."""

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.page.visiting import CHROMIUM, chromium
from tests.workers.engine.images import ADAM7, png
from workers.engine import codec
from workers.engine.contract import BadImageError
from workers.engine.formats import essential

Samples: TypeAlias = NDArray[np.uint16]  # [height, width, channels]

WIDTH, HEIGHT = 23, 17
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(depth, 0) for depth in (1, 2, 4, 8, 16)] + [(depth, 3) for depth in (1, 2, 4, 8)]
KINDS += [(depth, colour) for colour in (2, 4, 6) for depth in (8, 16)]
THREE = struct.pack(">H", 3)  # of the values 0 to 7
PALETTE = bytes(range(100, 124))


def samples_of(depth: int, colour: int) -> Samples:
    """Random ones; many pixels of RGB and grey are equal, or equal but for a low byte."""
    rng = np.random.default_rng(depth + 100 * colour)
    samples = rng.integers(0, 1 << depth, (HEIGHT, WIDTH, CHANNELS[colour]), np.uint16)
    common = samples[0, 0].copy()
    samples[rng.random((HEIGHT, WIDTH)) < 0.3] = common
    samples[rng.random((HEIGHT, WIDTH)) < 0.2] ^= 1
    samples[0, 0] = common
    return samples


def file_of(samples: Samples, depth: int, colour: int, interlaced: bool, transparent: bytes | None) -> bytes:
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(packed(samples[y::down, x::across], depth) for x, y, across, down in passes)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    others = [(b"PLTE", palette(depth).tobytes())] * (colour == 3)
    others += [(b"tRNS", transparent)] if transparent is not None else []
    return png(header, zlib.compress(rows), *others)


def packed(samples: Samples, depth: int) -> bytes:
    """Rows, each after a byte that says that it is not filtered."""
    values = samples.reshape(len(samples), -1)
    if not values.size:
        return b""
    if depth < 8:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -depth:]
        rows = np.packbits(bits.reshape(len(values), -1), axis=1)
    else:
        rows = values.astype(f">u{depth // 8}").view(np.uint8)
    return np.hstack([np.zeros((len(rows), 1), np.uint8), rows]).tobytes()


def palette(depth: int) -> NDArray[np.uint8]:
    return np.random.default_rng(depth).integers(0, 256, (1 << depth, 3), np.uint8)


def transparency_of(samples: Samples, depth: int, colour: int) -> bytes | None:
    if colour == 3:
        return np.random.default_rng(0).integers(0, 256, (1 << depth) - 1, np.uint8).tobytes()
    return bytes(samples[0, 0].astype(">u2").tobytes()) if colour in {0, 2} else None


def expected(samples: Samples, depth: int, colour: int, transparent: bytes | None) -> NDArray[np.float64]:
    """By the specification: samples to 8 bits, alpha from the samples as they are, on white."""
    scaled = samples / 257 if depth == 16 else samples * (255 / ((1 << depth) - 1))
    alpha = np.ones(samples.shape[:2])
    if colour == 3:
        scaled = palette(depth)[samples[..., 0]].astype(np.float64)
        of_index = np.full(1 << depth, 255)
        of_index[: len(transparent or b"")] = list(transparent or b"")
        alpha = of_index[samples[..., 0]] / 255
    elif colour in {4, 6}:
        alpha, scaled = scaled[..., -1] / 255, scaled[..., :-1]
    elif transparent is not None:
        alpha = 1.0 - (samples == np.frombuffer(transparent, ">u2")).all(axis=2)
    colours = np.broadcast_to(scaled, (HEIGHT, WIDTH, 3))
    return np.asarray(colours * alpha[..., None] + 255 * (1 - alpha[..., None]))


def cases() -> Iterator[tuple[str, bytes, NDArray[np.float64]]]:
    for depth, colour in KINDS:
        samples = samples_of(depth, colour)
        transparent = transparency_of(samples, depth, colour)
        for interlaced in (False, True):
            for of_file in dict.fromkeys((None, transparent)):
                name = f"{depth} bits, type {colour}" + ", interlaced" * interlaced + ", tRNS" * (of_file is not None)
                data = file_of(samples, depth, colour, interlaced, of_file)
                yield name, data, expected(samples, depth, colour, of_file)


CASES = {name: (data, pixels) for name, data, pixels in cases()}


@pytest.mark.parametrize(("data", "pixels"), CASES.values(), ids=CASES.keys())
def test_an_image_is_what_its_samples_say_on_white(data: bytes, pixels: NDArray[np.float64]) -> None:
    assert np.abs(codec.decode(data) - pixels).max() <= 2  # 16 bits lose the low byte, and so does their alpha


def test_among_the_cases_are_colours_that_differ_in_a_low_byte_alone() -> None:
    samples = samples_of(16, 2)
    high = (samples >> 8 == samples[0, 0] >> 8).all(axis=2)
    assert 0 < (samples == samples[0, 0]).all(axis=2).sum() < high.sum()


def greys(*others: tuple[bytes, bytes], colour: int = 0, bad: bytes = b"") -> bytes:
    """Two rows of the greys 0 to 7, or of these entries of the palette."""
    rows = (b"\0" + bytes(range(8))) * 2
    return png(struct.pack(">IIBBBBB", 8, 2, 8, colour, 0, 0, 0), zlib.compress(rows), *others, bad=bad)


def after_the_pixels(data: bytes) -> bytes:
    """The same file with its first tRNS chunk moved there."""
    at = data.index(b"tRNS") - 4
    length = 12 + int.from_bytes(data[at : at + 4], "big")
    return data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:]


SEEN, WITHOUT_3 = [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 255, 4, 5, 6, 7]
COLOURS = list(PALETTE[::3])
# What a browser makes of odd chunks: the reds of a row.
ODD: dict[str, tuple[bytes, list[int]]] = {
    "a transparent grey": (greys((b"tRNS", THREE)), WITHOUT_3),
    "its high byte is not 0": (greys((b"tRNS", b"\1\3")), WITHOUT_3),
    "its checksum is wrong": (greys((b"tRNS", THREE), bad=b"tRNS"), SEEN),
    "it is too short": (greys((b"tRNS", b"\3")), SEEN),
    "it is too long": (greys((b"tRNS", THREE + b"\0\0")), WITHOUT_3),
    "there are two": (greys((b"tRNS", THREE), (b"tRNS", b"\0\5")), WITHOUT_3),
    "it comes after the pixels": (after_the_pixels(greys((b"tRNS", THREE))), SEEN),
    "it comes before the palette": (greys((b"tRNS", b"\0\xff"), (b"PLTE", PALETTE), colour=3), COLOURS),
    "it comes after the palette": (greys((b"PLTE", PALETTE), (b"tRNS", b"\0\xff"), colour=3), [255, *COLOURS[1:]]),
    "a text has a wrong checksum": (greys((b"tEXt", b"a\0b"), bad=b"tEXt"), SEEN),
    "the resolution has a wrong checksum": (greys((b"pHYs", bytes(9)), bad=b"pHYs"), SEEN),
    "an unknown chunk has a wrong checksum": (greys((b"juNk", bytes(9)), bad=b"juNk"), SEEN),
    "the profile is none": (greys((b"iCCP", b"junkjunk")), SEEN),
    "the pixels have a wrong checksum": (greys(bad=b"IDAT"), SEEN),
    "there is no end": (greys()[:-12], SEEN),
}


@pytest.mark.parametrize(("data", "reds"), ODD.values(), ids=ODD.keys())
def test_odd_chunks_are_read_as_a_browser_reads_them(data: bytes, reds: list[int]) -> None:
    assert codec.decode(data)[:, :, 0].tolist() == [reds, reds]


def test_a_palette_with_a_wrong_checksum_is_refused() -> None:
    with pytest.raises(BadImageError, match="damaged"):
        codec.decode(greys((b"PLTE", PALETTE), colour=3, bad=b"PLTE"))


def test_chunks_that_the_pixels_do_not_need_are_left_out() -> None:
    needed = greys((b"PLTE", PALETTE), (b"tRNS", b"\0\xff"), colour=3)
    others = ((b"tEXt", b"a\0b"), (b"PLTE", PALETTE), (b"pHYs", bytes(9)), (b"tRNS", b"\0\xff"), (b"juNk", b""))
    assert essential(greys(*others, colour=3)) == needed == essential(needed)


# Decodes each file and draws it on white; null where the browser shows no image.
DRAW = """files => Promise.all(files.map(async file => {
    const image = new Image();
    image.src = "data:image/png;base64," + file;
    try { await image.decode(); } catch { return null; }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, Array.from(pixels)];
}))"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_all_of_them_are_what_chromium_shows() -> None:
    files = {name: data for name, (data, _) in [*CASES.items(), *ODD.items()]}
    with chromium() as browser:
        page = browser.new_page()
        shown: list[Any] = page.evaluate(DRAW, [base64.b64encode(data).decode() for data in files.values()])
    for (name, data), (height, width, pixels) in zip(files.items(), shown, strict=True):
        drawn = np.array(pixels).reshape(height, width, 4)[:, :, :3]
        assert np.abs(codec.decode(data) - drawn).max() <= 2, name
