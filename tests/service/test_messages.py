"""Messages about a client's mistakes: what was found and what to send, in every interface, all at once."""

import base64
import json
import re
import socket

import pytest

from tests.service.messages import ENCODED, FOOT, NAME, PNG, blamed, told
from tests.service.running import Service, good_request

# A body that should be JSON; what must stand in the message.
BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "The body is empty. Send a JSON object."),
    "space": (b" \n", "The body is empty."),
    "single quotes": (b"{'text': 'a'}", 'Line 1, column 2: found "\'". JSON uses double quotes'),
    "typographic quotes": ("{\n“text”: 1}".encode(), "Line 2, column 1: found '“'. JSON uses straight double quotes"),
    "a comma at the end": (b'{\n "text": "a",\n}', "Line 3, column 1: found '}'. Remove the comma before it."),
    "a comma at the end of a list": (b'{"x": [1,]}', "found ']'. Remove the comma before it."),
    "a comma that is missing": (b'{"text": "a"\n "x": 1}', "Line 2, column 2: found '\"'. Put a comma"),
    "a colon that is missing": (b'{"text" "a"}', "Put a colon after the name of the field."),
    "names without quotes": (b"{text: 1}", "found 'text'. Put the names of fields in double quotes."),
    "text without quotes": (b'{"text": circle}', "found 'circle'. Put text in double quotes."),
    "NaN": (b'{"guidance_scale": NaN}', "found 'NaN'. JSON has no such number; leave the field out."),
    "Infinity": (b'{"guidance_scale": -Infinity}', "found '-Infinity'. JSON has no such number"),
    "Python's True": (b'{"x": True}', "found 'True'. Write true."),
    "Python's None": (b'{"x": None}', "found 'None'. Write null."),
    "JavaScript's undefined": (b'{"x": undefined}', "found 'undefined'. Write null."),
    "a leading zero": (b'{"steps": 05}', "Write numbers like 12, 0.5 or -3"),
    "a plus sign": (b'{"steps": +5}', "Write numbers like 12, 0.5 or -3"),
    "hexadecimal": (b'{"steps": 0x5}', "Write numbers like 12, 0.5 or -3"),
    "a comment": (b'{"x": 1 /* one */}', ""),
    "a comment first": (b'{ // one\n"x": 1}', "found '/'. JSON has no comments."),
    "a line break in a text": (b'{"text": "a\nb"}', r"write line breaks as \n and tabs as \t."),
    "a path of Windows": (b'{"text": "C:\\images"}', "write a backslash as"),
    "half of it": (b'{"text": "a', "The JSON is cut off: it ends after 11 bytes, before it is complete."),
    "two of it": (b'{"text": "a"}{"text": "b"}', "found '{'. The JSON ends before that"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), "The body is text in UTF-16 or UTF-32. Send it as UTF-8."),
    "UTF-16 without a mark": ('{"text": "a"}'.encode("utf-16-le"), "The body is text in UTF-16 or UTF-32."),
    "UTF-32": ('{"text": "a"}'.encode("utf-32"), "The body is text in UTF-16 or UTF-32."),
    "a form": (b"--x\r\nContent-Disposition: form-data", "The body is a form (multipart/form-data), not JSON."),
    "a URL-encoded form": (b"text=a+circle&random_seed=1", "The body is a URL-encoded form, not JSON."),
    "an image": (PNG, "The body is an image file, not JSON."),
    "a page": (b"<html></html>", "The body is HTML or XML, not JSON."),
    "a file name of curl's": (b"@request.json", "The body is the name of a file, not its content."),
}
JSON_PATHS = ("/generation/", "/edges", "/sdapi/v1/txt2img", "/v1/images/edits")


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_json_is_told_where_and_what_to_send(echo: Service, body: bytes, words: str) -> None:
    for path in JSON_PATHS:
        answer = echo.client.post(path, content=body, headers=FOOT)
        assert answer.status_code == 400
        assert words in told(answer)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "The body is a list; send a JSON object"),
        (b'"hello"', "The body is 'hello'; send a JSON object"),
        (b"5", "The body is 5; send a JSON object"),
        (b"null", "The body is null; send a JSON object"),
        (
            b'"{\\"text\\": 1}"',
            "The body is a JSON string that contains JSON: it was encoded twice. Send the object itself.",
        ),
    ],
)
def test_a_body_that_is_no_object_is_told_so_and_no_field_is_blamed(echo: Service, body: bytes, words: str) -> None:
    for path in JSON_PATHS:
        answer = echo.client.post(path, content=body, headers=FOOT)
        assert words in told(answer)
        assert "errors" not in answer.json() or path == "/sdapi/v1/txt2img"


def test_emoji_as_json_escapes_them_are_no_fault(echo: Service) -> None:
    body = json.dumps(good_request(text="a cat \U0001f431")).encode()
    assert b"\\ud83d\\udc31" in body
    assert echo.client.post("/generation/", content=body, headers=FOOT).status_code == 200
    answer = echo.client.post("/generation/", content=body[:-1] + b",}", headers=FOOT)
    assert "Remove the comma before it." in told(answer)


