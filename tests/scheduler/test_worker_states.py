"""The table of a worker's states in the docstring of `scheduler.core` is true."""

import pytest

from scheduler import core as described
from scheduler.errors import IllegalEvent
from scheduler.limits import Limits
from scheduler.messages import (
    Event,
    Faulted,
    Measured,
    Opened,
    Submitted,
    Tick,
    WorkerExited,
    WorkerReady,
    WorkerState,
)
from tests.scheduler.words import GPU, Checked, job

ROWS = [[cell.strip() for cell in line.strip(" |").split("|")] for line in (described.__doc__ or "").splitlines()]
HEAD = next(row for row in ROWS if row[0] == "state")
TABLE = {row[0]: dict(zip(HEAD, row, strict=True)) for row in ROWS if row[0] in WorkerState.__members__}
EVENTS: dict[str, Event] = {
    "Opened": Opened(),
    "WorkerReady": WorkerReady("gpu0", GPU),
    "Measured": Measured("gpu0", GPU),
    "Faulted": Faulted("gpu0", "XID 79"),
    "WorkerExited": WorkerExited("gpu0", "SIGSEGV"),
    "hopeless": WorkerExited("gpu0", "no such model", hopeless=True),
}
LATE = 1000.0  # seconds; more than all limits
WAYS: dict[str, list[str]] = {
    "NEW": [],
    "LOADING": ["Opened"],
    "READY": ["Opened", "WorkerReady"],
    "ENDING": ["Opened"],
    "BACKOFF": ["Opened", "WorkerExited"],
    "QUARANTINED": ["Opened", "hopeless"],
}


def in_state(state: str) -> Checked:
    """A scheduler whose worker gpu0 is in a state, and busy if it is ready. gpu1 keeps the service from ending."""
    core = Checked(["gpu0", "gpu1"], Limits())
    for name in WAYS[state]:
        core.handle(0.0, EVENTS[name])
    if state == "ENDING":
        core.handle(LATE, Tick())  # it loaded for too long
    if state == "READY":
        core.handle(0.0, Submitted(job(1, deadline=2000.0)))
    assert core.state_of("gpu0") is WorkerState[state]
    return core


@pytest.mark.parametrize("state", TABLE)
@pytest.mark.parametrize("event", EVENTS)
def test_each_event_leads_to_the_state_in_the_table(state: str, event: str) -> None:
    core, expected = in_state(state), TABLE[state][event]
    if expected == "-":
        with pytest.raises(IllegalEvent):
            core.handle(0.0, EVENTS[event])
    else:
        core.handle(0.0, EVENTS[event])
        assert core.state_of("gpu0") is WorkerState[expected]


@pytest.mark.parametrize("state", TABLE)
def test_each_alarm_leads_to_the_state_in_the_table(state: str) -> None:
    core, expected = in_state(state), TABLE[state]["alarm"]
    core.handle(LATE, Tick())
    assert core.state_of("gpu0") is WorkerState[state if expected == "-" else expected]


def test_the_table_has_all_states() -> None:
    assert list(TABLE) == list(WorkerState.__members__)
