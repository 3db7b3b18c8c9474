"""Which form of answer a client gets, by what it says it likes."""

import pytest

from app.http.answers import preferred

OFFERS = ("application/json", "image/jpeg", "image/png", "text/event-stream")


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/jpeg"),
        ("image/*, image/jpeg;q=0.1", "image/png"),
        ("image/png;q=0.5, image/jpeg;q=0.8", "image/jpeg"),
        ("*/*;q=0.1, text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream", "text/event-stream"),
        ("application/json;q=0, */*", "image/jpeg"),
        ("text/html", None),
        ("image/avif", None),
        ("application/json;q=0", None),
        ("image/avif, */*;q=0.1", "application/json"),
        ("application/*, image/png;q=0.9", "application/json"),
        ("image/*;q=0, image/png", "image/png"),
        ("application/json;charset=utf-8", "application/json"),
        ("image/png;q=nonsense, application/json;q=0.1", "application/json"),
        ("image/png;q=nan, application/json;q=0.1", "application/json"),
        (",,;q=1,", "application/json"),
    ],
)
def test_the_best_liked_offer_is_taken_and_the_first_of_equals(accept: str, answer: str | None) -> None:
    assert preferred(accept, OFFERS) == answer