@pytest.mark.parametrize(
    ("path", "field"),
    [("/generation/", "text"), ("/sdapi/v1/txt2img", "prompt"), ("/v1/images/edits", "prompt"), ("/edges", NAME)],
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("café".encode("latin-1"), "the byte 0xE9 is not UTF-8. Send text as UTF-8."),
        (rb"a\ud83d", "half of a surrogate"),
    ],
)
def test_text_that_is_none_is_told_where(echo: Service, path: str, field: str, text: bytes, words: str) -> None:
    body = b'{\n"%b": "%b"}' % (field.encode(), text)
    message = told(echo.client.post(path, content=body, headers=FOOT))
    assert words in message
    assert re.match(rf"Line 2, column \d+:|In {NAME}, line 1, column \d+:", message) or path == "/v1/images/edits"


def test_a_byte_order_mark_is_taken(echo: Service) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(good_request()).encode()
    assert echo.client.post("/generation/", content=body, headers=FOOT).status_code == 200
    body = b"\xef\xbb\xbf" + json.dumps({NAME: ENCODED}).encode()
    assert echo.client.post("/edges", content=body, headers=FOOT).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("multipart/form-data; boundary=x", b'{"text": "a"}', "The body is JSON, not a form."),
        ("multipart/form-data", b'{"text": "a"}', "The Content-Type has no boundary"),
        ("multipart/form-data; boundary=x", b"text=a", "does not begin with the boundary"),
        ("multipart/form-data; boundary=x", b"--y\r\n", "The form is damaged, or its boundary differs"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--", "has no name"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 40 + b"--x--",
            "The form has more than 32 parts",
        ),
        (
            "application/x-www-form-urlencoded",
            b'{"text": "a"}',
            "curl -d sends it unless -H sets another",
        ),
    ],
)
def test_a_form_that_is_none_is_told_so(echo: Service, kind: str, body: bytes, words: str) -> None:
    for path in ("/generation/", "/v1/images/edits"):
        assert words in told(echo.client.post(path, content=body, headers={"Content-Type": kind}))


def test_a_form_whose_image_has_another_name_is_told_both(echo: Service) -> None:
    answer = echo.client.post("/generation/", data={"text": "x"}, files={"file": ("a.png", PNG)})
    assert "The form has no file called input_image. You sent file: call it input_image." in told(answer)


def test_all_faults_of_a_body_come_in_one_answer(echo: Service) -> None:
    wrong = {"steps": "twenty", "guidance_scale": 51, "temperature": [1], "text": None, "random_seed": 2**64}
    answer = echo.generate(**wrong, input_image_base64="https://example.com/cat.png")
    body = answer.json()
    found = {each["field"]: each["detail"] for each in body["errors"]}
    assert found == {
        "steps": "steps is 'twenty'; it must be a whole number from 1 to 50.",
        "guidance_scale": "guidance_scale is 51.0; it must be from 0 to 50.",
        "temperature": "temperature is a list; it must be a number above 0 and at most 1.",
        "text": "text is null; it must be text.",
        "random_seed": f"random_seed is {2**64}; it must be from -9223372036854775808 to 18446744073709551615.",
        NAME: f"{NAME} is a URL; this service does not fetch images: send the file's bytes as base64.",
    }
    assert answer.status_code == 422
    assert all(detail in body["detail"] for detail in found.values())


def test_all_faults_of_a_form_and_of_a_query_come_in_one_answer(echo: Service) -> None:
    wrong = {"steps": "0", "guidance_scale": "high", "number_of_images": "9"}
    form = echo.client.post("/generation/", data=wrong, files={"input_image": b"GIF89a" + bytes(50)})
    query = echo.client.post(
        "/generation/", params=wrong, content=b"GIF89a" + bytes(50), headers={"Content-Type": "image/png"}
    )
    for answer, image in ((form, "input_image"), (query, "body")):
        assert set(blamed(answer)) == {"text", *wrong, image}
        assert "this is a GIF image" in told(answer)


def test_all_faults_of_an_edit_and_of_edges_come_in_one_answer(echo: Service) -> None:
    edit = echo.client.post("/v1/images/edits", data={"n": "x", "steps": "99"}, files={"image": b"GIF89a" + bytes(50)})
    message = told(edit)
    assert edit.json()["error"]["param"] in {"n", "prompt"}
    for words in ("prompt is missing.", "n is 'x'", "steps is 99", "this is a GIF image"):
        assert words in message
    edges = echo.client.post("/edges", json={NAME: "cat.png", "canny_low": 0, "canny_high": "x"})
    assert set(blamed(edges)) == {NAME, "canny_low", "canny_high"}
    edges = echo.client.post("/edges?canny_low=0", content=b"GIF89a" + bytes(50), headers={"Content-Type": "image/png"})
    assert set(blamed(edges)) == {"body", "canny_low"}


