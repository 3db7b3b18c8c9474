"""`/settings.json`: the settings of the page."""

import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.params import Rules
from app.settings import Settings
from workers.engine.config import EngineConfig

log = logging.getLogger("contour.page")

ABOUT = "about.json"  # in a model's folder


class Setting(msgspec.Struct, frozen=True):
    """An optional field of a request: its default and its range, ends included."""

    default: float
    minimum: float
    maximum: float


class RequestLimits(msgspec.Struct, frozen=True):
    """The limits of a request: bytes and pixels of an image, characters of a text."""

    image_bytes: int
    image_pixels: int
    text_chars: int


class About(msgspec.Struct, frozen=True):
    """A sentence about what the model can draw, and prompts to try, for models that can do less than people expect."""

    text: Annotated[str, Meta(max_length=500)]
    prompts: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=12)]


class PageSettings(msgspec.Struct, frozen=True):
    """The service as the page needs it: its model, whether it needs an API key, its limits.

    `fields` are those that have a range. The minimum of `temperature` is not included.
    """

    model: str
    needs_key: bool
    negative_prompt: str
    fields: dict[str, Setting]
    limits: RequestLimits
    about: About | None


class SettingsEndpoint:
    """Answers with the settings of the page."""

    def __init__(self, settings: Settings) -> None:
        self._body = msgspec.json.encode(page_settings(settings))

    async def respond(self, request: Request) -> Response:
        return Response(self._body, headers={"Cache-Control": "no-cache"}, media_type="application/json")


def page_settings(settings: Settings) -> PageSettings:
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
        limits=RequestLimits(rules.max_image_bytes, rules.max_pixels, rules.max_text_chars),
        about=_about(settings.engine),
    )


def _about(engine: EngineConfig) -> About | None:
    """`about.json` from the model's folder, if there is one."""
    if engine.model is None or engine.model.path is None:
        return None
    path = Path(engine.model.path) / ABOUT
    try:
        return msgspec.json.decode(path.read_bytes(), type=About)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        form = '{"text": at most 500 characters, "prompts": at most 12 texts}'
        log.warning("Ignoring %s, which the page would show: it must be JSON of the form %s", path, form)
        return None
