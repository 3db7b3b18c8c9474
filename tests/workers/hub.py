"""A stand-in for the hub on loopback: the part of its HTTP that a download uses, and what can go wrong with it.

As on the real one, large files are kept by Git LFS: a listing has their SHA-256, and asking for one leads on to another
host, which answers to Range and gets no token. Small files are known by git's hash of their blob.
"""

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOO_MUCH = 64 * 2**20
Files = Mapping[str, bytes]


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Asked:
    """A request for a file's bytes."""

    file: str
    range: str | None
    token: str | None = None


@dataclass
class Hub:
    """Repositories at one commit, and faults: each is for a file's name, and is over when it has been met `times`."""

    repositories: Mapping[str, Files] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)  # of repositories that are not at COMMIT
    error: tuple[int, str] | None = None  # (status, code) for every request
    refusals: dict[str, list[tuple[int, str]]] = field(
        default_factory=dict
    )  # for a file (cdn/...: where it leads to), one after another
    cuts: dict[str, list[int]] = field(default_factory=dict)  # after so many bytes of an answer ("listing": of that)
    stalls: dict[str, list[int]] = field(default_factory=dict)  # the same, but the connection stays open
    resets: dict[str, list[int]] = field(default_factory=dict)  # the same, but the connection is reset
    instead: dict[str, bytes] = field(default_factory=dict)  # what is sent
    too_long: set[str] = field(default_factory=set)  # files that go on for TOO_MUCH bytes; no length is sent
    ranges: bool = True
    token: str | None = None  # without which nothing but the listing is given out
    silent: bool = False  # takes requests and does not answer
    page: bytes | None = None  # what is answered to everything
    asked: list[Asked] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def listing(self, path: str) -> dict[str, object] | None:
        """What a request for a repository's files gets."""
        for name, files in self.repositories.items():
            commit = self._commit(name)
            if path == f"/api/models/{name}/revision/{commit}?blobs=true":
                entries = [entry(file, content) for file, content in files.items()]
                return {"id": name, "sha": commit, "siblings": entries}
        return None

    def _commit(self, name: str) -> str:
        return self.commits.get(name, COMMIT)

    def find(self, path: str) -> tuple[str, bytes] | None:
        """The file that is meant by the path of a request, with what it holds."""
        for name, files in self.repositories.items():
            for begin in (f"/{name}/resolve/{self._commit(name)}/", f"/cdn/{name}/"):
                file = path.removeprefix(begin).partition("?")[0]
                if path.startswith(begin) and file in files:
                    return file, files[file]
        return None


def entry(file: str, content: bytes) -> dict[str, object]:
    """A file as it is listed."""
    listed: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": _blob(content)}
    if file.endswith(".safetensors"):
        listed["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return listed


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    server: ThreadingHTTPServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        listing, found = self.hub.listing(self.path), self.hub.find(self.path)
        if self.hub.silent:
            self.hub.closing.wait(180)
            self.close_connection = True
        elif self.hub.page is not None:
            self._send(200, self.hub.page, {})
        elif self.hub.error is not None:
            self._refuse(*self.hub.error)
        elif listing is not None:
            self._send(200, json.dumps(listing).encode(), {}, self._fault("listing"))
        elif found is None:
            self._refuse(404, "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
        elif "/resolve/" in self.path and self.hub.token not in (None, self._token()):
            self._refuse(403, "GatedRepo")
        elif refusals := self.hub.refusals.get(self.path.startswith("/cdn/") * "cdn/" + found[0]):
            self._refuse(*refusals.pop(0))
        elif "/resolve/" in self.path and found[0].endswith(".safetensors"):
            repository = self.path.split("/resolve/")[0]
            headers = {"X-Linked-Size": str(len(found[1])), "X-Linked-Etag": hashlib.sha256(found[1]).hexdigest()}
            place = f"http://localhost:{self.server.server_port}/cdn{repository}/{found[0]}?signature=signed"
            self._send(302, b"", headers | {"X-Repo-Commit": COMMIT, "Location": place})
        elif self.command == "HEAD":
            self._send(200, found[1], {"ETag": f'"{_blob(found[1])}"', "X-Repo-Commit": COMMIT})
        else:
            self._send_file(*found)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send_file(self, file: str, content: bytes) -> None:
        content = self.hub.instead.get(file, content)
        asked = self.headers["Range"]
        self.hub.asked.append(Asked(file, asked, self._token() or None))
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.hub.ranges else 0
        headers = {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": COMMIT}
        if file in self.hub.too_long:
            self._send_too_much(headers)
            return
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(206 if begin else 200, content[begin:], headers, self._fault(file))

    def _send_too_much(self, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        for _ in range(TOO_MUCH // 2**20):
            self.wfile.write(bytes(2**20))

    def _fault(self, file: str) -> tuple[int, str] | None:
        for kind in ("cuts", "stalls", "resets"):
            if (faults := getattr(self.hub, kind)).get(file):
                return faults[file].pop(0), kind
        return None

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "Retry-After": "0"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], fault: tuple[int, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if fault is None else body[: fault[0]])
        if fault is not None:
            self.close_connection = True
            self.wfile.flush()
        if fault is not None and fault[1] == "stalls":
            self.hub.stalled.set()
            self.hub.closing.wait(180)
        if fault is not None and fault[1] == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None: ...  # clients may leave: they are killed


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The hub's address, while it is there."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def wait_until(condition: object, seconds: float = 180.0) -> None:
    """Wait for something to become true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.0005)