def test_all_faults_of_a_txt2img_request_come_in_one_answer(echo: Service) -> None:
    unit = {"module": "canny", "image": "cat.png"}
    body = {"prompt": 5, "steps": "x", "batch_size": 0, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    message = told(echo.client.post("/sdapi/v1/txt2img", json=body))
    for words in ("prompt is 5; it must be text.", "steps is 'x'", "batch_size is 0", "image is a path"):
        assert words in message


def test_faults_of_a_txt2img_request_and_of_its_unit_are_told_together(echo: Service) -> None:
    unit = {"module": "canny", "image": "https://example.com/cat.png"}
    body = {"prompt": "x", "steps": 99, "enable_hr": True, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    message = told(echo.client.post("/sdapi/v1/txt2img", json=body))
    for words in ("steps is 99; it must be from 1 to 50.", "enable_hr is true, but", "image is a URL"):
        assert words in message


def test_all_faults_of_a_unit_come_in_one_answer(echo: Service) -> None:
    unit = {"module": "depth", "model": "openpose", "guidance_start": 0.5, "control_mode": 2, "input_mode": "batch"}
    others = {"image": "cat.png", "mask": "https://example.com/mask.png", "weight": "x"}
    body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [unit | others]}}}
    message = told(echo.client.post("/sdapi/v1/txt2img", json=body))
    for words in (*(f"{name} is " for name in unit), "image is a path", "mask is a URL", "weight is 'x'"):
        assert words in message


def test_all_faults_of_a_detect_request_come_in_one_answer(echo: Service) -> None:
    wrong = {"controlnet_threshold_a": 5000, "controlnet_threshold_b": 9000, "controlnet_processor_res": 7}
    body = {"controlnet_module": "canny", "controlnet_input_images": [], **wrong}
    message = told(echo.client.post("/controlnet/detect", json=body))
    for name in (*wrong, "controlnet_input_images"):
        assert name in message
    body["controlnet_input_images"] = [ENCODED, "cat.png", base64.b64encode(b"GIF89a" + bytes(50)).decode()]
    message = told(echo.client.post("/controlnet/detect", json=body))
    for words in (*wrong, "controlnet_input_images[1] is a path", "this is a GIF image"):
        assert words in message


def test_an_answer_stays_small_however_many_faults_there_are(echo: Service) -> None:
    long = "\\\"'\u202e" * 500
    names = ("steps", "guidance_scale", "control_scale", "canny_low", "canny_high", "temperature", "number_of_images")
    wrong = dict.fromkeys([*names, "priority", "random_seed", "request_id"], long)
    answer = echo.generate(**wrong, text=5, negative_prompt=5)
    assert answer.json()["errors"]
    assert told(answer)


def test_a_field_that_is_given_twice_and_wrong_once_is_named(echo: Service) -> None:
    body = json.dumps(good_request(steps=5)).encode().replace(b'"steps": 5', b'"steps": "x", "steps": 5')
    answer = echo.client.post("/generation/", content=body, headers=FOOT)
    assert "steps is given more than once" in told(answer)
    assert blamed(answer) == ["steps"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "The body has no Content-Type; send JSON (application/json)"),
        ({"Content-Type": "image/heic"}, "The body is 'image/heic'; send JSON (application/json)"),
        ({"Content-Type": "text/plain"}, "The body is 'text/plain'; send JSON (application/json)"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, "The body is compressed ('gzip'); send it uncomp"),
    ],
)
def test_a_body_of_a_type_that_is_not_taken_is_told_which_are(
    echo: Service, headers: dict[str, str], words: str
) -> None:
    for path in ("/generation/?text=x", "/edges"):
        answer = echo.client.post(path, content=PNG, headers=headers)
        assert answer.status_code == 415
        assert words.replace("JSON (application/json)", "") in told(answer)


def test_a_body_that_is_too_large_is_told_what_to_do(echo: Service) -> None:
    answer = echo.client.post("/generation/", content=b" " * (33 * 2**20), headers=FOOT)
    assert answer.status_code == 413
    assert "(server.max_body_bytes). Scale it down, or save it as a JPEG." in told(answer)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "This port does not speak TLS"),
        (b"hello\r\n\r\n", "does not begin with an HTTP method"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "This port speaks HTTP/1.1"),
        (b"GET /a b HTTP/1.1\r\n\r\n", "a space in a path is written %20"),
        (b"GET \xff HTTP/1.1\r\n\r\n", "percent-encode them"),
        (b"GET / HTTP/1.1\nHost: a\n\n", "Each line must end with a carriage return"),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", "it must be NAME: VALUE"),
        (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", "has a control character"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "Content-Length must be a number"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "more than one Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "not both"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "The only supported Transfer-Encoding is chunked"),
        (
            b"POST /edges HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "each chunk is its size",
        ),
    ],
)
def test_invalid_http_is_explained(echo: Service, sent: bytes, words: str) -> None:
    host, port = echo.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    problem = json.loads(body)
    assert problem["type"] == "urn:contour:problem:malformed-http"
    assert words in problem["detail"]
    assert not re.search("encountered|Expected|Invalid", problem["detail"])
