"""The wire contract, over a real socket."""

import base64
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from shutil import which

import numpy as np
import pytest

from tests.service.running import Service, file_of, good_request, png, result_pixels


@pytest.mark.parametrize("path", ["/generation/", "/generation"])
def test_both_paths_answer_directly(echo: Service, path: str) -> None:
    response = echo.client.post(path, json=good_request(request_id=42))
    assert response.status_code == 200
    assert response.json().keys() == {"request_id", "output_image_base64"}
    assert response.json()["request_id"] == 42


def test_the_image_that_comes_back_is_the_one_that_was_sent(echo: Service) -> None:
    pixels = result_pixels(echo.generate(input_image_base64=base64.b64encode(png(96, 64)).decode()))
    assert pixels.shape == (64, 96, 3)
    assert (pixels[20, 30], pixels[60, 90]) == (pytest.approx([220] * 3), pytest.approx([40] * 3))


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**64 - 1, -(2**63), 10**30])
def test_request_ids_come_back_as_they_went(echo: Service, number: int) -> None:
    assert echo.generate(request_id=number).json()["request_id"] == number


@pytest.mark.parametrize("seed", [0, 2**64 - 1, -(2**63), "1234", "-9223372036854775808"])
def test_seeds_of_the_whole_range_and_as_digits_are_taken(echo: Service, seed: object) -> None:
    assert echo.generate(random_seed=seed, request_id="77").json()["request_id"] == 77


def test_a_data_prefix_and_whitespace_in_base64_are_tolerated(echo: Service) -> None:
    encoded = base64.encodebytes(png(64, 64)).decode()
    assert "\n" in encoded
    assert echo.generate(input_image_base64=encoded).status_code == 200
    assert echo.generate(input_image_base64="data:image/png;base64," + encoded).status_code == 200


def test_escaped_slashes_in_base64_are_what_json_says_they_are(echo: Service) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    body = json.dumps(good_request(input_image_base64=base64.b64encode(file_of(noise)).decode()))
    assert "/" in body.partition("input_image_base64")[2]
    headers = {"content-type": "application/json"}
    response = echo.client.post("/generation/", content=body.replace("/", "\\/"), headers=headers)
    assert np.array_equal(result_pixels(response), noise)


def test_unknown_fields_are_ignored(echo: Service) -> None:
    assert echo.generate(strength=0.5, nested={"a": [1, None]}).status_code == 200


@pytest.mark.parametrize("text", ["", "ein rotes Haus", "赤い円", "🎈" * 50, "مربع أحمر", "a\x00b\x07\n"])
def test_any_text_is_taken(echo: Service, text: str) -> None:
    assert echo.generate(text=text).status_code == 200


def test_an_answer_names_its_request_and_its_stages(echo: Service) -> None:
    first, second = echo.generate(), echo.generate()
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
    stages = dict(part.split(";dur=") for part in first.headers["Server-Timing"].split(", "))
    assert stages.keys() == {"queue", "prepare", "denoise", "decode", "encode", "total"}
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())
    assert float(stages["total"]) >= float(stages["prepare"])


def test_the_bodys_type_may_carry_a_charset(echo: Service) -> None:
    body = echo.client.build_request("POST", "/generation/", json=good_request()).content
    for headers in ({"content-type": "application/json; charset=utf-8"}, {"content-type": "application/ld+json"}):
        assert echo.client.post("/generation/", content=body, headers=headers).status_code == 200


def test_a_body_in_chunks_is_taken(echo: Service) -> None:
    body = echo.client.build_request("POST", "/generation/", json=good_request()).content
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    headers = {"content-type": "application/json"}
    assert echo.client.post("/generation/", content=pieces, headers=headers).status_code == 200


def test_health_is_there(echo: Service) -> None:
    assert echo.client.get("/healthz").json() == {"status": "ok"}
    response = echo.client.get("/readyz")
    body = response.json()
    assert (response.status_code, body["ready"], body["draining"]) == (200, True, False)
    assert [(worker["id"], worker["state"], worker["device"]) for worker in body["workers"]] == [
        ("cpu0", "ready", "CPU"),
        ("cpu1", "ready", "CPU"),
    ]
    assert not [worker for worker in body["workers"] if "process" in worker]
    assert "CUDA_VISIBLE_DEVICES" in body["placement"]
    assert "the echo engine has no networks" in body["runtime"]


def test_plain_curl_gets_an_image(echo: Service) -> None:
    if which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sSf", f"{echo.url}/generation/", "-H", "Content-Type: application/json", "-d", "@-"]
    done = subprocess.run(
        command,
        input=echo.client.build_request("POST", "/", json=good_request()).content,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"output_image_base64" in done.stdout


def test_sixteen_clients_at_once_each_get_their_own_image(echo: Service) -> None:
    def ask(number: int) -> bool:
        pixels = np.full((64, 64, 3), number * 10, np.uint8)
        encoded = base64.b64encode(file_of(pixels)).decode()
        response = echo.generate(request_id=number, input_image_base64=encoded)
        return response.json()["request_id"] == number and bool(np.array_equal(result_pixels(response), pixels))

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(ask, range(16)))
