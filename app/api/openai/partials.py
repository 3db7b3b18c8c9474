"""Progress in the form of OpenAI's events."""

import time

import msgspec
import pybase64

from app.api.openai.structs import CompletedEvent, PartialImageEvent
from app.http.events import Feed, encode_event
from workers.engine.header import read_header
from workers.jobs import Advanced, Previewed, ProgressEvent


class PartialImages:
    """Publishes `wanted` previews at equal distances: one after half of the steps, two after a third each."""

    def __init__(self, wanted: int) -> None:
        self.feed = Feed(self._encode)
        self._wanted = wanted
        self._share = 0.0  # of the steps that are done
        self._published = 0
        self._sent = 0

    def publish(self, image: int, event: ProgressEvent) -> None:
        match event:
            case Advanced(done, total):
                self._share = done / total
            case Previewed() if self._is_due():
                self._published += 1
                self.feed.publish(image, event)
            case _:
                pass

    def _is_due(self) -> bool:
        return self._published < self._wanted and self._share * (self._wanted + 1) >= self._published + 1

    def _encode(self, image: int, event: ProgressEvent) -> bytes:
        assert isinstance(event, Previewed)
        index, self._sent = self._sent, self._sent + 1
        encoded = pybase64.b64encode_as_string(event.jpeg)
        return encode(PartialImageEvent(encoded, index, int(time.time()), size_of(event.jpeg)))


def encode(event: PartialImageEvent | CompletedEvent) -> bytes:
    """Encode an event. OpenAI repeats its name in its data."""
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return encode_event(name, msgspec.json.encode(event))


def size_of(file: bytes) -> str:
    """The size of an image file, as OpenAI writes it."""
    header = read_header(file)
    return f"{header.width}x{header.height}"
