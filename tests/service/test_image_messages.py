"""Accepted images in every interface, and the messages about anything else that is sent as one."""

import base64
import re
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.service.messages import ENCODED, INTERFACES, NAME, PNG, blamed, edges, generation, told, txt2img
from tests.service.running import Service

interfaces = pytest.mark.parametrize(("send", "name"), INTERFACES.values(), ids=INTERFACES)


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def lines(text: str) -> str:
    return "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))


# With a text that no reader needs, whose base64 is pluses.
WITH_PLUSES = PNG[:33] + chunk(b"tEXt", b"Comments.\0" + b"\xfb\xef\xbe" * 20) + PNG[33:]

TAKEN = {
    "URL-safe": ENCODED.replace("+", "-").replace("/", "_"),
    "unpadded": base64.b64encode(PNG + b"\0").decode().rstrip("="),
    "padded too much": ENCODED.rstrip("=") + "====",
    "white space around it": f"\n  {ENCODED}\t\r\n",
    "after a byte order mark": "\ufeff" + ENCODED,
    "in lines": lines(ENCODED),
    "in lines, with spaces between": lines(ENCODED).replace("\r\n", " "),
    "with spaces for pluses": base64.b64encode(WITH_PLUSES).decode().replace("+", " "),
    "a data: URI": f"data:image/png;base64,{ENCODED}",
    "a data: URI in capitals": f"DATA:IMAGE/PNG;BASE64,{ENCODED}",
    "a data: URI after white space": f"  data:image/png;base64, {ENCODED}\n",
    "a data: URI of another type": f"data:image/jpeg;base64,{ENCODED}",
    "a data: URI of any bytes": f"data:application/octet-stream;base64,{ENCODED}",
    "a data: URI without a type": f"data:;base64,{ENCODED}",
    "a data: URI with a parameter": f"data:image/png;name=in.png;base64,{ENCODED}",
    "a data: URI, URL-safe, unpadded, in lines": "Data:image/png;base64,"
    + lines(ENCODED.replace("+", "-").replace("/", "_").rstrip("=")),
    "percent-encoded": "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
}


@interfaces
@pytest.mark.parametrize("image", TAKEN.values(), ids=TAKEN)
def test_base64_is_taken_as_people_send_it(
    echo: Service, send: Callable[[Service, Any], httpx.Response], name: str, image: str
) -> None:
    answer = send(echo, image)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("head", [b"data:image/png;base64,", b"DATA:image/png;base64,\n"])
def test_a_data_uri_is_taken_in_place_of_a_file(echo: Service, head: bytes) -> None:
    body = head + ENCODED.encode()
    alone = echo.client.post("/generation/", params={"text": "x"}, content=body, headers={"Content-Type": "image/png"})
    part = echo.client.post("/generation/", data={"text": "x"}, files={"input_image": ("in.png", body)})
    edges = echo.client.post("/edges", content=body, headers={"Content-Type": "image/png"})
    edit = echo.client.post("/v1/images/edits", data={"prompt": "x"}, files={"image": ("in.png", body)})
    assert [each.status_code for each in (alone, part, edges, edit)] == [200] * 4


