"""The real service's log, while clients try to write lines of their own into it."""

import base64
import json
import re

from tests.service.raw import exchange, head
from tests.service.running import Service, good_request, png

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+: ")
EVIL = "\n2026-01-01 00:00:00,000 FAKE    contour: \r\x1b[2J\u2028"


def test_no_client_writes_a_line_and_no_prompt_is_logged() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__LOG_LEVEL="debug") as service:
        service.wait_until_ready()
        assert service.generate(text=EVIL).status_code == 200
        broken = base64.b64encode(png(640, 480)[:-200]).decode()
        assert service.generate(text=EVIL, input_image_base64=broken).status_code == 422
        service.client.get("/%0A%1B%5B2JFAKE%E2%80%A8")
        body = json.dumps(good_request(text=EVIL)).encode()
        for name in ("Content-Type", "Prefer", "X-Request-Id", "User-Agent", "Authorization"):
            for evil in ("\tFAKE\x85FAKE", "\x1b[2JFAKE", "\x0bFAKE", "\r FAKE", "\n FAKE", "\0FAKE"):
                exchange(service, head(f"{name}: {evil}", f"Content-Length: {len(body)}") + body)
        for line in (b"FAKE\x1b[2J / HTTP/1.1\r\n\r\n", b"GET /\x1b[2JFAKE\x85 HTTP/1.1\r\n\r\n", b"\x00FAKE\n\n"):
            exchange(service, line)
        service.stop()
    log = "".join(service.log)
    assert all(LINE.match(line) or line.startswith("    ") for line in log.splitlines()), log
    assert "FAKE" not in log
    assert "Traceback" not in log
