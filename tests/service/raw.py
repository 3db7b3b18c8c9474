"""HTTP by hand, for what a client library would not send."""

import json
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.service.running import PATIENCE, Service, good_request

BODY = json.dumps(good_request()).encode()
LENGTH = f"Content-Length: {len(BODY)}"


@dataclass(frozen=True)
class Response:
    """A response as it was read off the socket; headers by their names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The last part of the problem's type."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["detail"]
        return str(problem["type"]).removeprefix("urn:contour:problem:")


JSON = "Content-Type: application/json"


def head(*headers: str, method: str = "POST", path: str = "/generation/", version: str = "1.1") -> bytes:
    """A request's head, of JSON unless it says otherwise; it asks for the connection to be closed after the answer."""
    named = "".join(headers).lower()
    types = () if "content-type" in named or method == "GET" else (JSON,)
    lines = (f"{method} {path} HTTP/{version}", "Host: localhost", "Connection: close", *types, *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def chunked(body: bytes, size: int = 100) -> bytes:
    """A body in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def connect(service: Service) -> socket.socket:
    """A connection to the service."""
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), PATIENCE)


def exchange(service: Service, data: bytes, leave: bool = False) -> list[Response]:
    """Send, and read answers until the service closes. `leave` says at once that no more will come."""
    with connect(service) as connection:
        connection.sendall(data)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return answers(read(connection))


def read(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    while piece := connection.recv(2**16):
        received += piece
    return received


def answers(received: bytes) -> list[Response]:
    """The responses in some bytes; each must have a length."""
    found = []
    while received:
        top, _, received = received.partition(b"\r\n\r\n")
        line, *lines = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        length = int(headers.get("content-length", 0))
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", line)
        assert match, line
        found.append(Response(int(match[1]), headers, received[:length]))
        received = received[length:]
    return found
