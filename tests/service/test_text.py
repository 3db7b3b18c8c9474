"""Text is UTF-8 in every form of a request: no codec of a client's choice decodes it; half a surrogate is refused."""

import base64
import json
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.fuzz import requests
from tests.fuzz.requests import CODECS
from tests.service.running import Service, good_request, png

SURROGATE = b"\xed\xa0\x80"  # U+D800, as UTF-8 would have it if it were a character
IMAGE = base64.b64encode(png(64, 64)).decode()


def form(
    service: Service, path: str, file: str, texts: dict[str, bytes], kind: str = "multipart/form-data; boundary=X"
) -> httpx.Response:
    parts = [requests.part(name, text) for name, text in texts.items()]
    body = requests.form(*parts, requests.part(file, png(64, 64), "x.png"), boundary="X")
    return service.client.post(path, content=body, headers={"Content-Type": kind})


def in_form(service: Service, text: bytes) -> httpx.Response:
    return form(service, "/generation/", "input_image", {"text": text})


def in_edit(service: Service, text: bytes) -> httpx.Response:
    return form(service, "/v1/images/edits", "image", {"prompt": text})


def in_query(service: Service, text: bytes) -> httpx.Response:
    percent = "".join(f"%{byte:02X}" for byte in text)
    return service.client.post(
        f"/generation/?text={percent}", content=png(64, 64), headers={"Content-Type": "image/png"}
    )


def in_json(service: Service, text: bytes) -> httpx.Response:
    body = json.dumps(good_request(text="@")).encode().replace(b'"@"', b'"%b"' % text)
    return service.client.post("/generation/", content=body, headers={"Content-Type": "application/json"})


def in_txt2img(service: Service, text: bytes) -> httpx.Response:
    unit = {"module": "canny", "image": IMAGE}
    body = json.dumps({"prompt": "@", "alwayson_scripts": {"controlnet": {"args": [unit]}}}).encode()
    kind = {"Content-Type": "application/json"}
    return service.client.post("/sdapi/v1/txt2img", content=body.replace(b'"@"', b'"%b"' % text), headers=kind)


FORMS = (in_form, in_edit, in_query, in_json, in_txt2img)


def check_unharmed(service: Service) -> None:
    assert service.generate().status_code == 200
    ready = service.readiness()
    assert (ready["running"], ready["queued"]) == (0, 0)
    assert [worker["restarts"] for worker in ready["workers"]] == [0, 0]


@pytest.mark.parametrize("send", FORMS)
@pytest.mark.parametrize("text", [SURROGATE, b"caf\xe9", b"\xff\xfea\0"], ids=["surrogate", "latin-1", "utf-16"])
def test_text_that_is_not_utf8_is_refused(
    echo: Service, send: Callable[[Service, bytes], httpx.Response], text: bytes
) -> None:
    refused = send(echo, text)
    assert refused.status_code in {400, 422}, refused.text
    assert len(refused.content) < 4096
    check_unharmed(echo)


@pytest.mark.parametrize("send", [in_json, in_txt2img])
def test_half_a_surrogate_in_an_escape_is_refused(
    echo: Service, send: Callable[[Service, bytes], httpx.Response]
) -> None:
    for text in (rb"\ud800", rb"\udc00\ud800", rb"a\ud83d"):
        assert send(echo, text).status_code in {400, 422}
    check_unharmed(echo)


@pytest.mark.parametrize("send", FORMS)
def test_any_character_is_taken(echo: Service, send: Callable[[Service, bytes], httpx.Response]) -> None:
    assert send(echo, "ein rotes Herz, 红心, \U0001f9e1, \u202e".encode()).status_code == 200


@pytest.mark.parametrize("charset", CODECS)
@pytest.mark.parametrize(
    ("path", "file", "name"), [("/generation/", "input_image", "text"), ("/v1/images/edits", "image", "prompt")]
)
def test_a_charset_in_a_forms_type_changes_nothing(
    echo: Service, charset: str, path: str, file: str, name: str
) -> None:
    kind = f"multipart/form-data; boundary=X; charset={charset}"
    assert form(echo, path, file, {name: rb"\ud800"}, kind).status_code == 200  # six characters of plain ASCII
    refused = form(echo, path, file, {name: SURROGATE}, kind)
    assert refused.status_code in {400, 422}
    check_unharmed(echo)


def test_a_slow_codec_is_not_used(echo: Service) -> None:
    def processor_seconds() -> float:
        times = psutil.Process(echo.process.pid).cpu_times()
        return float(times.user + times.system)

    before = processor_seconds()
    kind = "multipart/form-data; boundary=X; charset=punycode"
    assert form(echo, "/generation/", "input_image", {"text": b"a" * 2**20}, kind).status_code == 400
    assert processor_seconds() - before < 3  # it took 7


@pytest.mark.parametrize("boundary", ["", '""', "a" * 71, '"a\\"b"', "a\xe9", '" "'])
def test_a_boundary_that_is_none_is_refused(echo: Service, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}".encode("latin-1")
    refused = echo.client.post("/generation/", content=b"--X--\r\n", headers={b"Content-Type": kind})
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:contour:problem:malformed-form")


def test_messages_quote_little_and_answers_are_small(echo: Service) -> None:
    long = "x" * 3_000_000
    sent = [
        echo.generate(random_seed=10**600),
        echo.generate(random_seed="9" * 600),
        echo.generate(steps=10**600),
        echo.generate(temperature="9" * 600),
        echo.generate(input_image_base64=long + "!"),
        echo.generate(input_image_base64=[long]),
        echo.generate(text=long),
        echo.client.post(f"/{long[:50_000]}"),
        echo.client.post("/generation/", content=b"", headers={"Content-Type": long[:50_000]}),
        echo.client.post("/generation/", content=b"", headers={"Content-Encoding": long[:50_000]}),
        echo.client.post("/generation/", json=good_request(), headers={"Origin": f"http://{long[:50_000]}"}),
        echo.client.post("/generation/", json=good_request(), headers={"Host": long[:50_000]}),
        form(echo, "/generation/", "input_image", {"x" * 5000: b"\xff", "text": b"x"}),
        form(echo, "/generation/", "input_image", {"text": b"x", "steps": b"9" * 100_000}),
    ]
    for answer in sent:
        assert 400 <= answer.status_code < 500, answer.status_code
        assert len(answer.content) <= 4096
        assert "x" * 200 not in answer.text
        assert "9" * 200 not in answer.text
    check_unharmed(echo)


def test_json_of_a_great_many_values_is_refused_before_it_is_built(echo: Service) -> None:
    for body in (b'{"x":[%b]}' % (b"{}," * 2**20 + b"{}"), b"[" * 2**20, b'{"x":[%b]}' % (b"[],[[]]," * 2**18 + b"0")):
        refused = echo.client.post("/generation/", content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code in {400, 422}
        assert refused.json()["type"] in {"urn:contour:problem:malformed-json", "urn:contour:problem:invalid-field"}
    check_unharmed(echo)
