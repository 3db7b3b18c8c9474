"""Compares the records of a run with the promises of the service. Each violation is a sentence."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.chaos.kinds import kinds
from tests.chaos.lives import Life
from tests.chaos.records import Record, Scrape

LATE_SECONDS = 2.0  # that an answer may be over its deadline: the clients share the server's cores
CROSSING_SECONDS = 0.5  # before a drain begins, a request may still be on its way to the server
SHAMEFUL = ("BrokenInvariantError", "IllegalEvent", "An internal error", "ERROR   contour.generation", "was never ")


def violations(requests: Sequence[Record], lives: Sequence[Life]) -> Iterator[str]:
    """All of them."""
    for record in requests:
        yield from _request(record, lives[record.life])
    for life in lives:
        own = [record for record in requests if record.life == life.number]
        for scrape in life.scrapes:
            yield from _metrics(scrape, own, life.number)
        yield from _end(life)


def _request(record: Record, life: Life) -> Iterator[str]:
    allowed = {kind.name: kind.ends for kind in kinds()}[record.kind]
    if record.outcome not in allowed and not _excused(record, life):
        yield f"{record}; it may end as {', '.join(sorted(allowed))}"
    if record.seconds is not None and record.seconds > record.patience + LATE_SECONDS:
        yield f"{record}; the answer took {record.seconds:.2f} s, its deadline was {record.patience:g} s"


def _excused(record: Record, life: Life) -> bool:
    """Whether the end of the server explains how a request ended."""
    if record.outcome == "draining":
        return record.ended >= life.doomed
    if record.outcome not in {"cut", "unreachable"}:
        return False
    if life.end == "SIGKILL":
        return record.ended >= life.doomed
    return record.began >= life.doomed - CROSSING_SECONDS


def _metrics(scrape: Scrape, requests: Sequence[Record], life: int) -> Iterator[str]:
    """The server had counted what was answered before the scrape, and nothing that was not sent before its end."""
    sent = [record for record in requests if record.began <= scrape.answered and _reaches_count(record)]
    before = Counter(record.counted for record in sent if record.ended < scrape.asked)
    ever = Counter(record.counted for record in sent)
    for outcome, number in scrape.requests.items():
        least, most = before[outcome], ever[outcome] + ever[None]
        if not least <= number <= most:
            yield (
                f"life {life}: /metrics at {scrape.asked:.2f} s counts {number} requests {outcome}, "
                f"by what clients saw it must be {least} to {most}"
            )


def totals(scrape: Scrape, requests: Sequence[Record], life: int) -> Iterator[str]:
    """When nothing is under way, the server must have counted each request of its life once."""
    counted = sum(scrape.requests.values())
    sent = sum(record.life == life and _reaches_count(record) for record in requests)
    if counted != sent:
        yield f"life {life}: /metrics counts {counted} requests in all, {sent} were sent"


def _reaches_count(record: Record) -> bool:
    return record.counts and record.outcome != "unreachable"


def _end(life: Life) -> Iterator[str]:
    if life.survivors:
        pids = ", ".join(str(each.pid) for each in life.survivors)
        yield f"life {life.number}: processes {pids} outlived the server ({life.end} at {life.doomed:.2f} s)"
    if life.end == "SIGTERM" and life.exit_code != 0:
        yield f"life {life.number}: the drain that began at {life.doomed:.2f} s ended with exit code {life.exit_code}"
    for line in life.service.log:
        if any(word in line for word in SHAMEFUL):
            yield f"life {life.number}: the log says: {line.strip()}"
