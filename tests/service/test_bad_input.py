"""Odd images, odd JSON and odd prompts: each has its answer, costs no worker, and memory stays within bounds."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fuzz.seeds import file_of, frames, gradient, png, png_chunk
from tests.service.running import Pixels, Service, good_request, result_pixels

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def colours() -> Image.Image:
    """Red, green, blue and white quarters, 48 x 32, so that every flip and turn shows."""
    image = Image.new("RGB", (48, 32), WHITE)
    for box, colour in (((0, 0, 24, 16), RED), ((24, 0, 48, 16), GREEN), ((0, 16, 24, 32), BLUE)):
        image.paste(colour, box)
    return image


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(colours(), kind, exif=exif.tobytes(), quality=100)


def half_clear(kind: str) -> bytes:
    """Red on the left; on the right a green that nobody sees."""
    image = Image.new("RGBA", (48, 32), (*RED, 255))
    image.paste((*GREEN, 0), (24, 0, 48, 32))
    return file_of(image, kind, lossless=True)


def clear_palette() -> bytes:
    image = Image.new("P", (48, 32), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (24, 0, 48, 32))
    return file_of(image, "PNG", transparency=bytes([255, 0]))


def sixteen_bit_grey() -> bytes:
    return file_of(Image.fromarray(np.full((32, 48), 0x80FF, np.uint16)), "PNG")


def animation(kind: str) -> bytes:
    others = [Image.new("RGB", (48, 32), colour) for colour in (GREEN, BLUE)]
    options: dict[str, Any] = {"save_all": True, "append_images": others, "duration": 50}
    return file_of(Image.new("RGB", (48, 32), RED), kind, lossless=True, **options)


# What is sent; the colours that must come back at (5, 5) and (40, 5), and the size.
TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int, int], tuple[int, int, int], tuple[int, int]]] = {
    "alpha is composited on white": (lambda: half_clear("PNG"), RED, WHITE, (48, 32)),
    "alpha of WebP too": (lambda: half_clear("WEBP"), RED, WHITE, (48, 32)),
    "a palette with alpha": (clear_palette, RED, WHITE, (48, 32)),
    "16 bits of grey become 8": (sixteen_bit_grey, (128, 128, 128), (128, 128, 128), (48, 32)),
    "CMYK becomes RGB": (
        lambda: file_of(Image.new("CMYK", (48, 32), (0, 255, 255, 0)), "JPEG", quality=100),
        RED,
        RED,
        (48, 32),
    ),
    "an animated PNG is its first frame": (lambda: animation("PNG"), RED, RED, (48, 32)),
    "an animated WebP is its first frame": (lambda: animation("WEBP"), RED, RED, (48, 32)),
    "EXIF 3 is upside down": (lambda: turned("JPEG", 3), WHITE, BLUE, (48, 32)),
    "EXIF 6 is turned to the right": (lambda: turned("JPEG", 6), BLUE, RED, (32, 48)),
    "EXIF 8 of a PNG is turned to the left": (lambda: turned("PNG", 8), GREEN, WHITE, (32, 48)),
    "an image of one pixel": (lambda: file_of(Image.new("RGB", (1, 1), RED), "PNG"), RED, RED, (1, 1)),
    "a PNG called a JPEG": (lambda: file_of(colours(), "PNG"), RED, GREEN, (48, 32)),
}


@pytest.mark.parametrize(("make", "left", "right", "size"), TAKEN.values(), ids=TAKEN.keys())
def test_an_odd_image_is_taken_for_what_a_viewer_shows(
    echo: Service,
    make: Callable[[], bytes],
    left: tuple[int, int, int],
    right: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    # What a data URL says of the type is not believed.
    answer = echo.generate(input_image_base64="data:image/jpeg;base64," + encoded(make()))
    pixels = result_pixels(answer)
    assert (pixels.shape[1], pixels.shape[0]) == size
    assert at(pixels, 5, 5) == pytest.approx(left, abs=8)
    assert at(pixels, 40, 5) == pytest.approx(right, abs=8)


def at(pixels: Pixels, x: int, y: int) -> list[int]:
    """The colour at a place, or at the end of the image if that is before it."""
    height, width = pixels.shape[:2]
    return [int(value) for value in pixels[min(y, height - 1), min(x, width - 1)]]


def claiming(width: int, height: int, kind: str) -> bytes:
    """A good small file whose header claims another size."""
    data = file_of(gradient(), kind, **(frames() if kind == "WEBP" else {}))
    if kind == "PNG":
        return data[:16] + struct.pack(">II", width, height) + data[24:]
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0")
        return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    return data[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[30:]


def after_the_frame(padding: bytes) -> bytes:
    data = file_of(gradient(), "JPEG")
    scan = data.index(b"\xff\xda")
    return data[:scan] + padding + data[scan:]


def scanned(times: int) -> bytes:
    data = file_of(Image.new("L", (990, 990), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


def refused_images() -> Iterator[tuple[str, bytes, int]]:
    for kind in ("PNG", "JPEG", "WEBP"):
        yield f"a {kind} bomb of 60,000 x 60,000", claiming(60_000, 60_000, kind), 413
        yield f"a {kind} just over the limit", claiming(1001, 1000, kind), 413
        yield f"a {kind} cut in its header", file_of(gradient(), kind)[:22], 422
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        yield f"a {kind} cut in its pixels", file_of(noise, kind)[:-100], 422
    yield "a PNG of no width", claiming(0, 16, "PNG"), 422
    yield "a JPEG of no height", claiming(16, 0, "JPEG"), 422
    yield "a PNG that says more than it has", claiming(1000, 1000, "PNG"), 422
    yield "a PNG of 1.3 million chunks", png(8, 2)[:33] + png_chunk(b"teSt", b"") * 1_300_000 + png(8, 2)[33:], 422
    yield "a JPEG of a million comments", after_the_frame(b"\xff\xfe\0\x02" * 1_000_000), 422
    yield "a JPEG of four million fill bytes", after_the_frame(b"\xff" * 4_000_000), 422
    yield "a JPEG of 1,000 scans", scanned(1000), 422
    yield "an animated GIF", file_of(gradient(), "GIF", **frames()), 422
    yield "a BMP", file_of(gradient(), "BMP"), 422
    yield "a TIFF", file_of(gradient(), "TIFF"), 422
    yield "a PDF", b"%PDF-1.7\n" + bytes(100), 422
    yield "nothing", b"", 422


@pytest.mark.parametrize(
    ("data", "status"), [case[1:] for case in refused_images()], ids=[c[0] for c in refused_images()]
)
def test_an_image_that_cannot_be_taken_is_refused_by_name(echo: Service, data: bytes, status: int) -> None:
    answer = echo.generate(input_image_base64=encoded(data))
    check(answer, status, "too-large" if status == 413 else "invalid-image", "input_image_base64")


def sent(service: Service, body: bytes) -> httpx.Response:
    """The answer to a body of JSON that no library would write."""
    return service.client.post("/generation/", content=body, headers={"Content-Type": "application/json"})


def check(answer: httpx.Response, status: int, problem: str, field: str | None = None) -> None:
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:contour:problem:{problem}"), answer.text
    assert [error["field"] for error in answer.json().get("errors", [])] == ([field] if field else [])


def with_more(more: bytes) -> bytes:
    """A good body with something put before its fields."""
    return b"{" + more + b"," + json.dumps(good_request()).encode()[1:]


REFUSED_BODIES = {
    "NaN": (with_more(b'"x": NaN'), 400, "malformed-json", None),
    "Infinity": (with_more(b'"x": -Infinity'), 400, "malformed-json", None),
    "a number with a leading zero": (with_more(b'"x": 01'), 400, "malformed-json", None),
    "a comma at the end": (json.dumps(good_request()).encode()[:-1] + b",}", 400, "malformed-json", None),
    "a comment": (with_more(b'/* no */ "x": 1'), 400, "malformed-json", None),
    "single quotes": (b"{'text': 'a'}", 400, "malformed-json", None),
    "a bare tab in a string": (with_more(b'"x": "\t"'), 400, "malformed-json", None),
    "deep nesting in a field that is ignored": (
        with_more(b'"x": ' + b"[" * 50_000 + b"]" * 50_000), 400, "malformed-json", None
    ),
    "deep nesting in the image": (
        with_more(b'"input_image_base64": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000), 400, "malformed-json", None
    ),
    "invalid UTF-8 in the prompt": (b'{"text": "\xff\xfe"}', 400, "malformed-json", None),
    "an overlong slash in the prompt": (b'{"text": "\xc0\xaf"}', 400, "malformed-json", None),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', 400, "malformed-json", None),
    "half a surrogate": (b'{"text": "\\udc00"}', 400, "malformed-json", None),
    "UTF-16": (json.dumps(good_request()).encode("utf-16"), 400, "malformed-json", None),
    "two bodies": (json.dumps(good_request()).encode() * 2, 400, "malformed-json", None),
    "a seed of 1e400": (with_more(b'"random_seed": 1e400'), 422, "invalid-field", "random_seed"),
    "a seed of 5,000 digits": (with_more(b'"random_seed": ' + b"9" * 5000), 422, "invalid-field", "random_seed"),
    "a seed of 5,000 digits in a string": (
        with_more(b'"random_seed": "' + b"9" * 5000 + b'"'), 422, "invalid-field", "random_seed"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status", "problem", "field"), REFUSED_BODIES.values(), ids=REFUSED_BODIES.keys())
def test_json_that_is_broken_or_out_of_range_is_refused(
    echo: Service, body: bytes, status: int, problem: str, field: str | None
) -> None:
    check(sent(echo, body), status, problem, field)


def test_of_a_duplicate_key_the_last_counts(echo: Service) -> None:
    body = json.dumps(good_request(request_id=5)).encode()
    assert sent(echo, with_more(b'"request_id": 4')).json()["request_id"] == 7
    assert sent(echo, body[:-1] + b', "request_id": 6}').json()["request_id"] == 6
    check(sent(echo, body[:-1] + b', "text": 1}'), 422, "invalid-field", "text")


@pytest.mark.parametrize("more", [b'"x": 1e300', b'"x": ' + b"9" * 4000, b'"x": ' + b"[" * 500 + b"]" * 500, b'"": {}'])
def test_what_is_not_asked_for_may_be_any_json(echo: Service, more: bytes) -> None:
    assert sent(echo, with_more(more)).status_code == 200


SEEDS = dict.fromkeys([-(2**63), 0, 2**63, 2**64 - 1], 200) | dict.fromkeys([-(2**63) - 1, 2**64, 10**30], 422)


@pytest.mark.parametrize(("seed", "status"), SEEDS.items())
def test_seeds_are_taken_up_to_their_limits(echo: Service, seed: int, status: int) -> None:
    for spelt in (seed, str(seed)):
        answer = echo.generate(random_seed=spelt)
        assert answer.status_code == status
        if status == 422:
            check(answer, 422, "invalid-field", "random_seed")


PROMPTS = {
    "nothing": ("", 200),
    "spaces": (" " * 100, 200),
    "emoji of several code points": ("👩‍👩‍👧‍👦🏳️‍🌈" * 100, 200),
    "control characters": ("".join(map(chr, range(32))) + "\x7f\x85\u2028", 200),
    "right to left, and overrides": ("\u202emotnoc \u202d مربع أحمر על רקע כחול", 200),
    "what is no character": ("\ufffe\uffff\U0010ffff", 200),
    "as many characters as are taken, of four bytes": ("🎈" * 10_000, 200),
    "one more": ("a" * 10_001, 422),
    "100 KB": ("a red circle " * 8000, 422),
    "100 KB of emoji": ("🎈" * 25_600, 422),
}


@pytest.mark.parametrize(("text", "status"), PROMPTS.values(), ids=PROMPTS.keys())
def test_any_prompt_within_the_limit_is_taken(echo: Service, text: str, status: int) -> None:
    answer = echo.generate(text=text)
    assert answer.status_code == status
    if status == 422:
        check(answer, 422, "invalid-field", "text")


def test_none_of_this_cost_a_worker_or_was_an_accident(echo: Service) -> None:
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log)
