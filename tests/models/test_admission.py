"""Scheduler and dispatch together: whatever happens, admitted memory never exceeds the machine's."""

from __future__ import annotations

from collections import deque
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qgexec.events import AttemptLost, AttemptReturned, AttemptStarted, AttemptSucceeded, Event
from qgexec.models.dispatch import PREFETCH_S, Dispatch
from qgexec.models.worker import decode_attempt
from qgexec.models.workers import Worker
from qgexec.processes.forked import Channel, Message, Process
from qgexec.quantum import Attempt, Outcome, OutcomeStatus, Resources
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.testing import plan_of

LABELS = ("small", "middle", "large", "alone")


class PaperChannel:
    """Keeps what is sent until somebody takes it."""

    def __init__(self) -> None:
        self.under_way: deque[Message] = deque()

    def send(self, message: Message) -> None:
        self.under_way.append(message)


class PaperProcess:
    """A worker process without a process: it begins what it is told to begin."""

    def __init__(self, number: int) -> None:
        self.name = f"worker-{number:04d}"
        self.paper = PaperChannel()
        self.channel = cast("Channel", self.paper)
        self.running: Attempt | None = None

    def take_back(self) -> Message | None:
        return self.paper.under_way.popleft() if self.paper.under_way else None

    def begin(self) -> None:
        self.running = decode_attempt(self.paper.under_way.popleft())


class Admission(RuleBasedStateMachine):
    """A pool on paper, driven as the loop drives it."""

    @initialize(
        n_workers=st.integers(1, 4),
        total=st.integers(10, 30),
        requests=st.lists(st.none() | st.integers(0, 10), min_size=len(LABELS), max_size=len(LABELS)),
        names=st.lists(st.sampled_from(LABELS), min_size=1, max_size=30),
        took_s=st.sampled_from([PREFETCH_S / 10, PREFETCH_S / 3, 2 * PREFETCH_S]),
    )
    def open(
        self, n_workers: int, total: int, requests: list[int | None], names: list[str], took_s: float
    ) -> None:
        rules = {
            label: TaskRules(Resources(1, memory), retries=Retries(lost=100))
            for label, memory in zip(LABELS, requests, strict=True)
        }
        plan = plan_of([f"{label}:{i}" for i, label in enumerate(names)])
        self.total = total
        self.scheduler = Scheduler(plan, policy=Policy(rules=rules), serial_labels=("alone",))
        self.dispatch = Dispatch(n_workers, ("alone",), lambda _worker: None)
        self.workers: dict[Worker, PaperProcess] = {}
        self.admitted: dict[int, Attempt] = {}
        self.n_started = 0
        for _ in range(n_workers):
            self.start_worker(None)
        for label in LABELS:
            self.dispatch.durations.add(label, took_s)

    def start_worker(self, label: str | None) -> None:
        self.n_started += 1
        process = PaperProcess(self.n_started)
        worker = Worker(self.n_started, cast("Process", process), label, announced=True, ready=True)
        self.workers[worker] = process
        if label is not None:
            self.dispatch.dedicated[label] = worker
        self.dispatch.file(worker)

    def record(self, event: Event) -> None:
        """Let the scheduler know how an attempt ended."""
        if isinstance(event, AttemptLost):
            self.scheduler.apply(self.scheduler.judge(event))
        else:
            self.scheduler.apply(event)

    @rule()
    def admit(self) -> None:
        """Start what the scheduler chooses."""
        capacity = Resources(self.dispatch.capacity(), self.total - self.dispatch.memory_bytes)
        for attempt in self.scheduler.select(capacity):
            self.scheduler.apply(AttemptStarted(0.0, attempt.index, attempt.number))
            self.admitted[attempt.index] = attempt
            self.dispatch.add(attempt)
        self.dispatch.assign()
        if self.dispatch.serial_backlog["alone"] and "alone" not in self.dispatch.dedicated:
            self.start_worker("alone")
            self.dispatch.assign()

    @rule(choice=st.integers(0, 99))
    def begin(self, choice: int) -> None:
        """Let a worker begin the next that it was sent."""
        ready = [p for p in self.workers.values() if p.running is None and p.paper.under_way]
        if ready:
            ready[choice % len(ready)].begin()

    @rule(choice=st.integers(0, 99))
    def end(self, choice: int) -> None:
        """Let a quantum succeed."""
        busy = [worker for worker, process in self.workers.items() if process.running is not None]
        if not busy:
            return
        worker = busy[choice % len(busy)]
        attempt = self.dispatch.withdraw(worker)
        assert attempt == self.workers[worker].running
        self.workers[worker].running = None
        del self.admitted[attempt.index]
        outcome = Outcome(attempt.index, attempt.number, OutcomeStatus.SUCCEEDED, 0.0, 1.0)
        self.record(AttemptSucceeded(1.0, outcome))

    @rule(choice=st.integers(0, 99))
    def die(self, choice: int) -> None:
        """Let a worker die, with or without something begun, and another take its place."""
        worker = list(self.workers)[choice % len(self.workers)]
        process = self.workers[worker]
        behind = []
        while worker.held and (attempt := self.dispatch.take_back(worker)) is not None:
            behind.append(attempt)
        while worker.held:
            attempt = self.dispatch.withdraw(worker)
            del self.admitted[attempt.index]
            self.record(AttemptLost(1.0, attempt.index, attempt.number, "killed", -9))
        worker.doomed = True
        self.dispatch.file(worker)
        del self.workers[worker]
        if worker.label is not None:
            del self.dispatch.dedicated[worker.label]
        self.dispatch.requeue(behind)
        assert not process.paper.under_way
        self.start_worker(worker.label)

    @rule()
    def even_out(self) -> None:
        """Let idle workers take over."""
        self.dispatch.even_out()

    @precondition(lambda self: self.dispatch.n_waiting)
    @rule()
    def take_all_waiting(self) -> None:
        """Give back what waits, as at the end of a run."""
        for attempt in self.dispatch.take_all_waiting():
            del self.admitted[attempt.index]
            self.record(AttemptReturned(1.0, attempt.index, attempt.number))

    @invariant()
    def memory_is_enough(self) -> None:
        """All that was admitted, and so all that runs, fits; and the books are right."""
        if not hasattr(self, "dispatch"):
            return
        asked = sum(attempt.resources.memory_bytes or 0 for attempt in self.admitted.values())
        assert asked == self.dispatch.memory_bytes
        assert asked <= self.total


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
