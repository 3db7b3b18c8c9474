"""Previews of a real worker process: who gets them, how often, and what becomes of an image whose preview fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from scheduler import messages as m
from tests.workers import showing
from tests.workers.showing import Asks
from tests.workers.test_process import ID, IMAGE, SLOW, Worker, of_one_colour
from workers.channel import Preview, Report
from workers.engine.contract import EngineOptions

WATCHED = EngineOptions(previews=True)
STEPS = SLOW.echo.steps
NEVER_AGAIN = "3600"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Worker]]:
    """Starts a worker of one slot whose engine has previews, and ends it."""
    monkeypatch.setattr("workers.worker_main.main", showing.main)
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(replace(SLOW, slots=1)))
        return started[-1]

    yield start
    for worker in started:
        if not worker.reaped:
            worker.child.kill()
            worker.ended()


def made(worker: Worker, image: bytes, options: EngineOptions = WATCHED) -> list[Report]:
    """All that is heard of an image until it is finished."""
    heard = worker.hear()
    worker.run(0, 7, image, options)
    reports = []
    for report in heard:
        reports.append(report)
        if isinstance(report, m.Finished):
            break
    return reports


def previews(reports: list[Report]) -> list[Preview]:
    return [report for report in reports if isinstance(report, Preview)]


def test_a_watched_image_is_shown_before_it_is_finished(start: Callable[[], Worker]) -> None:
    reports = made(start(), IMAGE)
    shown = previews(reports)
    assert 1 <= len(shown) < STEPS
    assert reports.index(shown[0]) > reports.index(m.Stepped(ID, ((0, 1),), (STEPS,)))
    for preview in shown:
        assert (preview.slot, preview.generation) == (0, 7)
        with Image.open(BytesIO(preview.jpeg)) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))


def test_it_is_not_shown_again_at_once(start: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(showing.PAUSE, NEVER_AGAIN)
    worker = start()
    for _ in range(2):  # each image has its own pause
        assert len(previews(made(worker, IMAGE))) == 1


def test_one_that_nobody_watches_is_not_shown_at_all(start: Callable[[], Worker]) -> None:
    # Asking for its preview would end the process.
    assert previews(made(start(), of_one_colour(Asks.BREAKS), EngineOptions())) == []


@pytest.mark.parametrize("asks", [Asks.NO_MEMORY, Asks.NOTHING, Asks.DRAWN_LARGE], ids=lambda asks: asks.name)
def test_one_that_cannot_be_shown_is_made_all_the_same(start: Callable[[], Worker], asks: Asks) -> None:
    worker = start()
    assert previews(made(worker, of_one_colour(asks))) == []
    assert previews(made(worker, IMAGE))


@pytest.mark.parametrize(("asks", "told"), [(Asks.BREAKS, "shown"), (Asks.CANNOT_BE_DRAWN, "drawn")])
def test_a_device_that_fails_ends_the_process_with_its_reason(
    start: Callable[[], Worker], asks: Asks, told: str
) -> None:
    worker = start()
    worker.run(0, 7, of_one_colour(asks), WATCHED)
    assert worker.ended() == f"RuntimeError: CUDA error: it cannot be {told}"


def test_a_preview_that_takes_long_keeps_no_image_waiting_and_is_the_only_one(start: Callable[[], Worker]) -> None:
    # It is drawn when the image has been encoded, so either may be reported first.
    worker, reports = start(), list[Report]()
    heard = worker.hear()
    worker.run(0, 7, of_one_colour(Asks.DRAWN_LATE), WATCHED)
    for report in heard:
        reports.append(report)
        if {type(each) for each in reports} >= {m.Finished, Preview}:
            break
    worker.run(0, 8)  # meanwhile, all else that might be drawn is reported
    for report in heard:
        reports.append(report)
        if isinstance(report, m.Finished):
            break
    assert len(previews(reports)) == 1
    assert reports[-1].generation == 8  # type: ignore[union-attr]
