"""The static files of the page and of `/docs`, read once at the start.

Starlette's StaticFiles would not do: an ETag is of the content here, not of a file's time, which differs between
machines; each answer has the Content-Security-Policy; and large files (`NAME.gz`) are sent as they lie, compressed.
"""

import gzip
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PAGE, DOCS = (Path(__file__).parents[1] / name for name in ("page", "docs"))
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webp": "image/webp",
}
# Nothing is loaded from elsewhere, only our own files run, and no other page may frame ours.
POLICY: Mapping[str, str] = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # File names do not change with the version, so a browser asks each time; the answer is 304, mostly.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file and its type, empty if it is not served; `tag` is a hash of its content."""

    body: bytes
    media_type: str
    tag: str
    compressed: bool


class StaticFolder:
    """An endpoint that serves the files of a folder and of those in it, by name; by default its index.html."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name.removesuffix(".gz"): _read(path) for path in sorted(folder.rglob("*.*"))}

    @property
    def media_types(self) -> dict[str, str]:
        """The types of the files, by name."""
        return {name: file.media_type for name, file in self._files.items() if file.media_type}

    async def respond(self, request: Request) -> Response:
        """Send a file, or 304 to a browser that has it. Raises HTTPException if no file has this name."""
        file = self._files.get(request.path_params.get("name", INDEX))
        if file is None or not file.media_type:
            raise HTTPException(404)
        compressed = file.compressed and _takes_gzip(request)
        tag = f'"{file.tag}-gzip"' if compressed else f'"{file.tag}"'
        headers = {**HEADERS, "ETag": tag}
        if _has(request, tag):
            return Response(status_code=304, headers=headers)
        headers |= {"Content-Type": file.media_type} | ({"Content-Encoding": "gzip"} if compressed else {})
        body = gzip.decompress(file.body) if file.compressed and not compressed else file.body
        return Response(body, headers=headers)


def _read(path: Path) -> File:
    body = path.read_bytes()
    tag = b64encode(sha256(body).digest()[:12]).decode()
    compressed = path.suffix == ".gz"
    return File(body, MEDIA_TYPES.get(Path(path.stem).suffix if compressed else path.suffix, ""), tag, compressed)


def _has(request: Request, tag: str) -> bool:
    """Whether the client has this version (RFC 9110, 13.1.2)."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]


def _takes_gzip(request: Request) -> bool:
    """RFC 9110, 12.5.3."""
    for coding in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = coding.replace(" ", "").partition(";")
        if name in {"gzip", "*"}:
            return quality.rstrip("0.") != "q="
    return False
