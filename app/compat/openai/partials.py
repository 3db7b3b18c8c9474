"""A picture on its way, as OpenAI's events."""

import time

import msgspec
import pybase64

from app.compat.openai.structs import CompletedEvent, PartialImageEvent
from app.events import Feed, event
from workers.engine.header import read_header
from workers.jobs import Advanced, Previewed, ProgressEvent


class Partials:
    """Feeds as many previews as are wanted, when their share of the steps is done: one at a half, two at thirds."""

    def __init__(self, wanted: int) -> None:
        self.feed = Feed(self._told)
        self._wanted = wanted
        self._share = 0.0  # of the steps that are done
        self._fed = 0
        self._sent = 0

    def follow(self, image: int, news: ProgressEvent) -> None:
        """Something is new."""
        match news:
            case Advanced(done, total):
                self._share = done / total
            case Previewed() if self._is_due():
                self._fed += 1
                self.feed.follow(image, news)
            case _:
                pass

    def _is_due(self) -> bool:
        return self._fed < self._wanted and self._share * (self._wanted + 1) >= self._fed + 1

    def _told(self, image: int, news: ProgressEvent) -> bytes:
        assert isinstance(news, Previewed)
        index, self._sent = self._sent, self._sent + 1
        encoded = pybase64.b64encode_as_string(news.jpeg)
        return told(PartialImageEvent(encoded, index, int(time.time()), size_of(news.jpeg)))


def told(what: PartialImageEvent | CompletedEvent) -> bytes:
    """An event, which has its name in its data as well."""
    name = what.__struct_config__.tag
    assert isinstance(name, str)
    return event(name, msgspec.json.encode(what))


def size_of(file: bytes) -> str:
    """The size of a picture, as OpenAI writes it."""
    header = read_header(file)
    return f"{header.width}x{header.height}"
