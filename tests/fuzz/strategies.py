"""Requests of any shape, built from the real paths, headers and fields, as Hypothesis draws them."""

import base64
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from app.api.automatic1111.detect import DetectRequest
from app.api.automatic1111.structs import ControlNetUnit, JobName, Txt2ImgRequest
from app.api.openai.structs import EditForm
from app.params import GenerationRequest, RequestFields
from tests.fuzz import seeds
from tests.fuzz.mutations import mutated
from tests.fuzz.requests import BOUNDARY, Headers, Request, form, part

GENERATION, EDGES, TXT2IMG, EDITS = "/generation/", "/edges", "/sdapi/v1/txt2img", "/v1/images/edits"
DETECT = "/controlnet/detect"
POSTS = (
    *(GENERATION, GENERATION, "/generation", EDGES, TXT2IMG, TXT2IMG, EDITS, EDITS),
    *("/sdapi/v1/options", "/sdapi/v1/interrupt", DETECT),
)
PATHS = (
    *POSTS,
    *("/sdapi/v1/img2img", "/sdapi/v1/progress", "/v1/images/generations", "/v1/models", "/v1/models/echo"),
    *("/", "/docs", "/page/page.js", "/openapi.json", "/healthz", "/readyz", "/metrics", "/settings.json"),
    *("/docs/../readyz", "/page/%2e%2e%2fpage.py", "/generation/%ff", "/%ed%a0%80", "//generation/", "*", ""),
    "http://localhost/generation/",
)
METHODS = ("POST",) * 12 + ("GET",) * 4 + ("HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "BREW", "")
CHARSETS = (
    # Those that raise something of their own, take long, or make text of which no UTF-8 can be made.
    *("unicode_escape", "raw_unicode_escape", "punycode", "idna", "undefined", "utf-7") * 3,
    *("utf-8", "UTF-8", "latin-1", "ascii", "utf-16", "utf-32"),
    *("mbcs", "zlib_codec", "base64_codec", "rot13", "bz2_codec", "hex", "no-such"),
    *("", " ", '"', '"utf-8', "utf-8\0", "é", "x" * 5000),
)
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/svg+xml", "IMAGE/PNG", "image/png; q=1")
TYPES = ("application/json", "application/problem+json", "application/+json", "text/plain", "text/json", "", "/", ";")
LONG = 4000  # characters of a long value: a head may have 64 KiB, and some of them go into one
VALUES = ("", " ", ",", ";", "=", '"', "*", "*/*", "null", "\xff", "a\tb", "," * LONG, "a" * LONG, "9" * LONG, "-1")
KEY = "key-of-a-service-for-tests"
FRIEND = "http://friend.example"  # an origin that may be allowed
KNOWN_VALUES = {
    "Accept": ("text/event-stream", "image/png", "image/*;q=0.1, */*;q=nan", "application/json;q=inf", "text/html"),
    "Prefer": ("wait=1", "wait=0", "wait=1e9", "wait=٣", 'wait="2"', "wait", "respond-async, wait=2"),
    "Host": (
        "localhost",
        "127.0.0.1:80",
        "[::1]:8000",
        "evil.example",
        "localhost.",
        "[",
        "[::",
        "a:b:c",
        "LOCALHOST:",
    ),
    "Origin": (
        "null",
        FRIEND,
        FRIEND.upper(),
        "http://localhost",
        "http://evil.example",
        "http://localhost:99999",
        "://",
        "file://",
    ),
    "Sec-Fetch-Site": ("same-origin", "cross-site", "none", "same-site"),
    "Sec-Fetch-Mode": ("cors", "no-cors", "navigate"),
    "Authorization": (
        "Bearer",
        "Bearer x",
        f"bearer  {KEY}",
        f"Bearer {KEY}, {KEY}",
        "Basic",
        "Basic Og==",
        "Basic \xff",
        "Digest a=b",
    ),
    "X-API-Key": ("x", "\xe9", KEY + " "),
    "Content-Encoding": ("identity", "gzip", "br, identity"),
    "Expect": ("100-continue", "200-maybe"),
    "If-None-Match": ('"a"', "W/", '"' * 99),
    "Accept-Encoding": ("gzip", "gzip;q=0", "*;q=0.000"),
    "X-Forwarded-For": ("1.2.3.4", "::1, 5", "999.1.1.1", "[::1]:80"),
    "Forwarded": ("for=_hidden", 'for="[::1]"'),
    "Upgrade": ("websocket", "h2c", "TLS/1.0"),
    "Connection": ("close", "keep-alive", "upgrade", "close, content-length"),
    "Access-Control-Request-Method": ("POST",),
    "traceparent": ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0"),
    "X-Request-Id": ("a\tb",),
    "Cookie": ("a=b",),
    "Range": ("bytes=0-1",),
}
FRAMINGS: tuple[Headers, ...] = (
    (("Content-Length", "0"),),
    (("Content-Length", "1"),),
    (("Content-Length", "-1"),),
    (("Content-Length", "+5"),),
    (("Content-Length", "0x10"),),
    (("Content-Length", "9" * 30),),
    (("Content-Length", "99999999"),),
    (("Content-Length", "5"), ("Content-Length", "6")),
    (("Content-Length", "5"), ("Transfer-Encoding", "chunked")),
    (("Transfer-Encoding", "gzip, chunked"),),
    (("Transfer-Encoding", "chunked, identity"),),
    (("Transfer-Encoding", "\x0bchunked"),),
)
IMAGES = tuple(seeds.images())
GOOD = seeds.file_of(seeds.gradient(), "PNG")

bytes_of_images = st.sampled_from(IMAGES) | st.builds(
    lambda image, number: mutated(image, Random(number)), st.sampled_from(IMAGES), st.integers(0, 2**32)
)
base64_texts = bytes_of_images.map(lambda image: base64.b64encode(image).decode())
latin1 = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30)
odd_numbers = st.sampled_from(["nan", "inf", "-inf", "1e999", float("nan"), 10**600, "9" * 600, -1, 0, 0.5, 10**9])
odd_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**4299]),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=20),  # surrogates too
    odd_numbers,
    st.sampled_from(["\ud800", "\udfff\ud800", "٣", "\0", "a" * 11_000, "💥" * 2600, "-1", ""]),
    st.sampled_from(["canny", "controlnet", "url", "b64_json", "echo", "true", "512x512", "data:image/png;base64,"]),
    base64_texts,
)
json_values = odd_numbers | st.recursive(
    odd_values,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=12,
)


