"""The violations that a run reports."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.attacks import ATTACKER
from tests.chaos.footprint import Footprint, Identity
from tests.chaos.kinds import kinds
from tests.chaos.lives import Life
from tests.chaos.records import Record, Scrape
from tests.chaos.verdict import totals, violations


def life(log: str = "", **fields: Any) -> Life:
    service: Any = SimpleNamespace(log=[log])
    return Life(number=0, service=service, began=0.0, **fields)


def record(outcome: str, kind: str = "good", **fields: Any) -> Record:
    counted = outcome if outcome in {"done", "busy", "draining"} else None
    times = {"began": 1.0, "ended": 2.0, "patience": 30.0, "seconds": 1.0}
    return Record(number=1, kind=kind, life=0, outcome=outcome, counted=counted, **(times | fields))


def broken(*records: Record, of: Life | None = None) -> str:
    return "\n".join(violations(records, [of or life()]))


def test_the_right_image_and_an_honest_refusal_break_nothing() -> None:
    assert broken(record("done"), record("busy"), record("invalid-field", "bad: invalid-field")) == ""


@pytest.mark.parametrize("outcome", ["wrong image", "two answers", "no answer", "cut", "expired", "worker-crash"])
def test_a_good_request_that_ends_otherwise_is_named(outcome: str) -> None:
    assert f"request 1 (good, life 0, 1.00 to 2.00 s, unnamed): {outcome}" in broken(record(outcome))


def test_a_half_closed_client_may_be_refused_before_that_is_seen_but_gets_no_image() -> None:
    assert broken(record("cut", "half-closed"), record("busy", "half-closed")) == ""
    assert "it may end as busy, cut" in broken(record("done", "half-closed"))


def test_an_answer_after_its_deadline_is_named() -> None:
    assert "the answer took 33.00 s, its deadline was 30 s" in broken(record("done", seconds=33.0))


def test_a_killed_server_excuses_what_it_had_in_hand_and_nothing_before() -> None:
    killed = life(doomed=1.5, end="SIGKILL")
    assert broken(record("cut"), of=killed) == ""
    assert "cut" in broken(record("cut", ended=1.4), of=killed)


def test_a_drain_excuses_only_what_came_too_late() -> None:
    drained = life(doomed=1.9, end="SIGTERM", exit_code=0)
    assert "cut" in broken(record("cut"), of=drained)
    assert broken(record("unreachable", began=1.8), of=drained) == ""
    assert "draining" in broken(record("draining", kind="bad: invalid-field", ended=1.0), of=drained)


def test_processes_that_outlive_the_server_are_named() -> None:
    assert "processes 77 outlived the server" in broken(of=life(survivors=[Identity(77, "1")], end="SIGKILL"))


def test_a_drain_that_failed_and_a_shameful_log_are_named() -> None:
    assert "ended with exit code None" in broken(of=life(end="SIGTERM"))
    assert "BrokenInvariantError" in broken(of=life(log="scheduler.errors.BrokenInvariantError: a job waits"))


def test_metrics_that_count_too_few_or_too_many_are_named() -> None:
    counted = life(scrapes=[Scrape(3.0, 3.1, {"done": 1}, 0, 0)])
    assert broken(record("done"), of=counted) == ""
    assert "must be 2 to 2" in broken(record("done"), record("done"), of=counted)
    assert "must be 0 to 0" in broken(record("busy"), of=counted)
    assert broken(record("left", "leaves"), of=counted) == ""  # only the server knows how far that one came


def test_in_the_end_every_request_is_counted_once() -> None:
    scrape = Scrape(3.0, 3.1, {"done": 1, "abandoned": 1}, 0, 0)
    requests = [record("done"), record("left", "leaves"), record("unreachable")]
    assert list(totals(scrape, requests, 0)) == []
    assert "counts 2 requests in all, 1 were sent" in next(totals(scrape, requests[:1], 0))


def test_requests_without_an_image_are_not_counted() -> None:
    scrape = Scrape(3.0, 3.1, {"done": 1}, 0, 0)
    edges = record("done", "attack: edges", counts=False)
    edges.counted = None
    assert list(totals(scrape, [record("done"), edges], 0)) == []
    assert broken(record("done"), edges, of=life(scrapes=[scrape])) == ""


def test_an_attack_may_end_as_documented_and_not_otherwise() -> None:
    assert broken(record("foreign-origin", "attack: page of another origin")) == ""
    assert "it may end as foreign-origin" in broken(record("done", "attack: page of another origin"))
    assert "it may end as" in broken(record("internal", "attack: form in unicode_escape"))


def test_attackers_are_clients_of_their_own() -> None:
    sources = {kind.source for kind in kinds() if kind.name.startswith("attack: ")}
    assert sources == {ATTACKER}
    assert all(kind.source is None for kind in kinds() if not kind.name.startswith("attack: "))


def test_growing_or_missing_figures_are_named() -> None:
    before = Footprint(processes=4, threads=20, descriptors=50, regions=4, resident=2**28)
    assert before.excess(over=before) == []
    after = Footprint(processes=3, threads=90, descriptors=51, regions=5, resident=2**30)
    assert [each.partition(":")[0] for each in after.excess(over=before)] == [
        "processes",
        "regions",
        "descriptors",
        "threads",
        "resident",
    ]
