"""The real service's log, while clients try to write lines of their own into it."""

import base64
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import httpx
import pytest

from tests.demo.test_quality import CALM
from tests.service.raw import exchange, head
from tests.service.running import PATIENCE, ROOT, Service, good_request, pixels_of, png, until

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+: ")
EVIL = "\n2026-01-01 00:00:00,000 FAKE    contour: \r\x1b[2J\u2028"


SECRET = "SECRET-7f3a"
KEY = "key-that-nobody-knows"


def logging_in(log_format: str) -> Service:
    """Every line there is, in a format."""
    levels = {"SERVER__LOG_LEVEL": "debug", "SERVER__LOG_FORMAT": log_format}
    return Service("echo", WORKERS__CPU_WORKERS=1, SERVER__MAX_IMAGES=2, **levels)


@pytest.fixture(scope="module")
def programs() -> Iterator[Service]:
    with logging_in("json") as service:
        yield service.wait_until_ready()


@pytest.fixture(scope="module", params=["human", "json"])
def either(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service of each format."""
    if request.param == "json":
        yield request.getfixturevalue("programs")
    else:
        with logging_in(request.param) as service:
            yield service.wait_until_ready()


class Told:
    """The lines that a service logs from now on."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._begin = len(service.log)

    def lines(self) -> list[str]:
        """All until now: what is logged last is waited for."""
        last = self._service.client.get("/readyz/the-last").headers["x-request-id"]
        until(lambda: any(last in line for line in self._service.log[self._begin :]))
        return [line for line in self._service.log[self._begin :] if last not in line]

    def requests(self) -> list[dict[str, Any]]:
        """Those of requests, of a service that logs JSON."""
        return [line for line in map(json.loads, self.lines()) if line["logger"] == "contour.request"]


def test_no_client_writes_a_line_and_no_prompt_is_logged(either: Service) -> None:
    told = Told(either)
    assert either.generate(text=EVIL).status_code == 200
    broken = base64.b64encode(png(640, 480)[:-200]).decode()
    assert either.generate(text=EVIL, input_image_base64=broken).status_code == 422
    either.client.get("/%0A%1B%5B2J%E2%80%A8")
    body = json.dumps(good_request(text=EVIL)).encode()
    for name in ("Content-Type", "Prefer", "X-Request-Id", "User-Agent", "Authorization"):
        for evil in ("\tFAKE\x85FAKE", "\x1b[2JFAKE", "\x0bFAKE", "\r FAKE", "\n FAKE", "\0FAKE"):
            exchange(either, head(f"{name}: {evil}", f"Content-Length: {len(body)}") + body)
    for line in (b"FAKE\x1b[2J / HTTP/1.1\r\n\r\n", b"GET /\x1b[2JFAKE\x85 HTTP/1.1\r\n\r\n", b"\x00FAKE\n\n"):
        exchange(either, line)
    log = "".join(told.lines())
    assert all(begins(line) for line in log.splitlines()), log
    assert "FAKE" not in log
    assert "Traceback" not in log


def begins(line: str) -> bool:
    """Whether a line is whole, and one of ours."""
    return bool(LINE.match(line)) or line.startswith("    ") or "message" in json.loads(line)


def test_a_request_has_one_line_with_its_name_stages_and_outcome(programs: Service) -> None:
    log = Told(programs)
    answers = [
        programs.generate(),
        programs.generate(number_of_images=2),
        programs.generate(text=7),
        programs.client.post("/generation/", json=good_request(), headers={"accept": "text/event-stream"}),
        programs.client.get("/nothing" + 300 * "!"),
    ]
    programs.client.get("/metrics")
    told = log.requests()
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(told) == len(set(ids)) == len(ids)
    told.sort(key=lambda line: ids.index(line["request"]))  # a stream's line may come when its client is at the next
    assert [(line["status"], line["outcome"], len(line["stages"]), line["client"]) for line in told] == [
        (200, "done", 1, "127.0.0.1"),
        (200, "done", 2, "127.0.0.1"),
        (422, "invalid-field", 0, "127.0.0.1"),
        (200, "done", 1, "127.0.0.1"),
        (404, "not-found", 0, ""),
    ]
    (stages,) = told[0]["stages"]
    assert stages.pop("worker") == "cpu0"
    assert stages.keys() == {"queue", "prepare", "denoise", "decode", "encode"}
    assert told[0]["ms"] >= sum(stages.values())
    assert (told[0]["method"], told[0]["path"], len(told[4]["path"])) == ("POST", "/generation/", 200)
    assert told[0]["message"].startswith(f"{told[0]['request']} POST /generation/ 200 done ")


def test_lines_for_requests_can_be_left_out() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__LOG_REQUESTS="false") as service:
        assert service.wait_until_ready().generate().status_code == 200
        service.stop()
    assert not any("contour.request" in line for line in service.log)


def test_a_terminal_gets_lines_for_people_and_all_processes_agree() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "app", "--config", "configs/echo.yaml", "--port", "0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "CONTOUR_WORKERS__CPU_WORKERS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=theirs) as process, os.fdopen(ours) as terminal:
        os.close(theirs)
        lines = iter(terminal.readline, "")
        seen = list(takewhile(lambda line: " Ready: http" not in line, lines))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert len(seen) >= 3
    assert all(LINE.match(line) or line.startswith("    ") for line in seen), seen


