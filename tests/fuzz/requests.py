"""HTTP requests as bytes. No client library has a hand in them, which would repair what is wrong with them."""

import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

Headers = tuple[tuple[str, str], ...]

JSON_TYPE = ("Content-Type", "application/json")
BOUNDARY = "boundary-of-a-test"
FORM_TYPE = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
PIECE_BYTES = 2**18  # that are sent at once
# Python's codecs that raise errors of their own, take long, or make text that UTF-8 cannot encode.
CODECS = (
    *("unicode_escape", "raw_unicode_escape", "punycode", "idna", "undefined"),
    *("utf-7", "utf-16", "zlib_codec", "rot13", "mbcs"),
)


@dataclass(frozen=True)
class Request:
    """A request. A body in chunks of `chunk` bytes, where that is set; else with its length.

    Header values are latin-1. `Host`, `Content-Length` and the like are added unless `headers` has them.
    """

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""
    chunk: int = 0

    @property
    def head(self) -> bytes:
        """The request line and the headers."""
        named = {name.lower() for name, _ in self.headers}
        added = [("Host", "localhost"), ("Connection", "close"), *self._framing()]
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in added if name.lower() not in named]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1", "replace")

    def _framing(self) -> Headers:
        if self.chunk:
            return (("Transfer-Encoding", "chunked"),)
        return (("Content-Length", str(len(self.body))),) if self.body or self.method in {"POST", "PUT"} else ()

    @property
    def wire(self) -> Iterator[bytes]:
        """All of it, in pieces."""
        yield self.head
        whole = _in_chunks(self.body, self.chunk) if self.chunk else self.body
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]


def json_request(path: str, fields: object, *headers: tuple[str, str]) -> Request:
    """A POST of JSON: of bytes as they are."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return Request("POST", path, (JSON_TYPE, *headers), body)


def form_request(path: str, body: bytes, *headers: tuple[str, str]) -> Request:
    """A POST of a form: see `part` and `form`."""
    return Request("POST", path, headers or (FORM_TYPE,), body)


def part(name: str, content: bytes, filename: str | None = None, more: bytes = b"") -> bytes:
    """A part of a form. `more` are lines of its header, each with its end."""
    file = "" if filename is None else f'; filename="{filename}"'
    disposition = f'Content-Disposition: form-data; name="{name}"{file}\r\n'
    return disposition.encode("latin-1", "replace") + more + b"\r\n" + content


def form(*parts: bytes, boundary: str = BOUNDARY) -> bytes:
    """A form of parts."""
    line = f"--{boundary}".encode("latin-1", "replace")
    return b"".join(line + b"\r\n" + each + b"\r\n" for each in parts) + line + b"--\r\n"


def _in_chunks(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join([*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"])


def send(url: str, wire: Iterable[bytes], patience: float) -> bytes:
    """Send a request. Returns all that comes back, which may be nothing. Raises TimeoutError."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), patience) as connection:
        try:
            for piece in wire:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered before all was there, and closed
        return _received(connection)


def _received(connection: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := connection.recv(2**18):
            pieces.append(piece)
    except ConnectionResetError:  # it closed while more was on its way to it; what it said before may be lost
        pass
    return b"".join(pieces)
