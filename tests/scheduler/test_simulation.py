"""The simulation itself, and what it shows of the scheduler on short runs. No test looks at the time of a decision."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler import messages as m
from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.simulation import __main__ as cli
from scheduler.simulation import arrivals, bounds, report
from scheduler.simulation.arrivals import Arrival, Traffic
from scheduler.simulation.baselines import LeastLoaded
from scheduler.simulation.devices import DEFAULT_SLOTS, Machine
from scheduler.simulation.experiment import SCHEDULERS, Experiment, contour, drawn, recorded
from scheduler.simulation.preemption import Exclusive, Preemptive
from scheduler.simulation.simulator import MakeCore, Simulator

MACHINE = Machine(devices=4)
ONLY_CONTOUR = {"contour": contour}


def experiment(
    load: float, *, seconds: float = 15.0, deadline: float = 60.0, machine: Machine = MACHINE, seed: int = 1
) -> Experiment:
    return drawn(machine, Traffic(seconds=seconds, deadlines=(deadline,)), load, seed)


def test_the_same_seed_gives_the_same_rows() -> None:
    short = experiment(0.9, seconds=5.0, machine=replace(MACHINE, failures_per_hour=500))
    assert short.compare() == short.compare()
    assert short.compare() != experiment(0.9, seconds=5.0, seed=2).compare()


class CheckedScheduler(Scheduler):
    """The real one, which validates its state after every event."""

    def handle(self, now: float, event: m.Event) -> list[m.Command]:
        commands = super().handle(now, event)
        self.check()
        return commands


def checked(workers: Sequence[m.WorkerId], queue: int) -> Scheduler:
    return CheckedScheduler(workers, contour(workers, queue)._limits)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_job_is_answered_once_though_workers_fail(name: str) -> None:
    """The simulator raises if a job is answered twice or never."""
    machine = replace(MACHINE, failures_per_hour=1500, straggler=2.0, load_seconds=1.0)
    requests = experiment(0.8, seconds=8.0, deadline=3.0, machine=machine).arrivals
    make = checked if name == "contour" else SCHEDULERS[name]
    run = Simulator(make, machine, requests, seed=1, queue=50).run()
    assert sorted(run.answers) == list(range(len(requests)))
    assert run.failures >= 5
    assert sum(isinstance(outcome, m.Done) for _, outcome in run.answers.values()) > len(requests) / 4


def test_a_device_that_fails_comes_back() -> None:
    machine = Machine(devices=1, failures_per_hour=200, load_seconds=0.5)
    run = Simulator(contour, machine, experiment(0.5, machine=machine).arrivals, seed=1, queue=50).run()
    assert run.failures
    last_done = max(seconds for seconds, outcome in run.answers.values() if isinstance(outcome, m.Done))
    assert last_done > 14


@pytest.mark.parametrize(("load", "straggler"), [(0.3, 1.0), (0.8, 1.0), (0.6, 2.0), (1.5, 1.0)])
def test_no_scheduler_beats_the_bounds(load: float, straggler: float) -> None:
    machine = replace(MACHINE, jitter=0.0, straggler=straggler)
    whole = replace(experiment(load, seconds=8.0, machine=machine), window=(0.0, 8.0))
    bound, *rows = whole.compare()
    for row in rows:
        assert row.throughput is not None
        assert row.throughput <= 1.0
        assert row.goodput is not None
        assert bound.goodput is not None
        assert row.goodput <= bound.goodput
        if not row.refused and not row.late:
            assert row.mean is not None
            assert bound.mean is not None
            assert row.mean >= bound.mean


def test_the_bound_on_the_mean_latency_is_reached_by_one_image_alone() -> None:
    machine = Machine(devices=1, jitter=0.0)
    bound, row = recorded(machine, [Arrival(1.0, 1.0, (512, 512), 20)], seed=1).compare(ONLY_CONTOUR)
    assert row.mean == pytest.approx(bound.mean) == pytest.approx(20 * 0.0055 + 0.008)


def test_the_bound_on_the_goodput_knows_the_queue() -> None:
    """Twenty images at once, and room for three."""
    machine = Machine(devices=1, slots=1)
    requests = [Arrival(1.0, 1.0, (512, 512), 20)] * 20
    assert bounds.goodput(requests, machine, (0.0, 2.0), queue=2) == 3 / 20
    assert bounds.goodput(requests, machine, (0.0, 2.0), queue=100) == 1.0


def test_a_refused_client_comes_back_when_it_was_told_but_not_forever() -> None:
    machine = Machine(devices=1, slots=1)
    requests = [Arrival(0.5, 100.0, (0, 0), 20), *[Arrival(0.6, 1.0, (512, 512), 20)] * 2]  # the first takes 12 s

    def answers(retries: int) -> tuple[list[int], list[type[m.Outcome]], float]:
        run = Simulator(LeastLoaded, machine, requests, seed=1, queue=1, retries=retries).run()
        return [run.tries[n] for n in range(3)], [type(run.answers[n][1]) for n in range(3)], run.answers[2][0]

    assert answers(0) == ([1, 1, 1], [m.Done, m.Done, m.Rejected], 0.6)
    assert answers(3) == ([1, 1, 4], [m.Done, m.Done, m.Rejected], 3.6)  # each time it is told one second
    tries, outcomes, seconds = answers(20)
    assert outcomes == [m.Done] * 3
    assert tries == [1, 1, 13]
    assert seconds > 12.6


def test_promises_are_kept_and_clients_get_their_share_under_overload() -> None:
    [_, row] = experiment(1.2, deadline=3.0, machine=Machine(), seconds=20.0).compare(ONLY_CONTOUR)
    assert row.late is not None
    assert row.late <= 0.005
    assert row.fairness is not None
    assert row.fairness >= 0.99
    assert row.refused


@pytest.mark.parametrize("gain", ["weak", "strong"])
def test_mixed_sizes_reach_most_of_the_possible_throughput(gain: str) -> None:
    machine = Machine(gain=gain, slots=DEFAULT_SLOTS[gain])
    [_, row] = experiment(1.2, machine=machine, seconds=40.0).compare(ONLY_CONTOUR)
    assert row.throughput is not None
    assert row.throughput >= 0.9
    assert row.late == 0


def test_fair_shares_are_the_same_for_all_who_ask_for_more() -> None:
    assert report.max_min_shares({"a": 10.0, "b": 1.0, "c": 10.0}, 9.0) == {"b": 1.0, "a": 4.0, "c": 4.0}


# ----------------------------------------------------------------------------------------------------------- set aside


def set_aside(workers: Sequence[m.WorkerId], queue: int) -> Scheduler:
    return Preemptive(workers, Limits(max_queue=queue))


def alone(workers: Sequence[m.WorkerId], queue: int) -> Scheduler:
    return Exclusive(workers, Limits(max_queue=queue))


@pytest.mark.parametrize("slots", [1, 4])
def test_a_preempted_image_continues_where_it_stopped(slots: int) -> None:
    machine = Machine(devices=1, slots=slots, jitter=0.0, preemption_seconds=0.001)
    background = Arrival(0.0, 1.0, (512, 512), 20, "background", 600.0, -1)
    requests = [background, Arrival(0.05, 1.0, (512, 512), 20, "interactive")]
    run = Simulator(alone if slots > 1 else set_aside, machine, requests, seed=1, queue=10).run()
    (end, _), (first, _) = run.answers[0], run.answers[1]
    assert first - 0.05 == pytest.approx(20 * 0.0055 + 0.008, abs=0.01)  # as if nothing else ran, but for one step
    assert end == pytest.approx(40 * 0.0055 + 2 * 0.004 + 0.002, abs=0.01)  # as if nothing was lost
    assert all(isinstance(outcome, m.Done) for _, outcome in run.answers.values())


@pytest.mark.parametrize("make", [set_aside, alone])
def test_preempted_images_are_answered_in_the_end(make: MakeCore) -> None:
    requests = drawn(MACHINE, Traffic(seconds=8.0, background=0.5), 0.95, seed=1).arrivals
    run = Simulator(make, MACHINE, requests, seed=1, queue=256).run()
    assert all(isinstance(outcome, m.Done) for _, outcome in run.answers.values())


# -------------------------------------------------------------------------------------------------------- arrivals, CLI


@pytest.mark.parametrize("bursty", [False, True])
def test_arrivals_have_the_rate_that_was_asked_for(bursty: bool) -> None:
    drawn = arrivals.draw(Traffic(seconds=2000.0, bursty=bursty), rate=5.0, seed=3)
    assert len(drawn) == pytest.approx(10_000, rel=0.1 if bursty else 0.03)
    assert [each.seconds for each in drawn] == sorted(each.seconds for each in drawn)
    assert sum(each.client == arrivals.GREEDY_CLIENT for each in drawn) == pytest.approx(len(drawn) / 2, rel=0.05)


def test_a_share_of_the_arrivals_can_be_background_work() -> None:
    drawn = arrivals.draw(Traffic(seconds=500.0, background=0.3, deadlines=(5.0,)), rate=5.0, seed=3)
    background = [each for each in drawn if each.priority < 0]
    assert len(background) == pytest.approx(0.3 * len(drawn), rel=0.1)
    assert {each.deadline for each in background} == {600.0}
    assert not {each.client for each in background} & {each.client for each in drawn if each.priority == 0}


def test_a_recording_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"seconds": 2, "width": 768, "height": 512, "steps": 4, "client": "a", "deadline": 3, "priority": 1}\n\n'
        '{"seconds": 1, "work": 2.25}\n'
    )
    assert arrivals.read(file) == [Arrival(1, 2.25, (0, 0), 20), Arrival(2, 1.5, (768, 512), 4, "a", 3.0, 1)]


@pytest.mark.parametrize("line", ["{", '{"seconds": 1}', '{"seconds": "a", "work": 1}', '{"seconds": 1, "wide": 512}'])
def test_a_bad_line_of_a_recording_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(f'{{"seconds": 1, "work": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .* Example: "):
        arrivals.read(file)


def test_the_command_prints_a_table_and_writes_json_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, image = tmp_path / "rows.json", tmp_path / "plot.png"
    options = ["--devices", "2", "--load", "0.5", "1.5", "--seconds", "3", "--deadline", "60", "3"]
    cli.main([*options, "--json", str(figures), "--plot", str(image)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["load", "scheduler"]
    assert len(lines) == 1 + 2 * (1 + len(SCHEDULERS))
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["load"], row["scheduler"]) for row in rows[:2]] == [(0.5, "bound"), (0.5, "contour")]
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_command_replays_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"seconds": n / 10, "work": 1}) + "\n" for n in range(20)))
    cli.main(["--devices", "1", "--trace", str(trace)])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(SCHEDULERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "9"], "must be 1 to 8"),
        (["--devices", "two"], "must be a number"),
        (["--straggler", "0"], "must be more than 0"),
        (["--trace", "missing.jsonl"], "missing.jsonl"),
        (["--trace", "a", "--load", "1"], "leave out --load"),
        (["--seconds", "0.0001"], "No request arrives"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(options)
    assert message in capsys.readouterr().err


def test_without_matplotlib_the_command_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        cli.main(["--devices", "1", "--load", "0.5", "--seconds", "2", "--plot", str(tmp_path / "plot.png")])
    assert capsys.readouterr().out


def test_the_simulation_imports_nothing_of_the_service() -> None:
    code = "import scheduler.simulation.__main__, sys; print(*sys.modules)"
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    loaded = {name.partition(".")[0] for name in shown.stdout.split()}
    assert not loaded & {"app", "asyncio", "matplotlib", "torch", "tqdm", "workers"}
