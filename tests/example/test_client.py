"""The example client, run as a person runs it, against a server that answers as the service does or in worse ways."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "example"
JPEG = b"\xff\xd8\xff\xe0 an image"


@dataclass
class Service:
    """A stand-in that keeps what it is asked and answers with what `answer` makes of it: status, type, body."""

    answer: Callable[[dict[str, Any]], tuple[int, str, bytes]]
    url: str = ""
    about: dict[str, str] | None = None  # what `/settings.json` says of the model
    asked: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[dict[str, Any]], tuple[int, str, bytes]]) -> Iterator[Service]:
    service = Service(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.asked.append((self.path, self.headers["Content-Type"], content))
            status, media_type, body = service.answer(content)
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            body = json.dumps({"about": service.about}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)


def image(content: dict[str, Any]) -> tuple[int, str, bytes]:
    """The service's answer."""
    body = {"request_id": content["request_id"], "output_image_base64": base64.b64encode(JPEG).decode()}
    return 200, "application/json", json.dumps(body).encode()


def test_the_image_is_saved_and_named(tmp_path: Path) -> None:
    with serving(image) as service:
        done = client(tmp_path, "--url", service.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/output.jpg\n"
    assert (tmp_path / "output.jpg").read_bytes() == JPEG


def test_an_address_needs_no_scheme(tmp_path: Path) -> None:
    with serving(image) as service:
        done = client(tmp_path, "--url", service.url.removeprefix("http://"))

    assert (done.returncode, done.stderr) == (0, "")


def test_the_client_sends_the_wire_format(tmp_path: Path) -> None:
    (tmp_path / "my.png").write_bytes(b"any bytes")
    with serving(image) as service:
        client(tmp_path, "--url", f"{service.url}/", "--image", "my.png", "--prompt", "a ring", "--seed", "-7")

    [(path, media_type, content)] = service.asked
    assert (path, media_type) == ("/generation/", "application/json")
    assert isinstance(content.pop("request_id"), int)
    assert content == {
        "text": "a ring",
        "input_image_base64": base64.b64encode(b"any bytes").decode(),
        "random_seed": -7,
    }


def test_an_edge_map_is_called_one(tmp_path: Path) -> None:
    with serving(image) as service:
        client(tmp_path, "--url", service.url, "--control-image", "edges")

    [(_, _, content)] = service.asked
    assert content["control_image"] == "edges"


def test_warnings_of_the_service_are_printed(tmp_path: Path) -> None:
    def warned(content: dict[str, Any]) -> tuple[int, str, bytes]:
        status, kind, body = image(content)
        return status, kind, json.dumps({**json.loads(body), "warnings": ["The prompt was cut."]}).encode()

    with serving(warned) as service:
        done = client(tmp_path, "--url", service.url)

    assert (done.returncode, done.stderr) == (0, "The prompt was cut.\n")


def test_what_the_model_can_draw_is_printed(tmp_path: Path) -> None:
    with serving(image) as service:
        service.about = {"text": "It knows circles."}
        done = client(tmp_path, "--url", service.url)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/output.jpg\n", "It knows circles.\n")


def test_its_own_image_is_found_from_anywhere(tmp_path: Path) -> None:
    with serving(image) as service:
        client(tmp_path, "--url", service.url)

    [(_, _, content)] = service.asked
    assert base64.b64decode(content["input_image_base64"]) == (EXAMPLE / "input.png").read_bytes()


def test_its_own_image_is_a_colour_image_with_edges() -> None:
    pixels = cv2.imread(str(EXAMPLE / "input.png"))

    assert pixels is not None
    assert pixels.shape == (512, 512, 3)
    assert np.count_nonzero(cv2.Canny(pixels, 100, 200)) > 1000


def test_the_file_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    with serving(image) as service:
        done = client(tmp_path, "--url", service.url, "--out", "new.jpg")

    assert done.stdout == f"{tmp_path}/new.jpg\n"
    assert (tmp_path / "new.jpg").read_bytes() == JPEG


def test_a_refusal_is_told_in_the_servers_words(tmp_path: Path) -> None:
    problem = {"title": "Unprocessable", "status": 422, "detail": "input_image_base64 is not an image"}
    with serving(lambda _: (422, "application/problem+json", json.dumps(problem).encode())) as service:
        done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{service.url}/generation/ answered 422 ")
    assert done.stderr.endswith(": input_image_base64 is not an image\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("body", "told"), [(b"try later", "try later"), (b"", "no reason was given"), (b"[]", "[]")])
def test_a_refusal_that_is_no_problem_document_is_told(tmp_path: Path, body: bytes, told: str) -> None:
    with serving(lambda _: (503, "text/plain", body)) as service:
        done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr == f"{service.url}/generation/ answered 503 Service Unavailable: {told}\n"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"request_id": 0}', b"", b'{"request_id": null, "output_image_base64": "a"}']
)
def test_an_answer_of_another_kind_is_told(tmp_path: Path, body: bytes) -> None:
    with serving(lambda _: (200, "text/html", body)) as service:
        done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{service.url}/generation/ ")


@pytest.mark.parametrize("result", [None, 7, "!", "a"])
def test_an_image_that_is_not_base64_is_told(tmp_path: Path, result: object) -> None:
    def answer(content: dict[str, Any]) -> tuple[int, str, bytes]:
        body = {"request_id": content["request_id"], "output_image_base64": result}
        return 200, "application/json", json.dumps(body).encode()

    with serving(answer) as service:
        done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{service.url}/generation/ gave an answer that cannot be read: ")


def test_no_service_is_told(tmp_path: Path) -> None:
    with serving(image) as service:
        pass

    done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr == (
        f"Nothing answers at {service.url}/generation/ (Connection refused). Start the service with `make serve`.\n"
    )


def test_a_service_that_is_too_slow_is_told(tmp_path: Path) -> None:
    over = threading.Event()

    def answer(content: dict[str, Any]) -> tuple[int, str, bytes]:
        over.wait(120)
        return 500, "text/plain", b""

    with serving(answer) as service:
        done = client(tmp_path, "--url", service.url, "--timeout", "0.2")
        over.set()

    assert done.returncode == 1
    assert done.stderr == f"{service.url}/generation/ did not answer within 0.2 s; --timeout sets a longer time\n"


def test_a_service_that_breaks_off_is_told(tmp_path: Path) -> None:
    def answer(content: dict[str, Any]) -> tuple[int, str, bytes]:
        raise ConnectionAbortedError  # the stand-in tells its own stderr, and hangs up

    with serving(answer) as service:
        done = client(tmp_path, "--url", service.url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{service.url}/generation/ closed the connection: ")


def test_an_image_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = client(tmp_path, "--image", "none.png")

    assert (done.returncode, done.stderr) == (1, "none.png: No such file or directory\n")


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    done = client(tmp_path, "--url", "http://[nowhere")

    assert done.returncode == 1
    assert done.stderr.startswith("--url http://[nowhere/generation/: ")