def _is_rare(draw: st.DrawFn, of: int) -> bool:
    """True about once in so many times. Hypothesis is fond of the ends of a range, so it is none of them."""
    return draw(st.sampled_from(range(of))) == of // 2


def _fields(*structs: type) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for struct in structs for name in struct.__struct_fields__))  # type: ignore[attr-defined]


FIELDS = {
    GENERATION: _fields(GenerationRequest, RequestFields),
    EDGES: ("input_image_base64", "canny_low", "canny_high"),
    TXT2IMG: _fields(Txt2ImgRequest),
    DETECT: _fields(DetectRequest),
    EDITS: (*_fields(EditForm), "image", "image[]", "input_image"),
}
UNIT = _fields(ControlNetUnit)
ALL_FIELDS = tuple(dict.fromkeys([*(name for names in FIELDS.values() for name in names), *_fields(JobName)]))


def good_json(path: str) -> dict[str, Any]:
    """Fields of a body that is answered with an image."""
    image = base64.b64encode(GOOD).decode()
    if path == TXT2IMG:
        return {"prompt": "a", "alwayson_scripts": {"ControlNet": {"args": [{"module": "canny", "image": image}]}}}
    if path == DETECT:
        return {"controlnet_module": "canny", "controlnet_input_images": [image]}
    return {"request_id": 1, "text": "a", "random_seed": 1, "input_image_base64": image}


@st.composite
def json_bodies(draw: st.DrawFn, path: str) -> bytes:
    """A good body with some fields odd, added or left out; or any JSON; some of it damaged."""
    fields = good_json(path)
    names = st.sampled_from(FIELDS.get(path, ALL_FIELDS)) | st.text(max_size=9)
    fields |= draw(st.dictionaries(names, json_values, max_size=2))
    if _is_rare(draw, 6):
        del fields[draw(st.sampled_from(sorted(fields)))]
    if path == TXT2IMG and not _is_rare(draw, 3):
        unit = good_json(path)["alwayson_scripts"]["ControlNet"]["args"][0]
        unit |= draw(st.dictionaries(st.sampled_from(UNIT), json_values, max_size=2))
        script = draw(st.sampled_from(["controlnet", "ControlNet", "ADetailer", "Seed", "Sampler", "\ud800"]))
        fields["alwayson_scripts"] = {script: {"args": [unit, *draw(st.lists(json_values, max_size=2))]}}
    body = json.dumps(draw(json_values) if _is_rare(draw, 8) else fields).encode()
    return mutated(body, Random(draw(st.integers(0, 2**32)))) if _is_rare(draw, 5) else body


texts_of_forms = st.sampled_from(
    [b"a", *[b"\\ud800"] * 5, b"\\N{", b"\xed\xa0\x80", b"\xff", b"+2AA-", b"a-\xff", b"xn--a", b"\r\n--", b"", b"\0"]
)
parts_of_forms = st.builds(
    part,
    st.sampled_from(ALL_FIELDS) | latin1,
    st.one_of(
        bytes_of_images,
        st.binary(max_size=50),
        odd_values.map(lambda value: str(value).encode("utf-8", "surrogatepass")),
        st.sampled_from([b"\\ud800", b"\xed\xa0\x80", b"\r\n--", b"--" + BOUNDARY.encode(), form(part("text", b"a"))]),
    ),
    st.none() | st.sampled_from(["a.png", "", "\xff", "../../a", "a" * LONG]),
    st.sampled_from(
        [
            b"",
            b"Content-Type: image/png\r\n",
            b"Content-Type: text/plain; charset=unicode_escape\r\n",
            b"Content-Type: multipart/mixed; boundary=inner\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"Content-Disposition: form-data\r\n",
            b"X: " + b"a" * LONG + b"\r\n",
            b"no colon\r\n",
            b": \r\n",
            b"\0: \xff\r\n",
        ]
    ),
)


