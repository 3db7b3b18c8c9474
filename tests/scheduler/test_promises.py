"""The promises of the scheduler: a random world drives the core, and checks its commands from outside.

The world plays clients, clock and worker processes, with their races: messages in flight when a process is killed, late
ones of former processes, workers that hang. It knows nothing of the core but its commands and public face.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from msgspec.structs import replace

from scheduler.core import IllegalEvent
from scheduler.messages import (
    Blame,
    Cancelled,
    Costs,
    Drain,
    Event,
    Failed,
    Faulted,
    Finished,
    Job,
    Measured,
    Opened,
    Released,
    Stepped,
    Submitted,
    Tick,
    WaitReason,
    WorkerExited,
    WorkerReady,
)
from tests.scheduler.sums import steps_of
from tests.scheduler.words import CPU, GPU, IMAGE, SINGLE
from tests.scheduler.world import LIMITS, WORKERS, Client, World, pick

a_device = st.sampled_from([GPU, CPU, SINGLE])
CLIENTS = ("a", "a", "b", "c")
ELSEWHERE = {WaitReason.SOONER_ELSEWHERE, WaitReason.IN_TIME_ELSEWHERE}
worker_ids = st.sampled_from(WORKERS)
any_index = st.integers(0, 1000)


class AnyWorld(World):
    # ---------------------------------------------------------------------------------------------------------- rules

    @initialize(early=st.integers(0, 3), costs=st.lists(a_device, min_size=len(WORKERS), max_size=len(WORKERS)))
    def open(self, early: int, costs: list[Costs]) -> None:
        self.submit(early, seconds=100.0, work=1.0, client="a", relative_steps=1.0, priority=0)
        self.tell(Opened())
        for worker, each in zip(WORKERS, costs, strict=True):
            self.load(worker, each)

    @rule(
        count=st.integers(1, 4),
        seconds=st.sampled_from([1.0, 20.0, 100.0, 400.0]),
        work=st.sampled_from([0.5, 1.0, 2.0]),
        client=st.sampled_from(CLIENTS),
        relative_steps=st.sampled_from([1.0, 1.0, 0.05, 2.5]),
        priority=st.sampled_from([0, 0, 3, -3]),
    )
    def submit(
        self, count: int, seconds: float, work: float, client: str, relative_steps: float, priority: int
    ) -> None:
        for _ in range(count):
            job = Job(len(self.clients) + 1, self.now + seconds, work, client, relative_steps, priority)
            self.clients[job.id] = Client(job)
            self.tell(Submitted(job))

    @rule(index=any_index)
    def cancel(self, index: int) -> None:
        # One of the last jobs, answered or not, or one that nobody has submitted.
        self.tell(Cancelled(len(self.clients) + 1 - index % 10))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (wakeup := self.core.next_wakeup) is not None and wakeup <= end:
            self.now = max(self.now, wakeup)
            self.tell(Tick())
        self.now = end

    @rule(seconds=st.sampled_from([0.1, 3.0, 12.0]))
    def wait_without_ticks(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        self.tell(Tick())

    @rule(index=any_index, costs=a_device)
    @precondition(lambda self: self.loading())
    def become_ready(self, index: int, costs: Costs) -> None:
        self.load(pick(self.loading(), index), costs)

    @rule(index=any_index, steps=st.integers(1, 50))
    @precondition(lambda self: self.working())
    def step(self, index: int, steps: int) -> None:
        worker = pick(self.working(), index)
        process = self.processes[worker]
        for slot in process.slots.values():
            assert process.costs is not None
            slot.steps = min(slot.steps + steps, steps_of(process.costs, self.clients[slot.job].job.relative_steps))
        self.tell(Stepped(worker, tuple((number, slot.steps) for number, slot in process.slots.items())))

    @rule(index=any_index)
    @precondition(lambda self: self.working())
    def finish(self, index: int) -> None:
        worker, slot, generation = self.leave(index, cancelled=False)
        self.tell(Finished(worker, slot, generation, IMAGE))

    @rule(index=any_index, blame=st.sampled_from(Blame))
    @precondition(lambda self: self.working())
    def fail(self, index: int, blame: Blame) -> None:
        worker, slot, generation = self.leave(index, cancelled=False, lacking=blame is Blame.MEMORY)
        self.tell(Failed(worker, slot, generation, "no", blame))

    @rule(index=any_index, faster=st.sampled_from([0.25, 1.0, 3.0]))
    @precondition(lambda self: any(process.ready for process in self.processes.values()))
    def measure(self, index: int, faster: float) -> None:
        worker = pick([worker for worker, process in self.processes.items() if process.ready], index)
        process = self.processes[worker]
        assert process.costs is not None
        seconds = tuple(each / faster for each in process.costs.step_seconds)
        process.costs = replace(process.costs, step_seconds=seconds)
        self.tell(Measured(worker, process.costs))

    @rule(index=any_index)
    @precondition(lambda self: self.leaving())
    def release(self, index: int) -> None:
        self.tell(Released(*self.leave(index, cancelled=True)))

    @rule(index=any_index)
    @precondition(lambda self: self.working())
    def hang(self, index: int) -> None:
        self.processes[pick(self.working(), index)].hangs = True

    @rule(index=any_index)
    @precondition(lambda self: self.working())
    def crash(self, index: int) -> None:
        self.lose(pick(self.working(), index), outside=False)

    @rule(index=any_index, outside=st.booleans())
    @precondition(lambda self: self.processes)
    def die(self, index: int, outside: bool) -> None:
        self.lose(pick(sorted(self.processes), index), outside=outside)

    @rule(worker=worker_ids)
    def fault(self, worker: str) -> None:
        self.tell(Faulted(worker, "XID 79"))
        assert worker not in self.processes or self.processes[worker].killed

    @rule()
    def reap(self) -> None:
        for worker in [worker for worker, process in self.processes.items() if process.killed]:
            self.lose(worker, outside=False)

    @rule(index=any_index)
    @precondition(lambda self: bool(self.late))
    def hear_the_dead(self, index: int) -> None:
        self.tell(Tick())
        assert self.tell(self.late[index % len(self.late)]) == []

    @rule(worker=worker_ids, costs=st.sampled_from([GPU, Costs(0, (), 0.0)]))
    def say_what_cannot_be(self, worker: str, costs: Costs) -> None:
        process = self.processes.get(worker)
        unanswered = [client.job for client in self.clients.values() if client.outcome is None]
        events: list[Event] = [Opened(), WorkerExited("nobody", ""), *map(Submitted, unanswered)]
        if process is None:
            events += [WorkerReady(worker, costs), Measured(worker, costs), WorkerExited(worker, "")]
        elif process.costs is None and not process.killed:
            events += [Measured(worker, costs)]
        elif process.ready or (costs.steps == 0 and not process.killed):
            events += [WorkerReady(worker, costs)]
        for event in [] if self.exited else events:
            before = self.face()
            with pytest.raises(IllegalEvent):
                self.core.handle(self.now, event)
            assert self.face() == before

    @rule(seconds=st.sampled_from([0.0, 10.0, 60.0]))
    @precondition(lambda self: len(self.clients) > 40)
    def drain(self, seconds: float) -> None:
        end = self.now + seconds
        self.drain_end = end if self.drain_end is None else min(end, self.drain_end)
        self.tell(Drain(end))

    # --------------------------------------------------------------------------------------------- between the commands

    @invariant()
    def the_face_is_true(self) -> None:
        if self.exited:
            return
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        unanswered = {number for number, client in self.clients.items() if client.outcome is None}
        assert self.core.running == len(running & unanswered)
        assert self.core.queue_depth == len(unanswered - running)
        assert self.core.ready == any(process.ready for process in self.processes.values())
        assert self.core.draining == (self.drain_end is not None)

    @invariant()
    def who_waits_stands_somewhere(self) -> None:
        if self.exited:
            return
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        for number, client in self.clients.items():
            queue_position = self.core.place_of(number)
            assert (queue_position is not None) == (client.outcome is None and number not in running)
            assert queue_position is None or 0 <= queue_position.position < self.core.queue_depth
            assert queue_position is None or queue_position.seconds is None or queue_position.seconds >= 0.0

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        if self.exited:
            return
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        waiting = [each for number, each in self.clients.items() if each.outcome is None and number not in running]
        ready = {name: process for name, process in self.processes.items() if process.ready}
        assert (self.core.wait_reason is None) == (not waiting)
        assert (self.core.wait_reason is WaitReason.NO_WORKER) == (bool(waiting) and not ready)
        for name, process in ready.items():
            if not process.slots:  # idle: only for a suspect who prefers another, or for who waits for a faster one
                faster = self.core.wait_reason in ELSEWHERE and len(ready) > 1
                assert all(faster or (client.lost_on == name and len(ready) > 1) for client in waiting)
        room = any(process.room for process in ready.values())
        if self.core.wait_reason is WaitReason.SLOTS_TAKEN:
            assert not room
        if self.core.wait_reason in {WaitReason.SUSPECT, WaitReason.BATCH_SLOWER, WaitReason.DEADLINE, *ELSEWHERE}:
            assert room
        if self.core.wait_reason in {WaitReason.SUSPECT, WaitReason.NEEDS_EMPTY}:
            assert any(client.losses for client in self.clients.values())

    @invariant()
    def a_client_alone_leaves_places_for_others(self) -> None:
        waiting = [each.job.client for each in self.clients.values() if each.outcome is None]
        if len(set(waiting)) == 1 and not any(each.losses for each in self.clients.values()):
            assert self.core.queue_depth <= LIMITS.max_queue * LIMITS.lone_share

    def teardown(self) -> None:
        """Nothing more happens but the clock: drained, everybody has an answer by the end."""
        self.drain(30.0)
        assert self.drain_end is not None
        for _ in range(1000):
            wakeup = self.core.next_wakeup
            if wakeup is None:
                break
            assert wakeup <= self.drain_end
            self.now = max(self.now, wakeup)
            self.tell(Tick())
        assert self.exited
        assert all(client.outcome is not None for client in self.clients.values())


AnyWorld.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None, derandomize=True)
test_the_promises_hold_in_any_world = AnyWorld.TestCase
