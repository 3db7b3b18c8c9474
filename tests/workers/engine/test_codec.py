import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.fuzz.seeds import file_of
from tests.workers.engine.images import animation, png
from workers.engine import codec, formats
from workers.engine.codec import Pixels
from workers.engine.config import Canny, Output
from workers.engine.contract import BadImageError, Format
from workers.engine.formats import essential
from workers.engine.header import jpeg_scale, read_header

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PHOTOGRAPH = Path(__file__).parents[3] / "example/demo_model/photographs/portrait.jpg"


def colours() -> Image.Image:
    """Four blocks of colour, so that every flip and turn shows."""
    image = Image.new("RGB", (48, 32), WHITE)
    for box, colour in (((0, 0, 24, 16), RED), ((24, 0, 48, 16), GREEN), ((0, 16, 24, 32), BLUE)):
        image.paste(colour, box)
    return image


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    pixels = codec.decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    return tuple(int(value) for value in pixels[y, x])


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_colours_survive(kind: str) -> None:
    options = {"lossless": True} if kind == "WebP" else {}
    assert np.array_equal(codec.decode(file_of(colours(), kind, **options)), np.asarray(colours()))


def test_a_memoryview_will_do() -> None:
    assert codec.decode(memoryview(file_of(colours()))).shape == (32, 48, 3)


def test_jpeg_colours_nearly_survive() -> None:
    assert pixel(file_of(colours(), "JPEG", quality=95), 5, 5) == pytest.approx(RED, abs=6)


def test_grey_becomes_rgb() -> None:
    assert pixel(file_of(Image.new("L", (8, 8), 90))) == (90, 90, 90)
    assert pixel(file_of(Image.new("1", (8, 8), 1))) == WHITE
    assert pixel(file_of(Image.new("L", (8, 8), 90), "JPEG")) == (90, 90, 90)


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    assert pixel(file_of(Image.fromarray(np.full((8, 8), 0x8040, np.uint16)))) == (0x80,) * 3


def test_sixteen_bit_grey_may_have_a_transparent_value() -> None:
    data = file_of(Image.fromarray(np.full((8, 8), 0x8040, np.uint16)))
    body = b"tRNS" + struct.pack(">H", 0x8040)
    chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    assert pixel(data[:33] + chunk + data[33:]) == WHITE


def test_sixteen_bit_colour_keeps_its_upper_byte() -> None:
    bgr = np.full((8, 8, 3), (0x1020, 0x3040, 0x5060), np.uint16)
    assert pixel(cv2.imencode(".png", bgr)[1].tobytes()) == (0x50, 0x30, 0x10)


@pytest.mark.parametrize(("alpha", "expected"), [(255, RED), (0, WHITE), (128, (255, 127, 127))])
def test_alpha_is_composited_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (8, 8), (*RED, alpha))
    assert pixel(file_of(image)) == pytest.approx(expected, abs=1)
    assert pixel(file_of(image, "WebP", lossless=True, exact=True)) == pytest.approx(expected, abs=1)


def test_grey_with_alpha_is_composited_on_white() -> None:
    assert pixel(file_of(Image.new("LA", (8, 8), (0, 0)))) == WHITE


def test_a_palette_is_looked_up() -> None:
    assert pixel(file_of(colours().quantize(4)), 30, 5) == GREEN


def test_a_palettes_transparent_entries_are_composited_on_white() -> None:
    image = colours().quantize(4)
    index = image.getpixel((0, 0))
    data = file_of(image, transparency=index)
    assert pixel(data) == WHITE
    assert pixel(data, 30, 5) == GREEN


def test_a_transparent_colour_is_composited_on_white() -> None:
    data = file_of(colours(), transparency=RED)
    assert pixel(data) == WHITE
    assert pixel(data, 30, 5) == GREEN


