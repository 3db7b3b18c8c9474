"""`/`: the page for people, and the files that it is made of; `/settings.json`: what it must know of this service."""

import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.files import Files
from app.rules import Rules
from app.settings import Settings
from workers.engine.config import EngineConfig

log = logging.getLogger("contour.page")

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
ABOUT = "about.json"  # in a model's folder


class Setting(msgspec.Struct, frozen=True):
    """A field that a request may leave out: what it is then, and what it may be, ends included."""

    default: float
    minimum: float
    maximum: float


class Taken(msgspec.Struct, frozen=True):
    """The most that a request may have: bytes and pixels of an image, characters of a text."""

    image_bytes: int
    image_pixels: int
    text_chars: int


class About(msgspec.Struct, frozen=True):
    """What a model knows, and prompts that show it: for models that know less than people expect."""

    text: Annotated[str, Meta(max_length=500)]
    prompts: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=12)]


class PageSettings(msgspec.Struct, frozen=True):
    """What the page must know of the service: its model, whether it asks for an API key, what it takes.

    `fields` are those that have a range; of `temperature`, the minimum itself is not taken.
    """

    model: str
    needs_key: bool
    negative_prompt: str
    fields: dict[str, Setting]
    taken: Taken
    about: About | None


class Page:
    """Answers with the page's files, read once, and with the settings."""

    def __init__(self, settings: Settings) -> None:
        self._files = Files(FOLDER)
        self._settings = msgspec.json.encode(page_settings(settings))

    @property
    def media_types(self) -> dict[str, str]:
        """The files, and what they are."""
        return self._files.media_types

    async def respond(self, request: Request) -> Response:
        """A file, or 304 to who has it already. Raises HTTPException where there is none of this name."""
        return self._files.respond(request, request.path_params.get("name", INDEX))

    async def settings(self, request: Request) -> Response:
        """200, always."""
        return Response(self._settings, headers={"Cache-Control": "no-cache"}, media_type="application/json")


def page_settings(settings: Settings) -> PageSettings:
    """What the page must know of a configuration."""
    server, rules = settings.server, Rules.of(settings)
    return PageSettings(
        model=server.model_name,
        needs_key=server.has_keys,
        negative_prompt=rules.defaults["negative_prompt"],
        fields={
            name: Setting(rules.defaults[name], each.low, each.high)
            for name, each in rules.ranges.items()
            if name in rules.defaults
        },
        taken=Taken(rules.max_image_bytes, rules.max_pixels, rules.max_text_chars),
        about=_about(settings.engine),
    )


def _about(engine: EngineConfig) -> About | None:
    """What the model's folder says of it in `about.json`, if it does."""
    if engine.model is None or engine.model.path is None:
        return None
    path = Path(engine.model.path) / ABOUT
    try:
        return msgspec.json.decode(path.read_bytes(), type=About)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        form = '{"text": at most 500 characters, "prompts": at most 12 texts}'
        log.warning("The page shows nothing of %s: it cannot be read as %s", path, form)
        return None