# What is sent as an image; what must stand in the message.
MISTAKEN: dict[str, tuple[str, str]] = {
    "a URL": ("https://example.com/cat.png", "is a URL; this service does not fetch images: send the file's bytes"),
    "a URL of a bucket": ("s3://bucket/cat.png", "is a URL"),
    "a URL of another scheme": ("ipfs://abc/cat", "is a URL"),
    "a URL of Android": ("content://media/external/7", "is a URL"),
    "a URL without its scheme": ("example.com/images/cat.png", "is a URL"),
    "a URL without its scheme, of www": ("www.example.com/cat", "is a URL"),
    "a URL of the same scheme": ("//cdn.example.com/cat.png", "is a URL"),
    "a path": ("/home/me/cat.png", "is a path; this service cannot read your files: send the file's bytes as base64"),
    "a path without a dot": ("/home/me/cats/cat1", "is a path"),
    "a path of Windows": ("C:\\images\\cat.png", "is a path"),
    "a path from home": ("~/cat.jpg", "is a path"),
    "a file URL": ("file:///home/me/cat.png", "is a path"),
    "a file name": ("cat.png", "is a path"),
    "a path within a folder": ("images/cat.png", "is a path"),
    "a path without a dot, within a folder": ("images/cat", "is 'images/cat', which is not an image; send the file's"),
    "the name of a film": ("IMG 0042.MOV", "is a path"),
    "a prompt": ("a red circle", "is 'a red circle', which is not an image; send the file's bytes as base64"),
    "a placeholder": ("<base64 of the image>", "is '<base64 of the image>', which is a placeholder"),
    "a placeholder in braces": ("{{image}}", "is '{{image}}', which is a placeholder"),
    "dots": ("...", "is '...', which is a placeholder"),
    "part of a data: URI": ("image/png;base64," + ENCODED, "has text before its base64; send data:image/png"),
    "a data: URI twice": ("data:image/png;base64,data:image/png;base64," + ENCODED, "has text before its base64"),
    "hexadecimal": (PNG.hex(), "is an image in hexadecimal"),
    "Python's bytes": (str(base64.b64encode(PNG)), "is how Python prints bytes"),
    "bytes as text": (PNG.decode("latin-1"), "holds the bytes of a file as text"),
    "a word": ("undefined", "is 'undefined'; send the file's bytes as base64"),
    "JavaScript's object": ("[object Object]", "is '[object Object]'"),
    "numbers in a text": ("[137, 80, 78, 71]", "is JSON, not an image"),
    "a drawing": ("<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing as text"),
    "a drawing in a data: URI": ("data:image/svg+xml;utf8,<svg/>", "is a data: URI of 'image/svg+xml' that is not"),
    "a page in a data: URI": (
        "data:text/html;base64," + base64.b64encode(b"<html></html>").decode(),
        "is a data: URI of 'text/html' that holds an HTML page; send a PNG, JPEG or WebP.",
    ),
    "a data: URI without data": ("data:image/png;base64", "is a data: URI without data"),
    "a data: URI of nothing": ("data:image/png;base64, ", "is a data: URI without data"),
    "a wrong letter": (ENCODED[:40] + "!" + ENCODED[40:], "is not base64: its character 41 is '!'"),
    "a letter that is none of ASCII": ("é" + ENCODED, "is not base64" ),
    "two texts": ("QUJDRA==" + ENCODED, "is not base64: its character 7 is '='"),
    "a letter too many": (ENCODED.rstrip("=")[:41], "no base64 has 41 characters"),
    "base64 of base64": (base64.b64encode(ENCODED.encode()).decode(), "still encoded as base64 text"),
    "base64 of a data: URI": (base64.b64encode(b"data:image/png;base64," + ENCODED.encode()).decode(), "still encoded"),
    "a text": (base64.b64encode(b"a red circle").decode(), "must be a PNG, JPEG or WebP file; this is text."),
    "half an image": (ENCODED[:40], "cut short"),
}  # fmt: skip


@interfaces
@pytest.mark.parametrize(("image", "words"), MISTAKEN.values(), ids=MISTAKEN)
def test_lookalikes_of_base64_are_named(
    echo: Service, send: Callable[[Service, Any], httpx.Response], name: str, image: str, words: str
) -> None:
    answer = send(echo, image)
    message = told(answer)
    assert words in message
    assert blamed(answer) == [name]


@pytest.mark.parametrize(
    ("image", "words"),
    [(None, "null"), (5, "5"), ([137, 80], "a list"), ({"data": ENCODED}, "an object"), (True, "true"), ("", "empty")],
)
@pytest.mark.parametrize("send", [generation, edges])
def test_values_that_are_not_text_are_named(
    echo: Service, send: Callable[[Service, Any], httpx.Response], image: Any, words: str
) -> None:
    answer = send(echo, image)
    assert f"{NAME} is {words}" in told(answer)
    assert blamed(answer) == [NAME]


def of(kind: str, **options: Any) -> bytes:
    file = BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, kind, **options)
    return file.getvalue()


