"""Requests that once ended the service, stalled it or made it answer 500, and their like: each stays harmless."""

from collections.abc import Mapping

from tests.fuzz.hostile import HOSTILE, Build, small_image
from tests.fuzz.requests import BOUNDARY, CODECS, FORM_TYPE, Request, form, form_request, json_request, part
from tests.fuzz.seeds import file_of, gradient
from tests.fuzz.strategies import EDGES, EDITS, GENERATION, IMAGES, TXT2IMG, good_json

SURROGATE = "\ud800"


def _form(charset: str, text: bytes = b"\\ud800", path: str = GENERATION) -> Build:
    names = ("prompt", "image") if path == EDITS else ("text", "input_image")
    body = form(part(names[0], text), part(names[1], small_image(), "a.png"))
    kind = f"multipart/form-data; boundary={BOUNDARY}; charset={charset}"
    return lambda: form_request(path, body, (FORM_TYPE[0], kind))


def _form_with(more: bytes, content: bytes = b"a") -> Build:
    body = form(part("text", content, more=more), part("input_image", small_image(), "a.png"))
    return lambda: form_request(GENERATION, body)


def _json(path: str = GENERATION, **fields: object) -> Build:
    return lambda: json_request(path, good_json(path) | fields)


def _unit(**fields: object) -> Build:
    body = good_json(TXT2IMG)
    body["alwayson_scripts"]["ControlNet"]["args"][0] |= fields
    return lambda: json_request(TXT2IMG, body)


def _query(query: str, path: str = GENERATION) -> Build:
    return lambda: Request("POST", f"{path}?{query}", (("Content-Type", "image/png"),), small_image())


def _image(image: bytes, kind: str = "image/png", path: str = f"{GENERATION}?text=a") -> Build:
    return lambda: Request("POST", path, (("Content-Type", kind),), image)


def _transparent(mode: str, colour: object) -> bytes:
    return file_of(gradient(mode), "PNG", transparency=colour)


def _large_webp() -> Request:
    """40 megapixels in a hundred bytes, on their side."""
    from PIL import Image

    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    image = file_of(Image.new("RGB", (6324, 6324), (200, 10, 10)), "WEBP", lossless=True, exif=turned)
    return _image(image, "image/webp")()


CHARSETS: Mapping[str, Build] = {
    **{f"form: charset {codec}": _form(codec) for codec in CODECS},
    **{f"edits: charset {codec}": _form(codec, path=EDITS) for codec in CODECS},
    "form: surrogate in UTF-8": _form("utf-8", b"\xed\xa0\x80"),
    "edits: surrogate in UTF-8": _form("utf-8", b"\xed\xa0\x80", EDITS),
    "JSON: surrogate": _json(text=SURROGATE),
    "JSON: surrogate in negative_prompt": _json(negative_prompt=SURROGATE),
    "JSON: surrogate in a number": _json(random_seed=SURROGATE),
    "JSON: surrogate in base64": _json(input_image_base64=SURROGATE),
    "JSON: surrogate as a key": lambda: json_request(GENERATION, good_json(GENERATION) | {SURROGATE: 1}),
    "txt2img: surrogate": _json(TXT2IMG, prompt=SURROGATE),
    "txt2img: surrogates in names": _json(
        TXT2IMG, force_task_id=SURROGATE, sampler_name=SURROGATE, scheduler=SURROGATE
    ),
    "txt2img: surrogate in a script": _json(TXT2IMG, alwayson_scripts={SURROGATE: {"args": [1]}}),
    "txt2img: surrogate in module": _unit(module=SURROGATE),
    "txt2img: surrogate in options": _json(TXT2IMG, override_settings={SURROGATE: SURROGATE}),
    "options: surrogate": lambda: json_request("/sdapi/v1/options", {SURROGATE: SURROGATE}),
    "interrupt: surrogate": lambda: json_request("/sdapi/v1/interrupt", {"id_task": SURROGATE}),
    "query: surrogate": _query("text=%ed%a0%80"),
    "query: not UTF-8": _query("text=%ff"),
    "query: Latin-1": _query("text=\xff"),
    "edges: query of a surrogate": _query("canny_low=%ed%a0%80", EDGES),
    "path: surrogate": lambda: Request("GET", "/%ed%a0%80"),
}

