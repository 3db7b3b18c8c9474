"""Examples of requests and answers. Their picture is a real one: it can be sent as it stands here."""

import base64
from pathlib import Path

import msgspec

from app.description.nodes import Node, example
from app.events import PreviewEvent, Progress, QueuedEvent, StartedEvent, StepEvent, event, told

FOLDER = Path(__file__).parents[1] / "docs"
FILES = {
    "image/png": "example.png",
    "image/jpeg": "example.jpg",
    "image/jpg": "example.jpg",
    "image/webp": "example.webp",
}
TEXT = "a red circle and a blue square on a white background"


def encoded(kind: str) -> str:
    """The picture in base64."""
    return base64.b64encode((FOLDER / FILES[kind]).read_bytes()).decode()


def file(kind: str) -> Node:
    """The picture as a file, which stands beside the documentation: JSON has no bytes."""
    return {"picture": {"summary": "A circle and a square", "externalValue": f"docs/{FILES[kind]}"}}


def requests() -> dict[str, Node]:
    """Bodies of JSON: with what is needed, and with more."""
    least = {
        "request_id": 1,
        "text": TEXT,
        "input_image_base64": encoded("image/png"),
        "random_seed": 1234,
    }
    more = {"negative_prompt": "text, a frame", "canny_low": 50, "canny_high": 150, "number_of_images": 2}
    return {"least": example(least, "What is needed"), "more": example(least | more, "Two pictures, finer edges")}


def answers() -> dict[str, Node]:
    """Their answers."""
    picture = encoded("image/jpeg")
    one = {"request_id": 1, "output_image_base64": picture}
    two = one | {"output_images_base64": [picture, picture]}
    return {"one": example(one, "A picture"), "several": example(two, "Two pictures")}


def stream() -> Node:
    """Events, as they come."""
    preview = PreviewEvent(0, encoded("image/jpeg"))
    progress: tuple[Progress, ...] = (
        QueuedEvent(0, 2, 3.5),
        StartedEvent(0),
        StepEvent(0, 1, 2),
        preview,
        StepEvent(0, 2, 2),
    )
    done = event("done", msgspec.json.encode(answers()["one"]["value"]))
    return {"stream": example((b"".join([told(each) for each in progress]) + done).decode(), "From start to end")}