def box(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(100)


FILES = {
    "HEIC": (box(b"heic", b"mif1", b"heic"), "a HEIC image"),
    "HEIC by its second name": (box(b"mif1", b"mif1", b"heic"), "a HEIC image"),
    "HEIC by a brand of sequences": (box(b"hevs"), "a HEIC image"),
    "HEIF of another coding": (box(b"mif2"), "a HEIF image"),
    "AVIF": (of("AVIF"), "an AVIF image"),
    "AVIF by its second name": (box(b"mif1", b"avif"), "an AVIF image"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "a JPEG XL image"),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "a JPEG XL image"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "a JPEG 2000 image"),
    "TIFF": (of("TIFF"), "a TIFF image"),
    "GIF": (of("GIF"), "a GIF image"),
    "BMP": (of("BMP"), "a BMP image"),
    "ICO": (of("ICO"), "an icon (ICO)"),
    "PPM": (of("PPM"), "a Netpbm image"),
    "SVG": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="9"/>', "an SVG drawing"),
    "PDF": (b"%PDF-1.7\n" + bytes(50), "a PDF"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "an HTML page"),
    "XML": (b"<Error><Code>AccessDenied</Code></Error>", "XML"),
    "JSON": (b'{"error": "expired"}', "JSON text"),
    "MP4": (box(b"isom", b"iso2", b"mp41"), "an MP4 video"),
    "MOV": (box(b"qt  "), "a QuickTime video"),
    "MOV of old": (b"\0\0\0\x08wide\0\0\1\0mdat" + bytes(50), "a QuickTime video"),
    "MPEG transport stream": ((b"G@\0\x10" + bytes(184)) * 3, "an MPEG video"),
    "raw photograph": (b"FUJIFILMCCD-RAW 0201" + bytes(50), "a raw photograph"),
    "WebM": (b"\x1a\x45\xdf\xa3" + bytes(50), "a WebM or Matroska video"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "an AVI video"),
    "ZIP": (b"PK\3\4" + bytes(50), "a ZIP archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
    "Photoshop": (b"8BPS\0\1" + bytes(50), "a Photoshop file"),
    "a URL": (b"https://example.com/cat.png\n", "a URL: no image is fetched"),
    "a file's name": (b"@images/cat.png", "the name of a file: send the file itself"),
    "PNG read as text": (
        PNG.decode("utf-8", "replace").encode(),
        "an image whose bytes were changed by a conversion to text",
    ),
    "PNG as text": (PNG.decode("latin-1").encode(), "an image whose bytes were changed by a conversion to text"),
    "PNG with other line ends": (
        PNG.replace(b"\r\n", b"\n"),
        "an image whose bytes were changed by a conversion to text",
    ),
    "JPEG read as text": (
        of("JPEG").decode("utf-8", "replace").encode(),
        "an image whose bytes were changed by a conversion to text",
    ),
    "PNG after a line end": (b"\n" + PNG, "an image after 1 other bytes: leave them out"),
    "JPEG after a form's head": (b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + of("JPEG"), "an image after 33 other"),
    "text": ("Größe: klein\n".encode(), "text"),
    "zeros": (bytes(100), "nothing but zeros"),
    "noise": (bytes(range(128, 228)), "a file of another kind"),
}


@pytest.mark.parametrize(("file", "kind"), FILES.values(), ids=FILES)
def test_a_file_of_another_kind_is_named_in_every_interface(echo: Service, file: bytes, kind: str) -> None:
    words = f"must be a PNG, JPEG or WebP file; this is {kind}"
    for send in (generation, edges, txt2img):
        assert words in told(send(echo, base64.b64encode(file).decode()))
    for path, field, text in (("/generation/", "input_image", "text"), ("/v1/images/edits", "image", "prompt")):
        answer = echo.client.post(path, data={text: "x"}, files={field: ("in.png", file, "image/png")})
        assert words in told(answer)
        assert blamed(answer) == [field]
    for path in ("/generation/?text=x", "/edges"):
        answer = echo.client.post(path, content=file, headers={"Content-Type": "image/png"})
        assert words in told(answer)


def test_a_photograph_that_is_too_large_is_refused_with_the_size_that_is_taken(echo: Service) -> None:
    big = bytearray(PNG)
    big[16:24] = (8000).to_bytes(4, "big") + (6000).to_bytes(4, "big")
    for send, _ in INTERFACES.values():
        answer = send(echo, base64.b64encode(bytes(big)).decode())
        assert answer.status_code == 413
        message = told(answer)
        assert (
            "8000 x 6000, which is 48000000 pixels; at most 1000000 pixels are allowed (server.max_pixels)" in message
        )
        width, height = map(int, re.findall(r"at most (\d+) x (\d+)\.", message)[0])
        assert 0.99 < width * height / 1_000_000 <= 1
        assert width / height == pytest.approx(4 / 3, rel=0.01)