@st.composite
def forms(draw: st.DrawFn, path: str) -> tuple[str, bytes]:
    """The type of a form and its body: whole, damaged, or not as its type says."""
    names = ("prompt", "image") if path == EDITS else ("text", "input_image")
    good = [part(names[0], draw(texts_of_forms)), part(names[1], GOOD, "a.png")] if not _is_rare(draw, 5) else []
    parts = [*good, *(draw(st.lists(parts_of_forms, max_size=3)) if _is_rare(draw, 3) else [])]
    boundary = draw(st.sampled_from([*[BOUNDARY] * 20, "X", "'()+_,-./:=?", "a b", "b" * 70, "b" * 71, "é", ""]))
    body = form(*parts, boundary=boundary)
    match draw(st.sampled_from(range(15))):
        case 5:
            body = body[: draw(st.integers(0, len(body)))]
        case 6:
            body = mutated(body, Random(draw(st.integers(0, 2**32))))
        case 7:
            body = b"\r\n" * draw(st.integers(0, 2000)) + body + body
    named = draw(st.sampled_from([f'; boundary="{boundary}"'] * 6 + [f"; boundary={boundary}", "", "; boundary", ";"]))
    charset = f"; charset={draw(st.sampled_from(CHARSETS))}" if draw(st.booleans()) else ""
    return f"multipart/form-data{named}{charset}", body


JSON, FORM, IMAGE, ANYTHING = range(4)
TAKEN = {GENERATION: (JSON, FORM, IMAGE), "/generation": (JSON, FORM, IMAGE), EDGES: (JSON, IMAGE), EDITS: (FORM,)}


@st.composite
def typed_bodies(draw: st.DrawFn, path: str) -> tuple[str | None, bytes]:
    """A body, and what its Content-Type says, mostly truly."""
    kinds: Sequence[st.SearchStrategy[tuple[str, bytes]]] = [
        json_bodies(path).map(lambda body: ("application/json", body)),
        forms(path),
        st.tuples(st.sampled_from(IMAGE_TYPES), bytes_of_images),
        st.tuples(st.sampled_from(TYPES), st.binary(max_size=200)),
    ]
    taken = draw(st.sampled_from(TAKEN.get(path, (JSON,)))) if not _is_rare(draw, 10) else ANYTHING
    kind, body = draw(kinds[taken])
    match draw(st.sampled_from(range(16))):
        case 5:
            return None, body
        case 6:
            return draw(st.sampled_from(TYPES) | latin1), body
        case 7:
            return f"{kind}; charset={draw(st.sampled_from(CHARSETS))}", body
        case _:
            return kind, body


queries = st.lists(
    st.tuples(
        st.sampled_from(("text", *ALL_FIELDS)) | st.sampled_from(["%ff", "a%00", "%u0041", "\xe9", "a[b]"]),
        st.sampled_from(
            ["a", "1", "-1", "nan", "%ed%a0%80", "%ff", "%", "%zz", "\xff", "+", "9" * LONG, "%41" * LONG, ""]
        ),
    ).map("=".join),
    max_size=5,
).map("&".join)


def _header(name: str) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.just(name), st.sampled_from((*KNOWN_VALUES[name], *VALUES)) | latin1)


headers_of_requests = st.lists(
    st.sampled_from(sorted(KNOWN_VALUES)).flatmap(_header) | st.tuples(latin1, latin1), max_size=3
).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request: most of it right, so that the rest is looked at."""
    path = draw(st.sampled_from(PATHS if _is_rare(draw, 4) else POSTS))
    method = draw(st.sampled_from(METHODS)) if _is_rare(draw, 4) else "POST"
    kind, body = draw(typed_bodies(path)) if method not in {"GET", "HEAD"} else (None, b"")
    headers: Headers = draw(headers_of_requests) if _is_rare(draw, 3) else ()
    if kind is not None:
        headers = (("Content-Type", kind), *headers)
    if not _is_rare(draw, 5):  # without it, little is looked at where a key is needed
        headers = (*headers, ("X-API-Key", KEY))
    chunk = draw(st.sampled_from([0, 0, 0, 1, 7, 100]))
    if _is_rare(draw, 16):
        headers, chunk = (*headers, *draw(st.sampled_from(FRAMINGS))), 0
    query = draw(queries.map("?{}".format)) if _is_rare(draw, 4) else draw(st.sampled_from(["", "?text=a"]))
    return Request(method, path + query, headers, body, chunk)