def test_the_range_of_alpha_is_told_whatever_the_file() -> None:
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    spotted = clear.copy()
    spotted.putpixel((7, 7), (0, 0, 0, 77))
    red = Image.new("RGB", (8, 8), RED)
    palette = file_of(red.quantize(2), transparency=red.quantize(2).getpixel((0, 0)))
    for data in (file_of(clear), file_of(clear, "WebP", lossless=True), file_of(clear.convert("LA")), palette):
        assert codec.alpha_range(data) == (0, 0)
    for data in (file_of(spotted), file_of(spotted, "WebP", lossless=True)):
        assert codec.alpha_range(data) == (0, 77)
    deep = file_of(Image.fromarray(np.zeros((8, 8), np.uint16)))
    for data in (file_of(colours()), file_of(colours(), "JPEG"), file_of(colours(), "WebP"), deep):
        assert codec.alpha_range(data) == (255, 255)
    with pytest.raises(BadImageError, match="damaged"):
        codec.alpha_range(file_of(clear)[:45])


def test_cmyk_becomes_rgb() -> None:
    data = file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert pixel(data) == pytest.approx(RED, abs=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 100}, "WebP": {"lossless": True}}
    data = file_of(colours(), kind, exif=exif.tobytes(), **options[kind])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(codec.decode(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WebP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert pixel(data) == RED


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = file_of(noise, kind)
    with pytest.raises(BadImageError):
        codec.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"hello", file_of(Image.new("P", (8, 8)), "GIF"), b"<svg/>", b"BM" + bytes(60)])
def test_files_that_are_not_images_are_refused(data: bytes) -> None:
    with pytest.raises(BadImageError):
        codec.decode(data)


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_huge_declared_size_is_refused_before_it_is_allocated(side: int) -> None:
    good = file_of(Image.new("RGB", (1, 1)))
    with pytest.raises(BadImageError, match="too large"):
        codec.decode(good[:16] + struct.pack(">II", side, side) + good[24:])


def test_a_long_thin_webp_is_refused_before_it_is_decoded() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    data = file_of(frames[0], "WebP", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match="too large: 13697032 x 8"):
        codec.decode(data[:24] + (13_697_032 - 1).to_bytes(3, "little") + data[27:])