def test_a_refusal_says_why_without_what_the_client_sent(either: Service) -> None:
    """The code, the fields and what they must be; where the answer quotes the client, the log has dots."""
    told = Told(either)
    client, image, as_png = either.client, png(64, 64), {"Content-Type": "image/png"}
    refused: dict[str, Callable[[], httpx.Response]] = {
        "text is a list; it must be": lambda: either.generate(text=[SECRET]),
        "steps is 9999; it must be from 1 to 50": lambda: either.generate(text=SECRET, steps=9999),
        "guidance_scale is ...; it must be a number": lambda: either.generate(guidance_scale=SECRET),
        "which is not an image": lambda: either.generate(input_image_base64=SECRET),
        "There is nothing at ...": lambda: client.get("/nothing?" + SECRET),
        "The Host header is ...": lambda: client.get("/", headers={"Host": SECRET}),
        "The body is ...": lambda: client.post("/generation/", headers={"Content-Type": SECRET}),
        "The script ... is on": lambda: client.post(
            "/sdapi/v1/txt2img", json={"prompt": SECRET, "alwayson_scripts": {SECRET: {"args": [True]}}}
        ),
        "There is no model ... here": lambda: client.get(f"/v1/models/{SECRET}"),
        "canny_low is 0": lambda: client.post(f"/edges?canny_low=0&note={SECRET}", content=image, headers=as_png),
        "JSON": lambda: client.post(
            "/generation/", content=f'{{"text": "{SECRET}', headers={"Content-Type": "application/json"}
        ),
    }
    answers = {reason: ask() for reason, ask in refused.items()}
    log = told.lines()
    lines = {line for line in log if "contour.request" in line}
    for reason, answer in answers.items():
        assert answer.status_code >= 400, reason
        (line,) = (line for line in lines if answer.headers["X-Request-Id"] in line)
        fields = json.loads(line) if line.startswith("{") else {}
        assert reason in fields.get("reason", line), line
        assert len(fields.get("reason", "")) <= 300
        assert str(answer.status_code) in line
    quoted = [line for line in log if SECRET in line]
    assert [line for line in quoted if f"/v1/models/{SECRET}" not in line] == []  # a path is logged as it is


def test_no_key_is_logged() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__API_KEY=KEY, SERVER__LOG_LEVEL="debug") as service:
        service.wait_until_ready()
        for key in (KEY, KEY + SECRET, SECRET):
            service.client.post("/generation/", json=good_request(), headers={"Authorization": f"Bearer {key}"})
            service.client.post("/generation/", json=good_request(), headers={"X-API-Key": key})
        service.stop()
    log = "".join(service.log)
    assert log.count("401 unauthorized") == 4
    assert KEY not in log
    assert SECRET not in log


def test_a_connection_that_never_became_a_request_has_its_reason_in_the_log(programs: Service) -> None:
    log = Told(programs)
    exchange(programs, b"SECRET / FTP\r\n\r\n")
    exchange(programs, head("Long: " + 70_000 * "x"))
    told = log.requests()
    assert [(line["status"], line["outcome"], line["client"]) for line in told] == [
        (400, "malformed-http", "127.0.0.1"),
        (431, "head-too-large", "127.0.0.1"),
    ]
    assert all(line["reason"] for line in told)
    assert "SECRET" not in str(told)


@pytest.mark.slow
def test_a_requests_line_has_the_number_size_and_steps_of_its_images() -> None:
    """What is carried out, whatever was asked for: the size is the result's, and steps that are not given are ours."""
    with Service("demo", SERVER__LOG_FORMAT="json", ENGINE__SAMPLER__STEPS=2, **CALM) as service:
        service.wait_until_ready()
        wide = base64.b64encode(png(200, 100)).decode()
        answers = [service.generate(), service.generate(steps=3, number_of_images=2, input_image_base64=wide)]
        refused = service.client.post("/generation/", json=good_request(), headers={"Prefer": "wait=0"})
        service.stop()
    assert refused.status_code in (503, 504)
    told = [line for line in map(json.loads, service.log) if line["logger"] == "contour.request"]
    asked = [(line["images"], line["steps"], line["width"], line["height"]) for line in told]
    assert asked == [(1, 2, 256, 256), (2, 3, 512, 256), (1, 2, 256, 256)]
    for answer, line in zip(answers, told, strict=False):
        pixels = pixels_of(base64.b64decode(answer.json()["output_image_base64"]))
        assert pixels.shape[:2] == (line["height"], line["width"])
    assert "1 image of 256x256 in 2 steps" in told[0]["message"]
    assert "2 images of 512x256 in 3 steps" in told[1]["message"]
    assert told[2]["reason"]


def test_edges_for_a_slider_are_debug_unless_they_are_refused(echo: Service, programs: Service) -> None:
    for service, levels in ((echo, ["INFO"]), (programs, ["debug", "info"])):
        log, headers = Told(service), {"Content-Type": "image/png"}
        assert service.client.post("/edges", content=png(64, 64), headers=headers).status_code == 200
        assert service.client.post("/edges", content=b"no image", headers=headers).status_code == 422
        told = [line for line in log.lines() if "contour.request" in line]
        assert len(told) == len(levels)
        assert all(level in line for level, line in zip(levels, told, strict=True))
        assert "invalid-image" in told[-1]
