"""Plans from a line of text, and an execution model, a clock and a bench that do as they are told.

For tests, also of execution models in other packages: most need no process, no butler and no sleep.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    FailureEvent,
    StopRequested,
)
from qgexec.models.base import ExecutionModel, ModelFacts, Run
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources, SegmentRef
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import INVALID_QUANTUM_EXIT_CODE, REPEATABLE_QUANTUM_EXIT_CODE
from qgexec.scheduling.scheduler import Scheduler

__all__ = [
    "AnyEnding",
    "BenchAct",
    "Ending",
    "FakeBench",
    "FakeBenchOpener",
    "FakeClock",
    "FakeModel",
    "ended",
    "make_plan",
    "plan_of",
    "run_plan",
]

_IDS = uuid.UUID("6f1a9f0c-0f3b-4d39-9a53-6d1d2f9d5c11")

_SEED_TIME = 1_000_000.0


def plan_of(quanta: Sequence[str], edges: Iterable[tuple[int, int]] = ()) -> Plan:
    """Return a plan of named quanta.

    Parameters
    ----------
    quanta
        Names, each a task label, or a task label and a number: ``isr:3``.
        The data ID is ``{"detector": 3}``, and 0 where there is no number.
        The same names have the same quantum IDs in every plan.
    edges
        Pairs of positions in ``quanta``: a prerequisite and what waits for it.

    Raises
    ------
    qgexec.errors.GraphError
        A name is there twice, or the edges make a circle.
    """
    parts = [name.partition(":") for name in quanta]
    labels = list(dict.fromkeys(label for label, _, _ in parts))
    pairs = np.array(list(edges), dtype=np.int64).reshape(-1, 2)
    return Plan.from_edges(
        labels=dict.fromkeys(labels, ("detector",)),
        label_codes=[labels.index(label) for label, _, _ in parts],
        quantum_ids=b"".join(uuid.uuid5(_IDS, name).bytes for name in quanta),
        data_ids=DataIds.pack([int(number or 0)] for _, _, number in parts),
        predecessors=pairs[:, 0],
        successors=pairs[:, 1],
    )


def make_plan(text: str) -> Plan:
    """Return a plan from a line such as ``"a b -> c; c -> d e"``.

    Every name before an arrow is a prerequisite of every name after it; semicolons separate; a name
    means the same quantum wherever it stands. Names are as in `plan_of`. The quanta are
    enumerated as they are named first, where their prerequisites allow it.
    """
    numbers: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    for clause in text.split(";"):
        before: list[int] = []
        for group in clause.split("->"):
            named = [numbers.setdefault(name, len(numbers)) for name in group.split()]
            edges += [(first, second) for first in before for second in named]
            before = named
    return plan_of(list(numbers), edges)


class FakeClock:
    """A clock that stands still until it is told to go on.

    Parameters
    ----------
    now
        What it shows first, UNIX seconds.
    """

    def __init__(self, now: float = _SEED_TIME) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return what it shows, UNIX seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Ending(Enum):
    """What becomes of an attempt that a `FakeModel` is told to start."""

    SUCCEED = "succeed"
    """`AttemptSucceeded`."""

    FAIL = "fail"
    """`AttemptFailed` with a ValueError."""

    FAIL_INVALID = "fail as invalid"
    """`AttemptFailed` with what upstream raises if the graph or the configuration is wrong."""

    FAIL_REPEATABLE = "fail as repeatable"
    """`AttemptFailed` with what upstream raises if another attempt would fail in the same way."""

    SKIP = "skip"
    """`AttemptSkipped`."""

    LOSE = "lose"
    """`AttemptLost`: killed by signal 9."""

    SEGFAULT = "segfault"
    """`AttemptLost`: ended by signal 11."""

    OUT_OF_MEMORY = "out of memory"
    """`AttemptOutOfMemory`: over its limit."""

    OUT_OF_MEMORY_BY_KERNEL = "out of memory by kernel"
    """`AttemptOutOfMemory`: there was no more."""

    TIME_OUT = "time out"
    """`AttemptTimedOut`."""

    RETURN = "return"
    """`AttemptReturned`."""

    HANG = "hang"
    """Nothing, until the model is closed."""


AnyEnding = Ending | ExceptionSummary | int
"""An ending, an exception to fail with, or an exit status (minus a signal's number) to be lost with."""

_IN_FULL: Mapping[AnyEnding, AnyEnding] = {
    Ending.FAIL: ExceptionSummary("builtins.ValueError", "as told"),
    Ending.FAIL_INVALID: ExceptionSummary(
        "lsst.pipe.base.InvalidQuantumError", "as told", exit_code=INVALID_QUANTUM_EXIT_CODE
    ),
    Ending.FAIL_REPEATABLE: ExceptionSummary(
        "lsst.pipe.base.RepeatableQuantumError", "as told", exit_code=REPEATABLE_QUANTUM_EXIT_CODE
    ),
    Ending.LOSE: -signal.SIGKILL,
    Ending.SEGFAULT: -signal.SIGSEGV,
}


class FakeModel(ExecutionModel):
    """An execution model that runs nothing: a script says how each attempt ends.

    Parameters
    ----------
    capacity
        What the whole machine has; one core if not given. Starting more than fits is an AssertionError.
    script
        How attempts end, by quantum index or by task label (the index has
        precedence): one ending for all attempts, or one for each, the last of
        them also for further ones. What is not named succeeds.
        What ends for its memory has more the next time, if the policy lets it grow.
    clock
        Each attempt that ends lets a second pass on it, and waiting for nothing the time-out.
    facts
        What it says of itself.
    choose
        Which of the running attempts ends next, as a position in the list it
        is given in the order of their start; the first if not given.
    """

    def __init__(
        self,
        capacity: Resources | None = None,
        script: Mapping[int | str, AnyEnding | Sequence[AnyEnding]] | None = None,
        *,
        clock: FakeClock | None = None,
        facts: ModelFacts | None = None,
        choose: Callable[[Sequence[Attempt]], int] | None = None,
    ) -> None:
        self.facts = facts or ModelFacts()
        self.total = capacity or Resources()
        self.clock = clock or FakeClock()
        self.started: list[Attempt] = []
        """All attempts that were ever started, in that order."""
        self.running: list[Attempt] = []
        """Attempts that have not ended, in the order of their start."""
        self.opened: Run | None = None
        """What it was opened with."""
        self.closed: list[bool] = []
        """``cancel`` of each call of `close`."""
        self.serial_labels: frozenset[str] = frozenset()
        """Labels whose quanta use no core of the capacity; from the run it is opened with."""
        self._script = script or {}
        self._choose = choose

    def open(self, run: Run) -> None:
        """Remember what it was opened with."""
        assert self.opened is None, "opened twice"
        self.opened = run
        self.serial_labels = run.serial_labels

    def capacity(self) -> Resources:
        """Return what the running attempts leave."""
        cores = self.total.cores - sum(
            attempt.resources.cores
            for attempt in self.running
            if attempt.task_label not in self.serial_labels
        )
        if self.total.memory_bytes is None:
            return Resources(cores)
        used = sum(attempt.resources.memory_bytes or 0 for attempt in self.running)
        return Resources(cores, self.total.memory_bytes - used)

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Take attempts in hand, after checking that they may be started together."""
        for attempt in attempts:
            assert all(attempt.index != other.index for other in self.running), f"{attempt} runs already"
            labels = [other.task_label for other in self.running]
            assert attempt.task_label not in self.serial_labels or attempt.task_label not in labels, attempt
            self.running.append(attempt)
            self.started.append(attempt)
        free = self.capacity()
        assert free.cores >= 0, f"over capacity: {free}"
        assert (free.memory_bytes or 0) >= 0, f"over capacity: {free}"

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """End one attempt, or let the time-out pass if none is going to end."""
        ending = [attempt for attempt in self.running if self._ending(attempt) is not Ending.HANG]
        if not ending:
            self.clock.advance(timeout_s)
            return []
        attempt = ending[self._choose(ending) if self._choose else 0]
        self.running.remove(attempt)
        self.clock.advance(1.0)
        return [ended(attempt, self._ending(attempt), self.clock.now)]

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """Return what still runs."""
        self.closed.append(cancel)
        assert cancel or not self.running, "closed without cancelling what runs"
        events = [AttemptReturned(self.clock.now, attempt.index, attempt.number) for attempt in self.running]
        self.running.clear()
        return events

    def _ending(self, attempt: Attempt) -> AnyEnding:
        endings = self._script.get(attempt.index, self._script.get(attempt.task_label, Ending.SUCCEED))
        if isinstance(endings, AnyEnding):
            return endings
        return endings[min(attempt.number, len(endings)) - 1]


def ended(attempt: Attempt, ending: AnyEnding, at: float) -> AttemptEvent:
    """Return the event that ends an attempt in this way; it took the second before ``at``."""
    index, number = attempt.index, attempt.number
    match _IN_FULL.get(ending, ending):
        case ExceptionSummary() as error:
            return _failed(attempt, error, at - 1, at)
        case int(exit_code):
            return _lost(attempt, exit_code, at)
        case Ending.SUCCEED:
            return AttemptSucceeded(at, Outcome(index, number, OutcomeStatus.SUCCEEDED, at - 1, at))
        case Ending.SKIP:
            return AttemptSkipped(at, Outcome(index, number, OutcomeStatus.SKIPPED, at - 1, at))
        case Ending.OUT_OF_MEMORY:
            limit = attempt.memory_limit_bytes or attempt.resources.memory_bytes or 0
            return AttemptOutOfMemory(at, index, number, limit + 1, limit, worker=1)
        case Ending.OUT_OF_MEMORY_BY_KERNEL:
            return AttemptOutOfMemory(at, index, number, None, None, by_kernel=True, worker=1)
        case Ending.TIME_OUT:
            return AttemptTimedOut(at, index, number, attempt.timeout_s or 1.0, 1)
        case Ending.RETURN:
            return AttemptReturned(at, index, number)
        case _:
            raise ValueError("an attempt that hangs does not end")


def _lost(attempt: Attempt, exit_code: int, at: float) -> AttemptLost:
    if exit_code < 0:
        how = f"was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    else:
        how = f"exited with status {exit_code}"
    return AttemptLost(at, attempt.index, attempt.number, f"worker 1 {how}", int(exit_code), 1)


def _failed(
    attempt: Attempt,
    exception: ExceptionSummary,
    started_at: float,
    at: float,
    detail: SegmentRef | None = None,
) -> AttemptFailed:
    status = OutcomeStatus.FAILED
    outcome = Outcome(
        attempt.index, attempt.number, status, started_at, at, exception=exception, detail=detail
    )
    return AttemptFailed(at, outcome)


def run_plan(scheduler: Scheduler, model: FakeModel, *, limit: int = 100_000) -> list[Event]:
    """Drive a scheduler to its end with a fake model, without a journal; return all events in their order.

    Failures are judged by the scheduler's policy before they are applied.

    Raises
    ------
    AssertionError
        It takes more than ``limit`` rounds, or nothing runs and nothing is started.
    """
    events: list[Event] = []

    def apply(event: Event) -> None:
        if isinstance(event, FailureEvent):
            event = scheduler.judge(event)
        scheduler.apply(event)
        events.append(event)

    for _ in range(limit):
        if scheduler.finished:
            return events
        attempts = scheduler.select(model.capacity())
        for attempt in attempts:
            apply(AttemptStarted(model.clock.now, attempt.index, attempt.number))
        model.start(attempts)
        assert model.running, scheduler.stuck(model.capacity()) or "nothing runs and nothing is started"
        for event in model.wait(1.0):
            apply(event)
        reason = scheduler.wants_stop()
        if reason is not None:
            apply(StopRequested(model.clock.now, reason))
    raise AssertionError(f"not finished after {limit} rounds")


@dataclass(frozen=True, slots=True)
class BenchAct:
    """What a `FakeBench` does with a quantum, in the order of these fields."""

    sleep_s: float = 0.0
    """Sleep that long."""

    signal: signal.Signals | None = None
    """Send its own process this signal."""

    exit_code: int | None = None
    """End the process at once with this status, as `os._exit` does."""

    raises: type[BaseException] | None = None
    """Let this out of ``execute``, which a bench never should."""

    fails: str | None = None
    """Return `AttemptFailed` with a RuntimeError of this message."""

    detail: SegmentRef | None = None
    """Name this detail in the outcome."""


@dataclass(frozen=True, slots=True)
class FakeBench:
    """A bench that executes nothing: a table says what it does for each task label.

    Parameters
    ----------
    acts
        What to do, by task label; quanta of other labels succeed at once.
    trace
        File to which it appends ``<segment name> <index> <attempt>`` and a newline as an attempt begins.
    segment
        Name of the segment file that it would write.
    """

    acts: Mapping[str, BenchAct] = field(default_factory=dict)
    trace: Path | None = None
    segment: str = "driver"

    def execute(self, attempt: Attempt) -> Event:
        """Do as the table says."""
        started_at = time.time()
        if self.trace is not None:
            with self.trace.open("a") as stream:
                stream.write(f"{self.segment} {attempt.index} {attempt.number}\n")
        act = self.acts.get(attempt.task_label, BenchAct())
        if act.sleep_s:
            time.sleep(act.sleep_s)
        if act.signal is not None:
            os.kill(os.getpid(), act.signal)
        if act.exit_code is not None:
            os._exit(act.exit_code)
        if act.raises is not None:
            raise act.raises("as told")
        now = time.time()
        if act.fails is not None:
            failure = ExceptionSummary("builtins.RuntimeError", act.fails)
            return _failed(attempt, failure, started_at, now, act.detail)
        status = OutcomeStatus.SUCCEEDED
        outcome = Outcome(
            attempt.index, attempt.number, status, started_at, now, pid=os.getpid(), detail=act.detail
        )
        return AttemptSucceeded(now, outcome)

    def close(self) -> None:
        """Do nothing: nothing is open."""


@dataclass(frozen=True, slots=True)
class FakeBenchOpener:
    """Opens a `FakeBench` in whatever process calls it; can be pickled."""

    acts: Mapping[str, BenchAct] = field(default_factory=dict)
    trace: Path | None = None

    def __call__(self, segment: str) -> FakeBench:
        """Open the bench of the process that writes this segment."""
        return FakeBench(self.acts, self.trace, segment)
