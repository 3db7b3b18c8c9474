"""The real service's log, while clients try to write lines of their own into it."""

import base64
import json
import os
import pty
import re
import subprocess
import sys
from itertools import takewhile

import pytest

from tests.service.raw import exchange, head
from tests.service.running import PATIENCE, ROOT, Service, good_request, png

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+: ")
EVIL = "\n2026-01-01 00:00:00,000 FAKE    contour: \r\x1b[2J\u2028"


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_no_client_writes_a_line_and_no_prompt_is_logged(log_format: str) -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__LOG_LEVEL="debug", SERVER__LOG_FORMAT=log_format) as service:
        service.wait_until_ready()
        assert service.generate(text=EVIL).status_code == 200
        broken = base64.b64encode(png(640, 480)[:-200]).decode()
        assert service.generate(text=EVIL, input_image_base64=broken).status_code == 422
        service.client.get("/%0A%1B%5B2J%E2%80%A8")
        body = json.dumps(good_request(text=EVIL)).encode()
        for name in ("Content-Type", "Prefer", "X-Request-Id", "User-Agent", "Authorization"):
            for evil in ("\tFAKE\x85FAKE", "\x1b[2JFAKE", "\x0bFAKE", "\r FAKE", "\n FAKE", "\0FAKE"):
                exchange(service, head(f"{name}: {evil}", f"Content-Length: {len(body)}") + body)
        for line in (b"FAKE\x1b[2J / HTTP/1.1\r\n\r\n", b"GET /\x1b[2JFAKE\x85 HTTP/1.1\r\n\r\n", b"\x00FAKE\n\n"):
            exchange(service, line)
        service.stop()
    log = "".join(service.log)
    assert all(begins(line) for line in log.splitlines()), log
    assert "FAKE" not in log
    assert "Traceback" not in log


def begins(line: str) -> bool:
    """Whether a line is whole, and one of ours."""
    return bool(LINE.match(line)) or line.startswith("    ") or "message" in json.loads(line)


def test_a_request_has_one_line_with_its_name_stages_and_outcome() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__LOG_FORMAT="json") as service:
        service.wait_until_ready()
        answers = [
            service.generate(),
            service.generate(number_of_images=2),
            service.generate(text=7),
            service.client.post("/generation/", json=good_request(), headers={"accept": "text/event-stream"}),
            service.client.get("/nothing" + 300 * "!"),
        ]
        service.client.get("/metrics")
        service.stop()
    told = [line for line in map(json.loads, service.log) if line["logger"] == "contour.request"]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(told) == len(set(ids)) == len(ids)
    told.sort(key=lambda line: ids.index(line["request"]))  # a stream's line may come when its client is at the next
    assert [(line["status"], line["outcome"], len(line["pictures"]), line["client"]) for line in told] == [
        (200, "done", 1, "127.0.0.1"),
        (200, "done", 2, "127.0.0.1"),
        (422, "invalid-field", 0, "127.0.0.1"),
        (200, "done", 1, "127.0.0.1"),
        (404, "not-found", 0, ""),
    ]
    (picture,) = told[0]["pictures"]
    assert picture.pop("worker") == "cpu0"
    assert picture.keys() == {"queue", "prepare", "denoise", "decode", "encode"}
    assert told[0]["ms"] >= sum(picture.values())
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