VALUES: Mapping[str, Build] = {
    "txt2img: threshold nan": _unit(threshold_a="nan"),
    "txt2img: threshold inf": _unit(threshold_a="inf"),
    "txt2img: threshold 1e999": _unit(threshold_b="1e999"),
    "txt2img: weight nan": _unit(weight="nan"),
    "txt2img: 600 digits": _json(TXT2IMG, batch_size=10**600, n_iter=10**600),
    "txt2img: 600 digits as texts": _json(TXT2IMG, batch_size="9" * 600, n_iter="9" * 600),
    "txt2img: steps of 4299 digits": _json(TXT2IMG, steps=10**4298),
    "txt2img: weight of 300 digits": _unit(weight=10**300),
    "JSON: NaN": _json(temperature=float("nan")),
    "JSON: infinity as a text": _json(guidance_scale="-inf"),
    "JSON: seed of 4299 digits": _json(random_seed=10**4298),
    "JSON: seed of 4301 digits": lambda: json_request(GENERATION, b'{"random_seed":' + b"9" * 4301 + b"}"),
    "JSON: 10,000 lists deep": lambda: json_request(GENERATION, b'{"a":' + b"[" * 9000),
    "JSON: 9,000 objects deep": lambda: json_request(GENERATION, b'{"a":' * 4000 + b"1" + b"}" * 4000),
    "query: seed of 5000 digits": _query("text=a&random_seed=" + "9" * 5000),
    "query: nan": _query("text=a&temperature=nan&guidance_scale=inf"),
    "edges: threshold of 5000 digits": _query("canny_low=" + "9" * 5000, EDGES),
    "Prefer: wait of 400 digits": lambda: Request(
        "POST", f"{GENERATION}?text=a", (("Content-Type", "image/png"), ("Prefer", "wait=" + "9" * 400)), small_image()
    ),
    "Prefer: wait of other digits": lambda: Request(
        "POST", f"{GENERATION}?text=a", (("Content-Type", "image/png"), ("Prefer", "wait=\xb2")), small_image()
    ),
    "X-Forwarded-For is no address": lambda: json_request(
        GENERATION, good_json(GENERATION), ("X-Forwarded-For", "\xff" * 500)
    ),
    "no body": lambda: Request("POST", GENERATION, (("Content-Type", "application/json"),)),
    **{
        f"form: part of charset {codec}": _form_with(
            f"Content-Type: text/plain; charset={codec}\r\n".encode(), b"\\ud800"
        )
        for codec in CODECS
    },
    "form: encoding of a part": _form_with(b"Content-Transfer-Encoding: quoted-printable\r\n"),
    "form: _charset_": lambda: form_request(
        GENERATION, form(part("_charset_", b"punycode"), part("text", b"a"), part("input_image", small_image(), "a"))
    ),
    "form: file as a text": lambda: form_request(GENERATION, form(part("text", b"a"), part("input_image", b"a"))),
    "form: text as a file": lambda: form_request(
        GENERATION, form(part("text", b"a", "a.txt"), part("input_image", small_image(), "a"))
    ),
}

DECODING: Mapping[str, Build] = {
    "transparent grey of 16 bits": _image(_transparent("I;16", 1)),
    "transparent RGB": _image(_transparent("RGB", (1, 2, 3))),
    "panorama": _image(file_of(gradient().resize((5000, 100)), "PNG")),
    "large WebP": _large_webp,
    **{f"image {number} cut": _image(image[: len(image) * 2 // 3]) for number, image in enumerate(IMAGES)},
}

SEVERE = (
    *("txt2img: 31 MB of {}", "options: 31 MB of keys", "txt2img: script_name of 8 MB", "base64 of spaces"),
    *(
        "txt2img: script_name of 8 MB, not ASCII",
        "deep nesting, 31 MB",
        "deep nesting",
        "most values",
        "form: punycode",
    ),
    *("form: header of 20 MB", "form: headers of 20 MB", "form: header name of 20 MB", "form: file name of quotes"),
    *("form: almost boundaries", "form: boundaries but for the end", "form: file of carriage returns"),
    *("form: parts without end", "integer of 31 MB", "integer of 31 MB as a text", "float of 31 MB", "key of 31 MB"),
    *("Accept of 60 KB of commas", "If-None-Match of 60 KB", "Accept-Encoding of 60 KB", "query of 60 KB of fields"),
    *("Content-Type of 60 KB of quotes", "Content-Type of 60 KB of continuations", "SSE of 8 images"),
    *("raw image in chunks of 1", "form in chunks of 1", "PNG of chunks", "JPEG of segments", "WebP of chunks"),
)


REGRESSIONS: Mapping[str, Build] = {**CHARSETS, **VALUES, **DECODING, **{name: HOSTILE[name] for name in SEVERE}}
