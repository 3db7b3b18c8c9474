"""`/`: the page for people, and the files that it is made of; `/settings.json`: what it must know of this service."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.fields import Rules
from app.settings import Settings

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing is fetched from elsewhere, nothing runs that is not a file of ours, and nobody frames the page.
POLICY = {
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
    # Names stay the same from version to version, so each use asks whether it is still that file: 304, mostly.
    "Cache-Control": "no-cache",
}


class Setting(msgspec.Struct, frozen=True):
    """A field that a request may leave out: what it is then, and what it may be, ends included."""

    default: float
    minimum: float
    maximum: float


class Taken(msgspec.Struct, frozen=True):
    """How much is taken: bytes and pixels of a picture, characters of a text."""

    picture_bytes: int
    picture_pixels: int
    text_chars: int


class PageSettings(msgspec.Struct, frozen=True):
    """What the page must know of the service: its model, whether it asks for an API key, what it takes.

    `fields` are those that have a range; of `temperature`, the minimum itself is not taken.
    """

    model: str
    needs_key: bool
    negative_prompt: str
    fields: dict[str, Setting]
    taken: Taken


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    tag: str


class Page:
    """Answers with the page's files, read once, and with the settings."""

    def __init__(self, settings: Settings) -> None:
        self._files = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}
        self._settings = msgspec.json.encode(page_settings(settings))

    async def respond(self, request: Request) -> Response:
        """A file, or 304 to who has it already. Raises HTTPException where there is none of this name."""
        file = self._files.get(request.path_params.get("name", INDEX))
        if file is None:
            raise HTTPException(404)
        headers = {**HEADERS, "ETag": file.tag}
        if _has(request, file.tag):
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers={**headers, "Content-Type": file.media_type})

    async def settings(self, request: Request) -> Response:
        """200, always."""
        return Response(self._settings, headers={"Cache-Control": "no-cache"}, media_type="application/json")


def page_settings(settings: Settings) -> PageSettings:
    """What the page must know of a configuration."""
    server, engine, rules = settings.server, settings.engine, Rules.of(settings)
    defaults = {
        "steps": rules.steps,
        "guidance_scale": engine.guidance_scale,
        "control_scale": engine.control_scale,
        "canny_low": engine.canny.low,
        "canny_high": engine.canny.high,
        "temperature": 1,
        "number_of_images": 1,
    }
    ranges = {name: rules.ranges[name] for name in defaults}
    return PageSettings(
        model="echo" if engine.model is None else Path(engine.model.path).name,
        needs_key=bool(server.api_key or server.api_key_file),
        negative_prompt=engine.prompt.negative,
        fields={name: Setting(defaults[name], each.low, each.high) for name, each in ranges.items()},
        taken=Taken(rules.max_picture_bytes, rules.max_pixels, rules.max_text_chars),
    )


def _read(path: Path) -> _File:
    body = path.read_bytes()
    tag = b64encode(sha256(body).digest()[:12]).decode()
    return _File(body, MEDIA_TYPES[path.suffix], f'"{tag}"')


def _has(request: Request, tag: str) -> bool:
    """Whether a client has this version (RFC 9110, 13.1.2)."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]
