"""Requests that cost the most for what they are, by class: as large as is taken, odd, or the worst case of a parser.

They are built when they are called, as some have 32 MB.
"""

import base64
import json
from collections.abc import Callable, Mapping

from tests.fuzz.requests import BOUNDARY, FORM_TYPE, Headers, Request, form, form_request, json_request, part
from tests.fuzz.seeds import file_of, gradient, png_chunk

MIB = 2**20
BODY = 32 * MIB  # server.max_body_bytes
FILE = 16 * MIB  # server.max_image_bytes
IHDR_END = 33  # in a PNG
HEAD = 60 * 1024  # below server.max_header_bytes
EDGES = "/edges?canny_low=50&canny_high=150"
GENERATION = "/generation/"
TXT2IMG = "/sdapi/v1/txt2img"
DETECT = "/controlnet/detect"
EDITS = "/v1/images/edits"
IMAGE = ("Content-Type", "image/png")
QUERY = "text=a&random_seed=1"

Build = Callable[[], Request]


def small_image() -> bytes:
    """A file of a few hundred bytes."""
    return file_of(gradient(), "PNG")


def large_image(size: int = FILE - 1024) -> bytes:
    """A file that is large though its image is small: one chunk of it is nothing to a decoder."""
    good = small_image()
    return good[:IHDR_END] + png_chunk(b"prVt", bytes(size)) + good[IHDR_END:]


def _fields(image: str | bytes, **more: object) -> dict[str, object]:
    text = image if isinstance(image, str) else base64.b64encode(image).decode()
    return {"request_id": 1, "text": "a circle", "random_seed": 1, "input_image_base64": text} | more


def _generation(image: str | bytes, **more: object) -> Request:
    return json_request(GENERATION, _fields(image, **more))


def _with(value: bytes, field: str = "input_image_base64", path: str = GENERATION) -> Request:
    """A request with a field as these bytes of JSON."""
    fields = _fields(small_image())
    fields.pop(field, None)
    return json_request(path, json.dumps(fields).encode()[:-1] + b', "%b": %b}' % (field.encode(), value))


def _lines(text: str, end: str) -> str:
    return end.join(text[start : start + 76] for start in range(0, len(text), 76))


def _masked(mask: str) -> dict[str, object]:
    unit = {"module": "canny", "image": _text(small_image()), "mask": mask}
    return _unit("", alwayson_scripts={"controlnet": {"args": [unit]}})


def _unit(image: str, **more: object) -> dict[str, object]:
    return {"prompt": "a", "alwayson_scripts": {"controlnet": {"args": [{"module": "canny", "image": image}]}}} | more


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


