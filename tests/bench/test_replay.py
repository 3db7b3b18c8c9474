"""The comparison of the simulation with the real pool."""

import asyncio

from scheduler import messages as m
from scheduler.simulation.arrivals import Arrival
from scheduler.simulation.devices import IMAGE
from scheduler.simulation.simulator import Run
from tests.bench.replay import ENGINE, FIGURES, MACHINE, SIZES, compare, experiment, figures, replay
from workers.engine.echo import EchoEngine

DONE = m.Done("cpu0", 0, IMAGE, queued=0.0)
WINDOW = (0.0, 10.0)


def test_a_replay_answers_every_request_with_an_image() -> None:
    arrivals = [Arrival(n / 10, work, size, steps=n, deadline=30.0) for n in (1, 2) for work, size in SIZES.items()]
    answers = asyncio.run(replay(arrivals)).answers
    assert sorted(answers) == [0, 1, 2, 3]
    assert all(isinstance(outcome, m.Done) for _, outcome in answers.values())


def test_a_simulation_and_a_replay_of_a_few_seconds_are_compared() -> None:
    found = compare(experiment(load=0.5, seconds=2.0, seed=1))
    assert found["requests"] > 0
    for kind in ("simulated", "real", "difference", "largest difference of a simulation"):
        assert tuple(found[kind]) == FIGURES
    assert all(found[served]["mean"] > 0 for served in ("simulated", "real"))


def test_the_workers_cost_what_the_simulated_devices_cost() -> None:
    assert EchoEngine(ENGINE).costs() == MACHINE.costs
    assert {width * height / 512**2: (width, height) for width, height in SIZES.values()} == SIZES


def test_refused_and_late_requests_are_counted_separately() -> None:
    arrivals = [Arrival(float(n), 1.0, (512, 512), 20, deadline=5.0) for n in range(5)]
    answers: list[tuple[float, m.Outcome]] = [
        (1.0, DONE),
        (3.0, DONE),
        (8.0, DONE),  # a second after its deadline
        (3.0, m.Rejected(1.0)),
        (9.0, m.Expired()),
    ]
    found = figures(Run(dict(enumerate(answers))), arrivals, WINDOW)
    assert found == {"mean": 3.0, "p50": 2.0, "p99": 6.0, "refused": 0.2, "late": 0.4}