def test_a_jpeg_that_goes_over_its_pixels_a_thousand_times_is_refused() -> None:
    data = file_of(Image.new("L", (1500, 1500), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert codec.decode(data[:last] + data[last:-2] * 10 + data[-2:]).shape == (1500, 1500, 3)
    with pytest.raises(BadImageError, match=r"too many scans \(1005\)"):
        codec.decode(data[:last] + data[last:-2] * 1000 + data[-2:])


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_several_bands_is_what_it_is_in_one(orientation: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 2200, 4), np.uint8)
    image = Image.fromarray(np.repeat(noise, 70, axis=0))  # 4.6 million pixels
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    turned = expected.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else expected
    data = file_of(image, compress_level=1, exif=exif.tobytes())
    assert np.array_equal(codec.decode(data), np.asarray(turned))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says so when EXIF or APNG chunks are damaged
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WebP"]), st.data())
def test_whatever_is_damaged_it_answers_or_refuses(kind: str, draw: st.DataObject) -> None:
    data = bytearray(file_of(colours(), kind))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(BadImageError):
        assert codec.decode(bytes(data)).shape[2] == 3


def test_resizing_is_lanczos_up_and_area_down() -> None:
    small = np.asarray(colours())
    up = codec.resize(small, 96, 64)
    assert np.array_equal(up, cv2.resize(small, (96, 64), interpolation=cv2.INTER_LANCZOS4))
    assert np.array_equal(codec.resize(up, 24, 16), cv2.resize(up, (24, 16), interpolation=cv2.INTER_AREA))
    assert codec.resize(small, 48, 32) is small


def test_edges_are_where_colours_meet() -> None:
    edges = codec.edges(np.asarray(colours()), Canny())
    assert edges.shape == (32, 48)
    assert set(np.unique(edges)) == {0, 255}
    assert edges[8, 22:26].any()
    assert not edges[8, 5:15].any()


def test_edges_obey_their_thresholds() -> None:
    faint: Pixels = np.full((32, 32, 3), 100, np.uint8)
    faint[:, 16:] = 115
    assert not codec.edges(faint, Canny()).any()
    assert codec.edges(faint, Canny(low=10, high=20)).any()


@pytest.mark.parametrize("contrast", [0.3, 1.0, 2.0])
def test_automatic_thresholds_find_a_usual_share_of_edges(contrast: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (256, 256, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    image = np.clip(128 + 60 * contrast * soft / soft.std(), 0, 255).astype(np.uint8)
    fixed, found = (np.mean(codec.edges(image, Canny(auto=auto)) > 0) for auto in (False, True))
    least, most = codec.DENSITY

    assert 0.9 * least <= found <= 1.1 * most
    assert (fixed == found) == (least <= fixed <= most)


@pytest.mark.parametrize("contrast", [0.15, 0.25, 1.0])
def test_thresholds_that_a_photograph_gets_find_the_same_edges_when_they_are_named(contrast: float) -> None:
    image = (codec.decode_to(PHOTOGRAPH.read_bytes(), 256, 256) * contrast).astype(np.uint8)
    found, (low, high) = codec.edges_and_thresholds(image, Canny(auto=True))

    assert np.array_equal(found, codec.edges(image, Canny(low=low, high=high)))
    assert np.array_equal(found, codec.edges(image, Canny(auto=True)))
    assert codec.DENSITY[0] <= np.mean(found > 0) <= codec.DENSITY[1]
    assert ((low, high) == (100, 200)) == (contrast == 1)


def test_automatic_thresholds_find_nothing_where_there_is_nothing() -> None:
    blank = np.full((64, 64, 3), 128, np.uint8)
    found, thresholds = codec.edges_and_thresholds(blank, Canny(auto=True))
    assert not found.any()
    assert thresholds == (100, 200)


def test_automatic_thresholds_stay_in_their_range() -> None:
    _, (low, high) = codec.edges_and_thresholds(noise(64, 64), Canny(low=1, high=2000, auto=True))
    assert 1 <= low <= high <= 2000


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("deflate", [formats.deflate, zlib.compress], ids=["installed", "zlib"])
@pytest.mark.parametrize("pixels", [np.asarray(colours()), noise(1, 1), noise(33, 47)[:, ::-1]], ids=lambda each: "")
def test_a_png_comes_back_as_it_was(pixels: Pixels, deflate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "deflate", deflate)
    file = codec.encode(pixels, Output(format="png"))
    with Image.open(BytesIO(file)) as image:
        image.verify()
    assert np.array_equal(codec.decode(file), pixels)
    by_opencv = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert by_opencv is not None
    assert np.array_equal(by_opencv, pixels)


@pytest.mark.parametrize(("kind", "mark"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_a_files_quality_is_obeyed(kind: Format, mark: bytes) -> None:
    best, worst = (codec.encode(noise(64, 64), Output(quality=50), kind, quality) for quality in (95, 10))
    assert best.startswith(mark)
    assert len(best) > 2 * len(worst)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize("size", [(24, 40), (40, 56), (80, 128)])
def test_decoding_to_a_size_is_decoding_and_resizing(kind: str, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(colours(), kind, exif=exif.tobytes())
    decoded, expected = codec.decode_to(data, *size), codec.resize(codec.decode(data), *size)
    assert decoded.flags.c_contiguous
    # A rotated image is scaled before it is turned, and interpolation rounds differently from the other side.
    assert np.abs(decoded.astype(int) - expected).max() <= (0 if orientation == 1 else 1)


def test_a_jpeg_decoded_at_reduced_size_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (20, 30, 3), np.uint8), (1200, 800), interpolation=cv2.INTER_CUBIC)
    data = file_of(Image.fromarray(smooth), "JPEG", quality=95)
    for size in ((600, 400), (288, 192), (150, 100)):
        difference = codec.decode_to(data, *size).astype(int) - codec.resize(codec.decode(data), *size)
        assert np.abs(difference).max() <= 6
        assert np.abs(difference).mean() < 0.5


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300), st.integers(1, 300), st.integers(1, 8))
def test_a_jpeg_is_reduced_as_the_header_says(width: int, height: int, to: int, by: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.new("L", (width, height)), "JPEG", exif=exif.tobytes())
    header = read_header(data)
    size = (by, to) if orientation >= 5 else (to, by)
    image = codec._loaded(codec._open_jpeg(data, header), header, (to, by))
    scale = jpeg_scale(header, size)
    assert image.size == (-(-width // scale), -(-height // scale))
    assert image.size[0] >= min(to, width)
    assert image.size[1] >= min(by, height)


def test_an_animation_of_small_frames_is_on_white() -> None:
    frames = [Image.new("RGBA", (64, 48), (0, 0, 0, 0)) for _ in range(2)]
    frames[0].paste(RED, (20, 10, 30, 20))
    frames[1].paste(BLUE, (0, 0, 64, 48))
    data = file_of(frames[0], "WebP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    assert pixel(data, 25, 15) == RED
    assert pixel(data, 0, 0) == pixel(data, 63, 47) == WHITE


def test_a_frame_that_does_not_fit_is_refused() -> None:
    data = animation(64, 64, b"")
    assert codec.decode(data).shape == (64, 64, 3)
    at = data.index(b"ANMF") + 8
    for changed in (data[:at] + b"\x02" + data[at + 1 :], data[:at], data[: at + 10]):
        with pytest.raises(BadImageError):
            codec.decode(changed)


def test_texts_of_a_png_are_not_decompressed() -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    bomb = b"key\0\0" + zlib.compress(bytes(2**26))
    texts = [(b"zTXt", bomb), (b"iCCP", bomb), (b"iTXt", b"key\0\1\0\0\0" + bomb[5:])]
    data = png(header, zlib.compress(bytes(8 * 9)), *texts)
    assert pixel(data) == (0, 0, 0)
    assert essential(data) == png(header, zlib.compress(bytes(8 * 9)))


def test_the_smallest_webp_is_decoded() -> None:
    """28 bytes: one black pixel, all of whose codes have one symbol."""
    data = b"RIFF\x14\0\0\0WEBPVP8L\x08\0\0\0" + bytes.fromhex("2f00000000888808")
    assert (len(data), codec.decode(data).tolist()) == (28, [[[0, 0, 0]]])


def test_a_damaged_webp_leaves_no_trace_on_the_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (b"RIFF\x14\0\0\0WEBPVP8L\x08\0\0\0", file_of(colours(), "WebP")[:60]):
        with pytest.raises(BadImageError):
            codec.decode(data + bytes(20))
    assert capfd.readouterr().err == ""


def test_a_film_behind_a_photograph_is_no_part_of_it() -> None:
    """Phones append one: in millions of bytes, any two come often."""
    photograph = codec.encode(np.full((3000, 4000, 3), 90, np.uint8), Output(format="jpeg"))
    film = np.random.default_rng(1).integers(0, 256, 16 * 2**20, np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 200
    assert formats.jpeg_scans(photograph + film) == 1
    assert np.array_equal(codec.decode_to(photograph + film, 512, 384), codec.decode_to(photograph, 512, 384))


@pytest.mark.parametrize(
    "hidden", [b"\xff\xfe\x00\x06\xff\xd9\xff\xd9", b"\xff\xfe\x00\x04\xff\xd9", b"\xff\xff\xff\x01"]
)
def test_an_end_in_a_comment_hides_no_scans(hidden: bytes) -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    file = BytesIO()
    image.save(file, "JPEG", progressive=True)
    data = file.getvalue()
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    scans = formats.jpeg_scans(data)
    assert formats.jpeg_scans(data[:second] + hidden + data[second:]) == scans == data.count(b"\xff\xda")