JSONS: Mapping[str, Build] = {
    "largest good JSON": lambda: _generation(large_image()),
    "largest good JSON, chunks of 100": lambda: _in_chunks(_generation(large_image()), 100),
    "JSON in chunks of 1": lambda: _in_chunks(_generation(large_image(MIB)), 1),
    "base64 in lines": lambda: _generation(_lines(_text(large_image()), "\r\n")),
    "base64 as escapes": lambda: _with(b'"' + b"\\u0041" * (BODY // 6 - 100) + b'"'),
    "base64 with an escape": lambda: _with(b'"\\u0069' + _text(large_image()).encode()[1:] + b'"'),
    "base64 as a data URL": lambda: _generation("data:image/png;base64," + _text(large_image())),
    "base64 of spaces": lambda: _with(b'"' + b" " * (BODY - 1000) + b'"'),
    "base64 not ASCII": lambda: _with(b'"' + "é".encode() * (BODY // 2 - 500) + b'"'),
    "base64 that ends badly": lambda: _with(b'"' + b"A" * (BODY - 1000) + b'!"'),
    "text of 31 MB": lambda: _with(b'"' + b"a" * (BODY - 1000) + b'"', "text"),
    "text of 31 MB of surrogates": lambda: _with(b'"' + b"\\ud800" * (BODY // 6 - 100) + b'"', "text"),
    "unknown field of 31 MB of escapes": lambda: _with(b'"' + b"\\n" * (BODY // 2 - 500) + b'"', "more"),
    "key of 31 MB": lambda: json_request(GENERATION, b'{"' + b"k" * (BODY - 100) + b'": 1}'),
    "commas in a text": lambda: _with(b'"' + b"," * (BODY - 1000) + b'"'),
    "many commas and brackets": lambda: _with(b'"' + b",[{" * (BODY // 3 - 1000) + b'"'),
    "spaces before JSON": lambda: json_request(GENERATION, b" " * (BODY - 100) + b"{}"),
    "bad UTF-8 at the end": lambda: _with(b'"' + b"a" * (BODY - 1000) + b'\xff"', "text"),
    "integer of 31 MB": lambda: _with(b"1" * (BODY - 1000), "random_seed"),
    "integer of 4300 digits": lambda: _with(b"1" * 4300, "random_seed"),
    "integer of 31 MB as a text": lambda: _with(b'"' + b"1" * (BODY - 1000) + b'"', "random_seed"),
    "float of 31 MB": lambda: _with(b"1." + b"1" * (BODY - 1000), "temperature"),
    "float of 31 MB as a text": lambda: _with(b'"1.' + b"1" * (BODY - 1000) + b'"', "temperature"),
    "unknown number of 31 MB": lambda: _with(b"0." + b"1" * (BODY - 1000), "more"),
    "most values": lambda: _with(b"[" + b"{}," * 19_000 + b"1]", "more"),
    "most values and 31 MB": lambda: _with(b"[" + b"{}," * 19_000 + b'"' + b"a" * (BODY - 70_000) + b'"]', "more"),
    "too many values": lambda: _with(b"[" + b"{}," * (BODY // 3 - 500) + b"1]", "more"),
    "deep nesting": lambda: _with(b"[" * 19_000 + b"]" * 19_000, "more"),
    "deep nesting, 31 MB": lambda: _with(b"[" * (BODY - 1000), "more"),
    "txt2img: largest good": lambda: json_request(TXT2IMG, _unit(_text(large_image()))),
    "txt2img: base64 in lines": lambda: json_request(TXT2IMG, _unit(_lines(_text(large_image()), "\r\n"))),
    "txt2img: base64 not ASCII": lambda: json_request(TXT2IMG, _unit("é" * (BODY // 6 - 500))),
    "txt2img: 31 MB of {}": lambda: json_request(
        TXT2IMG, b'{"alwayson_scripts":{"controlnet":{"args":[' + b"{}," * (BODY // 3 - 100) + b"{}]}}}"
    ),
    "txt2img: most values": lambda: json_request(
        TXT2IMG, b'{"alwayson_scripts":{"controlnet":{"args":[' + b"{}," * 19_000 + b"{}]}}}"
    ),
    "txt2img: script_name of 8 MB": lambda: json_request(TXT2IMG, _unit("", script_name="s" * 8 * MIB)),
    "txt2img: script_name of 8 MB, not ASCII": lambda: json_request(TXT2IMG, _unit("", script_name="\ud800" * MIB)),
    "txt2img: mask of 31 MB": lambda: json_request(
        TXT2IMG, _unit("", alwayson_scripts={"controlnet": {"args": [{"mask": "\n" * (BODY // 3)}]}})
    ),
    "txt2img: scripts of most values": lambda: json_request(
        TXT2IMG, _unit("", alwayson_scripts={f"script {n}": {"args": [{"a_b_c": 0}] * 50} for n in range(99)})
    ),
    "txt2img: infotext of 31 MB": lambda: json_request(TXT2IMG, _unit("", infotext=" " * (BODY - 1000))),
    "txt2img: prompt of 31 MB of dynamic syntax": lambda: json_request(
        TXT2IMG, _unit("", prompt="{a" * (BODY // 2 - 1000), alwayson_scripts={"Dynamic Prompts": {"args": [True]}})
    ),
    "txt2img: largest good mask": lambda: json_request(TXT2IMG, _masked(_text(large_image(FILE // 2)))),
    "detect: largest good": lambda: json_request(DETECT, {"controlnet_input_images": [_text(large_image())]}),
    "detect: 8 large results": lambda: json_request(
        DETECT, {"controlnet_processor_res": 2048, "controlnet_input_images": [_text(small_image())] * 8}
    ),
    "detect: most values": lambda: json_request(DETECT, {"controlnet_masks": [""] * 9_000}),
    "options: 31 MB of keys": lambda: json_request(
        "/sdapi/v1/options", {f"key {number}": number for number in range(MIB)}
    ),
    "options: a value of 31 MB": lambda: json_request("/sdapi/v1/options", {"a": "b" * (BODY - 100)}),
    "interrupt: 31 MB": lambda: json_request("/sdapi/v1/interrupt", {"id_task": "b" * (BODY - 100)}),
    "generations: 31 MB": lambda: json_request("/v1/images/generations", {"prompt": "b" * (BODY - 100)}),
    "img2img: 31 MB": lambda: json_request("/sdapi/v1/img2img", {"prompt": "b" * (BODY - 100)}),
    "edges: largest good JSON": lambda: json_request(EDGES, {"input_image_base64": _text(large_image())}),
    "edges: base64 in lines": lambda: json_request(EDGES, {"input_image_base64": _lines(_text(large_image()), "\r\n")}),
}


def _in_chunks(request: Request, size: int) -> Request:
    return Request(request.method, request.path, request.headers, request.body, size)


def _form(*parts: bytes, path: str = GENERATION) -> Request:
    return form_request(path, form(*parts))


def _good_parts(image: bytes) -> tuple[bytes, bytes]:
    return part("text", b"a circle"), part("input_image", image, "a.png")


def _one_header(line: bytes) -> Request:
    return _form(part("text", b"a", more=line + b"\r\n"))


FORMS: Mapping[str, Build] = {
    "largest good form": lambda: _form(*_good_parts(large_image())),
    "largest good form, chunks of 100": lambda: _in_chunks(_form(*_good_parts(large_image())), 100),
    "form in chunks of 1": lambda: _in_chunks(_form(*_good_parts(large_image(MIB))), 1),
    "form: file of 31 MB": lambda: _form(*_good_parts(large_image(BODY - 1000))),
    "form: text of 31 MB": lambda: _form(part("text", b"a" * (BODY - 1000))),
    "form: text of line ends": lambda: _form(part("text", b"\r\n" * (BODY // 2 - 500))),
    "form: almost boundaries": lambda: _form(part("text", b"\r\n--" * (BODY // 4 - 500))),
    "form: boundaries but for the end": lambda: _form(
        part("text", (b"\r\n--" + BOUNDARY[:-1].encode()) * (BODY // (len(BOUNDARY) + 3) - 100))
    ),
    "form: file of almost boundaries": lambda: _form(part("input_image", b"\r\n--" * (BODY // 4 - 500), "a")),
    "form: file of carriage returns": lambda: _form(part("input_image", b"\r" * (BODY - 500), "a")),
    "form: boundaries at once": lambda: form_request(GENERATION, f"--{BOUNDARY}\r\n".encode() * MIB),
    "form: parts without end": lambda: _form(*[part("a", b"")] * 400_000),
    "form: header of 20 MB": lambda: _one_header(b"X: " + b"a" * 20 * MIB),
    "form: header name of 20 MB": lambda: _one_header(b"a" * 20 * MIB + b": 1"),
    "form: headers of 20 MB": lambda: _one_header(b"\r\n".join([b"X: a"] * (20 * MIB // 6))),
    "form: field name of 20 MB": lambda: _form(part("a" * 20 * MIB, b"")),
    "form: file name of 20 MB": lambda: _form(part("a", b"", "b" * 20 * MIB)),
    "form: file name of quotes": lambda: _form(part("a", b"", '\\"' * 5 * MIB)),
    "form: parameters of 20 MB": lambda: _form(part("a", b"", 'x"' + '; a="b"' * 2 * MIB + '; c="')),
    "form: preamble of 31 MB": lambda: form_request(GENERATION, b"\r\n" * (BODY // 2 - 500) + form(part("a", b"b"))),
    "form: epilogue of 31 MB": lambda: form_request(GENERATION, form(part("a", b"b")) + b"\r\n" * (BODY // 2 - 500)),
    "form: text not UTF-8": lambda: _form(part("text", b"\xff" * (BODY - 1000))),
    "edits: largest good form": lambda: _form(part("prompt", b"a"), part("image", large_image(), "a.png"), path=EDITS),
    "edits: 32 files": lambda: _form(*[part("image[]", bytes(MIB - 200), "a")] * 31, path=EDITS),
    "form: punycode": lambda: form_request(
        GENERATION,
        form(part("text", b"a" * MIB), part("input_image", small_image(), "a.png")),
        (FORM_TYPE[0], f"{FORM_TYPE[1]}; charset=punycode"),
    ),
}


def _raw(image: bytes, path: str = f"{GENERATION}?{QUERY}", kind: str = "image/png") -> Request:
    return Request("POST", path, (("Content-Type", kind),), image)


def _png_of_chunks(count: int) -> bytes:
    good = small_image()
    return good[:IHDR_END] + png_chunk(b"prVt", b"") * count + good[IHDR_END:]


def _jpeg_of_segments(count: int, segment: bytes) -> bytes:
    good = file_of(gradient(), "JPEG")
    return good[:2] + segment * count + good[2:]


def _webp_of_chunks(count: int) -> bytes:
    good = file_of(gradient("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    return good[:30] + b"XXXX\0\0\0\0" * count + good[30:]


IMAGES: Mapping[str, Build] = {
    "largest raw image": lambda: _raw(large_image()),
    "largest raw image, chunks of 100": lambda: _in_chunks(_raw(large_image()), 100),
    "raw image in chunks of 1": lambda: _in_chunks(_raw(large_image(MIB)), 1),
    "raw image of 31 MB": lambda: _raw(large_image(BODY - 1000)),
    "raw image, length 33 MB": lambda: _raw(bytes(BODY + MIB)),
    "PNG of chunks": lambda: _raw(_png_of_chunks(FILE // 12 - 100)),
    "PNG of as many chunks as are taken": lambda: _raw(_png_of_chunks(900)),
    "JPEG of segments": lambda: _raw(_jpeg_of_segments(FILE // 4 - 500, b"\xff\xe5\0\x02"), kind="image/jpeg"),
    "JPEG of fill bytes": lambda: _raw(_jpeg_of_segments(FILE - 1500, b"\xff"), kind="image/jpeg"),
    "WebP of chunks": lambda: _raw(_webp_of_chunks(FILE // 8 - 500), kind="image/webp"),
    "SSE": lambda: Request("POST", f"{GENERATION}?{QUERY}", (IMAGE, ("Accept", "text/event-stream")), large_image()),
    "SSE of 8 images": lambda: Request(
        "POST", f"{GENERATION}?{QUERY}&number_of_images=8", (IMAGE, ("Accept", "text/event-stream")), large_image()
    ),
    "8 images as JSON": lambda: _raw(large_image(), f"{GENERATION}?{QUERY}&number_of_images=8"),
    "edges: largest raw image": lambda: _raw(large_image(), EDGES),
    "edges: PNG of chunks": lambda: _raw(_png_of_chunks(FILE // 12 - 100), EDGES),
}


def _get(path: str, *headers: tuple[str, str]) -> Request:
    return Request("GET", path, headers)


def _long(name: str, value: str, path: str = "/openapi.json") -> Build:
    return lambda: _get(path, (name, (value * HEAD)[:HEAD]))


def _post_with(*headers: tuple[str, str]) -> Request:
    kind: Headers = (IMAGE,) if all(name != "Content-Type" for name, _ in headers) else ()
    return Request("POST", f"{GENERATION}?{QUERY}", (*kind, *headers), small_image())


def _long_in_post(name: str, value: str, start: str = "") -> Build:
    return lambda: _post_with((name, (start + value * HEAD)[:HEAD]))


HEADS: Mapping[str, Build] = {
    "GET /openapi.json": lambda: _get("/openapi.json"),
    "GET /metrics": lambda: _get("/metrics"),
    "GET /docs": lambda: _get("/docs"),
    "GET /docs/swagger-ui-bundle.js": lambda: _get("/docs/swagger-ui-bundle.js"),
    "GET /": lambda: _get("/"),
    "GET /readyz": lambda: _get("/readyz"),
    "Accept of 60 KB of commas": _long_in_post("Accept", ","),
    "Accept of 60 KB of ranges": _long_in_post("Accept", "a/b;q=1,"),
    "Accept of 60 KB of parameters": _long_in_post("Accept", ";q=.1"),
    "many Accepts": lambda: _post_with(*[("Accept", "a/b")] * (HEAD // 16)),
    "many headers": lambda: _post_with(*[("a", "")] * (HEAD // 5)),
    "If-None-Match of 60 KB": _long("If-None-Match", 'W/"a",'),
    "If-None-Match of 60 KB, page": _long("If-None-Match", ",", "/"),
    "Accept-Encoding of 60 KB": _long("Accept-Encoding", "x;q=0,", "/docs/swagger-ui-bundle.js"),
    "Accept-Encoding of 60 KB of spaces": _long("Accept-Encoding", " ", "/docs/swagger-ui-bundle.js"),
    "Prefer of 60 KB": _long_in_post("Prefer", "wait,"),
    "Prefer: wait of 60 KB of digits": _long_in_post("Prefer", "1", "wait="),
    "X-Forwarded-For of 60 KB": _long_in_post("X-Forwarded-For", "1.2.3.4,"),
    "Authorization of 60 KB": _long_in_post("Authorization", "QUJD", "Basic "),
    "Content-Type of 60 KB": _long_in_post("Content-Type", '; a="b"', "multipart/form-data"),
    "Content-Type of 60 KB of quotes": _long_in_post("Content-Type", '\\"', 'multipart/form-data; boundary="'),
    "Content-Type of 60 KB of continuations": _long_in_post("Content-Type", "; a*0*=b", "multipart/form-data"),
    "Content-Encoding of 60 KB": _long_in_post("Content-Encoding", "gzip,"),
    "Host of 60 KB": lambda: _get("/healthz", ("Host", "a:" * (HEAD // 2))),
    "Origin of 60 KB": _long_in_post("Origin", "http://"),
    "traceparent of 60 KB": _long_in_post("traceparent", "00-"),
    "Cookie of 60 KB": _long_in_post("Cookie", "a=b;"),
    "100 requests at once": lambda: Request(
        "GET",
        "/openapi.json",
        (("Connection", "keep-alive"), ("Content-Length", "0")),
        b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 98
        + b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ),
    "100 wrong requests at once": lambda: Request(
        "POST",
        GENERATION,
        (("Connection", "keep-alive"), ("Content-Length", "0")),
        b"POST /generation/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n" * 98
        + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ),
    "path of 60 KB": lambda: _get("/" + "a/" * (HEAD // 2)),
    "path of 60 KB of escapes": lambda: _get("/" + "%2e" * (HEAD // 3)),
    "query of 60 KB of fields": lambda: _raw(small_image(), f"{GENERATION}?" + "a&" * (HEAD // 2)),
    "query of 60 KB of escapes": lambda: _raw(small_image(), f"{GENERATION}?text=" + "%41" * (HEAD // 3)),
    "query of a seed of 60 KB": lambda: _raw(small_image(), f"{GENERATION}?text=a&random_seed=" + "1" * HEAD),
    "progress: a name of 60 KB": lambda: _get("/sdapi/v1/progress?id_task=" + "a" * HEAD),
}

HOSTILE: Mapping[str, Build] = {**JSONS, **FORMS, **IMAGES, **HEADS}
