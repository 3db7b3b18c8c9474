"""Requests that try to hurt the service, or to use it from a page of another origin. None may cost others anything.

Each has its honest end. `busy` is one wherever a body is sent: there is a budget of bytes for all bodies.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from PIL import Image

from tests.chaos.kind import GOOD, Kind, fields_of, good_body
from tests.fuzz.requests import FORM_TYPE, form, part
from tests.fuzz.seeds import file_of, gradient, png
from tests.service.asking import Manner
from tests.service.running import png as square

ATTACKER = "127.0.0.2"
EDGES = "attack: edges"
UNFINISHED = "attack: unfinished body"
LARGE_WEBP = "attack: WebP of 40 megapixels"
MANY = 900_000  # bytes of an attack: below the limit of a body, so that the body is read
CHARSETS = ("unicode_escape", "punycode", "idna", "undefined", "utf-7", "zlib_codec")
TXT2IMG = "/sdapi/v1/txt2img"
REFUSED = "422", "400", "503"  # of interfaces whose errors have no type


def attacks() -> Iterator[Kind]:
    """All of them, and edges for a client that attacks nobody."""
    for kind in (*_forms(), *_json(), *_pages(), *_images(), *_others()):
        yield replace(kind, source=ATTACKER)
    yield replace(_edges("edges", 2), ends=frozenset({"done", "draining"}))


def _others() -> Iterator[Kind]:
    yield Kind(UNFINISHED, 2, _ends("request-timeout"), Manner.UNFINISHED, body=_json_of(text="a" * MANY))
    yield _edges(EDGES, 2)
    name = json.dumps({"id_task": "somebody-elses"}).encode()
    yield Kind("attack: interrupt", 4, _ends("done"), path="/sdapi/v1/interrupt", body=name, counted=False)


def _edges(name: str, weight: float) -> Kind:
    body = json.dumps({"input_image_base64": _encoded(square(320, 240))}).encode()
    return Kind(name, weight, _ends("done", "draining"), path="/edges?canny_low=50", body=body, counted=False)


def _ends(*ends: str) -> frozenset[str]:
    return frozenset(ends) | {"busy"}


def _encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _json_of(**odd: object) -> bytes:
    return json.dumps(fields_of(0, square(64, 64)) | odd).encode()


def _forms() -> Iterator[Kind]:
    """The codec that a client names is never used."""
    for charset in CHARSETS:
        yield _form(f"attack: form in {charset}", GOOD, b"\\ud800", charset)
    yield _form("attack: form, much text in punycode", _ends("malformed-form"), b"a" * MANY, "punycode")
    yield _form("attack: form, surrogate", _ends("malformed-form"), b"\xed\xa0\x80")
    yield _form("attack: form, almost boundaries", _ends("malformed-form"), b"\r\n--" * (MANY // 4))
    header = form(part("text", b"a", more=b"X: " + b"a" * MANY + b"\r\n"))
    yield Kind("attack: form, long header", 1, _ends("malformed-form"), headers=dict([FORM_TYPE]), body=header)


def _form(name: str, ends: frozenset[str], text: bytes, charset: str = "utf-8") -> Kind:
    body = form(part("text", text), part("input_image", square(64, 64), "a.png"))
    return Kind(name, 0.5, ends, headers={FORM_TYPE[0]: f"{FORM_TYPE[1]}; charset={charset}"}, body=body)


def _json() -> Iterator[Kind]:
    """Odd values, and more of them than anybody needs."""
    ends: Mapping[str, tuple[str, bytes]] = {
        "surrogate": ("malformed-json", _json_of(text="\ud800")),
        "deep nesting": ("malformed-json", b'{"more":' + b"[" * 9000),
        "many values": ("invalid-field", b'{"text":[' + b"{}," * (MANY // 3) + b"{}]}"),
        "long text": ("invalid-field", _json_of(text="a" * MANY)),
        "long integer": ("invalid-field", _json_of(random_seed="9" * MANY)),
        "long key": ("invalid-field", json.dumps({"k" * MANY: 1}).encode()),
        "not a number": ("malformed-json", _json_of(temperature=float("nan"))),
    }
    for name, (end, body) in ends.items():
        yield Kind(f"attack: JSON, {name}", 0.7, _ends(end), body=body)
    image = _encoded(square(64, 64))
    unit = {"module": "canny", "image": image, "threshold_a": "nan"}
    for name, scripts in {"many units": [{}] * (MANY // 4), "threshold nan": [unit]}.items():
        body = json.dumps({"alwayson_scripts": {"controlnet": {"args": scripts}}}).encode()
        yield Kind(f"attack: txt2img, {name}", 0.7, _ends(*REFUSED), path=TXT2IMG, body=body)
    long = json.dumps({"script_name": "s" * MANY}).encode()
    yield Kind("attack: txt2img, long script_name", 0.7, _ends(*REFUSED), path=TXT2IMG, body=long)
    yield Kind("attack: options", 0.7, _ends("413", *REFUSED), path="/sdapi/v1/options", body=long)
    yield Kind(
        "attack: query, surrogate",
        0.7,
        _ends("invalid-field"),
        path="/generation/?text=%ed%a0%80",
        headers={"Content-Type": "image/png"},
        body=square(64, 64),
    )


def _pages() -> Iterator[Kind]:
    """A browser sends these for a page of another origin, or of a name that points here for a moment."""
    pages: Mapping[str, tuple[str, Mapping[str, str]]] = {
        "another origin": ("foreign-origin", {"Origin": "http://evil.example"}),
        "no origin": ("foreign-origin", {"Origin": "null"}),
        "another site": ("foreign-origin", {"Sec-Fetch-Site": "cross-site"}),
        "another name": ("unknown-host", {"Host": "evil.example"}),
        "no type": ("unsupported-media-type", {"Content-Type": "text/plain"}),
    }
    for name, (end, headers) in pages.items():
        yield Kind(f"attack: page of {name}", 0.7, frozenset({end}), headers=headers)


def _images() -> Iterator[Kind]:
    """Files that cost more than they seem to, or cannot be read to their end."""
    whole = gradient().resize((480, 320))
    files: Mapping[str, bytes] = {
        "transparent PNG": file_of(whole, "PNG", transparency=(0, 0, 0)),
        "PNG of 16 bits": png(16, 6),
        "PNG of 2 bits": png(2, 3),
    }
    for name, file in files.items():
        yield Kind(f"attack: {name}", 0.7, GOOD, body=good_body(1, file))
    for kind in ("PNG", "JPEG", "WEBP"):
        file = file_of(whole.rotate(30), kind)
        cut = good_body(1, file[: len(file) * 2 // 3])
        yield Kind(f"attack: cut {kind}", 0.7, _ends("invalid-image", "draining"), body=cut)
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    large = file_of(Image.new("RGB", (6324, 6324), (200, 10, 10)), "WEBP", lossless=True, exif=turned)
    yield Kind(LARGE_WEBP, 0.3, GOOD, body=good_body(1, large))
