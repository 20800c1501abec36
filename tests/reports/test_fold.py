"""Tests of `qgexec.reports.fold`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsst.pipe.base import QuantumSuccessCaveats

from qgexec.books.journal import Journal, read_events
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    FailureEvent,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.quantum import Attempt, Outcome, OutcomeStatus, Resources
from qgexec.reports.failures import TroubledQuantum
from qgexec.reports.fold import CAVEATS, Fold, total_of
from qgexec.reports.measured import Spread
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler, State
from qgexec.testing import make_plan, plan_of

BEGAN = RunStarted(100.0, "node1", 42, 99.0, "pool", 4)


class NoFiles:
    """Nothing was kept."""

    def log(self, index: int, attempt: int) -> Path | None:
        return None

    def stack(self, index: int, attempt: int) -> Path | None:
        return None


def failures_of(fold: Fold) -> list[TroubledQuantum]:
    """Return what has failed."""
    return [quantum for quantum in fold.troubled(NoFiles()) if quantum.state is State.FAILED]


def ended(index: int, status: OutcomeStatus, attempt: int = 1, **kwargs: object) -> Outcome:
    values = {"started_at": 101.0, "ended_at": 103.0, "cpu_s": 1.5, "peak_rss_bytes": 1000, **kwargs}
    return Outcome(index, attempt, status, **values)  # type: ignore[arg-type]


def folded(plan: Plan, *events: Event) -> Fold:
    fold = Fold(plan)
    for event in events:
        fold.apply(event)
    return fold


def test_caveats_have_upstreams_names() -> None:
    """The table says what upstream's enumeration says, flag by flag."""
    assert {flag.value: flag.name for flag in QuantumSuccessCaveats} == CAVEATS


@given(
    n_quanta=st.integers(1, 12),
    edges=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
    data=st.data(),
)
def test_what_is_read_back_is_what_was_lived(
    n_quanta: int, edges: set[tuple[int, int]], data: st.DataObject
) -> None:
    """Any run whatever, through the journal and folded again: every quantum is in the state that it had."""
    plan = plan_of(
        [f"{'abc'[i % 3]}:{i}" for i in range(n_quanta)], [(a, b) for a, b in edges if a < b < n_quanta]
    )
    rules = TaskRules(retries=Retries(common=1, lost=1))
    live = Scheduler(plan, policy=Policy(fail_fast=data.draw(st.booleans()), common_rules=rules))
    with tempfile.TemporaryDirectory() as name, Journal.create(Path(name)) as journal:

        def record(event: Event) -> None:
            live.check(event)
            journal.append(event)
            live.apply(event)

        record(BEGAN)
        _live(live, record, data)
        if data.draw(st.booleans()):
            record(RunStarted(5.0, "node1", 43, 4.0, "pool", n_quanta))
            done = [i for i in range(n_quanta) if live.state(i) is State.SUCCEEDED]
            record(RunReopened(5.0, tuple(done[: data.draw(st.integers(0, 1))])))
            _live(live, record, data)
        events = list(read_events(Path(name)))
    fold = folded(plan, *events)
    assert_same(plan, fold, live)
    # Wherever it is put down and taken up again: it goes on as if it had not been.
    place = data.draw(st.integers(0, len(events)))
    again = Fold.restored(plan, folded(plan, *events[:place]).state())
    for event in events[place:]:
        again.apply(event)
    assert_same(plan, again, live)
    assert again.tasks() == fold.tasks()
    assert again.troubled(NoFiles()) == fold.troubled(NoFiles())
    assert (again.wall_s, again.driver, again.end) == (fold.wall_s, fold.driver, fold.end)


def _live(live: Scheduler, record: Callable[[Event], None], data: st.DataObject) -> None:
    """Run all that can be run."""
    running: list[Attempt] = []
    returned = 0
    while not live.finished:
        for attempt in live.select(Resources(cores=data.draw(st.integers(1, 3)))):
            record(AttemptStarted(1.0, attempt.index, attempt.number))
            running.append(attempt)
        attempt = running.pop(data.draw(st.integers(0, len(running) - 1)))
        event = data.draw(_endings(attempt, may_return=returned < 5))
        returned += isinstance(event, AttemptReturned)
        record(live.judge(event) if isinstance(event, FailureEvent) else event)
        if (reason := live.wants_stop()) is not None:
            record(StopRequested(2.0, reason))


def assert_same(plan: Plan, fold: Fold, live: Scheduler) -> None:
    """The fold is the live run, and its counts agree with it."""
    everyone = range(len(plan))
    assert [fold.scheduler.state(i) for i in everyone] == [live.state(i) for i in everyone]
    assert [fold.scheduler.attempts(i) for i in everyone] == [live.attempts(i) for i in everyone]
    assert fold.scheduler.counts_by_label() == live.counts_by_label()
    assert fold.scheduler.stopping is live.stopping
    total = total_of(fold.tasks())
    failures = failures_of(fold)
    assert len(failures) == total.failed
    assert sum(failure.n_blocked for failure in failures) == total.blocked
    assert total.n_quanta == len(plan) == total.ended + total.running + total.not_run
    n_bad = sum(len(quantum.bad) for quantum in fold.troubled(NoFiles()))
    assert total.retried == n_bad - total.failed


def _endings(attempt: Attempt, *, may_return: bool) -> st.SearchStrategy[Event]:
    index, number = attempt.index, attempt.number
    events: list[Event] = [
        AttemptSucceeded(2.0, ended(index, OutcomeStatus.SUCCEEDED, number)),
        AttemptSkipped(2.0, ended(index, OutcomeStatus.SKIPPED, number)),
        AttemptFailed(2.0, ended(index, OutcomeStatus.FAILED, number)),
        AttemptLost(2.0, index, number, "worker 1 was killed", -9, 1),
        AttemptTimedOut(2.0, index, number, 3.5),
        AttemptOutOfMemory(2.0, index, number, 5_100_000_000, 4_000_000_000),
    ]
    return st.sampled_from(events + [AttemptReturned(2.0, index, number)] * may_return)


def test_quanta_are_counted_by_task() -> None:
    """Outcomes, times, memory and caveats of each task, and of all together."""
    fold = folded(
        make_plan("a:1 a:2 -> b; c"),
        BEGAN,
        *(AttemptStarted(101.0, i, 1) for i in (0, 1, 3)),
        AttemptSucceeded(103.0, ended(0, OutcomeStatus.SUCCEEDED, caveats=5)),
        AttemptSucceeded(103.0, ended(1, OutcomeStatus.SUCCEEDED, caveats=4 + 128, peak_rss_bytes=3000)),
        OutputsIngested(104.0, (0,), 3),
    )
    a, b, c = fold.tasks()
    assert (a.label, a.n_quanta, a.succeeded, a.ingested, a.quantum_s, a.cpu_s) == ("a", 2, 2, 1, 4.0, 3.0)
    assert a.peak_rss_bytes == 3000
    assert a.caveats == {"ANY_OUTPUTS_MISSING": 1, "NO_WORK": 2, "FLAG_128": 1}
    assert (b.n_quanta, b.not_run, b.peak_rss_bytes) == (1, 1, None)
    assert (c.n_quanta, c.running) == (1, 1)
    total = total_of((a, b, c))
    assert (total.n_quanta, total.succeeded, total.running, total.not_run, total.ended) == (4, 2, 1, 1, 2)
    assert (total.peak_rss_bytes, total.caveats) == (3000, a.caveats)


def test_failures_know_what_they_block() -> None:
    """One that an earlier failure had blocked counts there."""
    fold = folded(
        make_plan("a:1 a:2 -> b -> c; d"),
        *(AttemptStarted(101.0, i, 1) for i in (0, 1, 4)),
        AttemptFailed(103.0, ended(0, OutcomeStatus.FAILED)),
        AttemptLost(104.0, 1, 1, "worker 2 was killed by signal 9 (SIGKILL)", -9, 2),
        AttemptTimedOut(105.0, 4, 1, 4.5, 3),
    )
    assert [(failure.index, failure.n_blocked) for failure in failures_of(fold)] == [(0, 2), (1, 0), (4, 0)]


def test_every_attempt_at_a_quantum_with_trouble_is_kept() -> None:
    """Those that were retried, the one that was taken back, and the one that succeeded."""
    fold = folded(
        make_plan("a b"),
        AttemptStarted(101.0, 0, 1),
        AttemptLost(102.0, 0, 1, "worker 1 was killed", -9, 1, 300, retried=True),
        AttemptStarted(103.0, 0, 2),
        AttemptReturned(104.0, 0, 2),
        AttemptStarted(105.0, 0, 3),
        AttemptOutOfMemory(106.0, 0, 3, 5000, 4000, retried=True),
        AttemptStarted(107.0, 0, 4),
        AttemptSucceeded(108.0, ended(0, OutcomeStatus.SUCCEEDED, attempt=4)),
        AttemptStarted(109.0, 1, 1),
        AttemptSucceeded(110.0, ended(1, OutcomeStatus.SUCCEEDED)),
    )
    (quantum,) = fold.troubled(NoFiles())
    assert (quantum.index, quantum.state) == (0, State.SUCCEEDED)
    assert [(a.number, a.ended) for a in quantum.attempts] == [
        (1, "lost"),
        (2, "returned"),
        (3, "out of memory"),
        (4, "succeeded"),
    ]
    task = fold.tasks()[0]
    assert (task.retried, task.failed, task.succeeded) == (2, 0, 1)
    assert task.peak_rss_bytes == 5000  # what was seen of the one that was ended counts, too


def test_a_reopened_run_has_no_failures_left() -> None:
    """What failed has been tried, blocks nothing any more, and what was revoked is not in the registry."""
    fold = folded(
        make_plan("a -> b -> c; d"),
        BEGAN,
        *(AttemptStarted(101.0, i, 1) for i in (0, 3)),
        AttemptSucceeded(102.0, ended(0, OutcomeStatus.SUCCEEDED, caveats=1)),
        OutputsIngested(102.0, (0,), 1),
        AttemptStarted(102.0, 1, 1),
        AttemptFailed(103.0, ended(1, OutcomeStatus.FAILED)),
        AttemptSucceeded(103.0, ended(3, OutcomeStatus.SUCCEEDED)),
        RunEnded(104.0, EndReason.COMPLETED),
    )
    assert [failure.n_blocked for failure in failures_of(fold)] == [1]
    fold.apply(replace(BEGAN, at=200.0))
    fold.apply(RunReopened(200.0, (0,)))
    assert failures_of(fold) == []
    (quantum,) = fold.troubled(NoFiles())
    assert (quantum.index, quantum.n_blocked, len(quantum.attempts)) == (1, 0, 1)
    total = total_of(fold.tasks())
    assert (total.blocked, total.failed, total.retried, total.ingested, total.caveats) == (0, 0, 1, 0, {})


def test_a_state_of_another_plan_is_refused() -> None:
    """By its size."""
    state = folded(make_plan("a b"), BEGAN).state()
    for plan in (make_plan("a b c"), make_plan("a:1 a:2")):
        with pytest.raises(ValueError, match=r"of another plan|not the states of"):
            Fold.restored(plan, state)


def test_what_a_new_attempt_does_counts_instead_of_the_earlier_one() -> None:
    """Ingested and caveats are those of the last attempt."""
    fold = folded(
        make_plan("a"),
        AttemptStarted(101.0, 0, 1),
        AttemptReturned(102.0, 0, 1),
        AttemptStarted(103.0, 0, 2),
        AttemptSucceeded(104.0, ended(0, OutcomeStatus.SUCCEEDED, attempt=2)),
    )
    (task,) = fold.tasks()
    assert (task.succeeded, task.ingested, task.quantum_s) == (1, 0, 2.0)


def test_wall_time_is_that_of_the_drivers() -> None:
    """From each one's first word to its last; the time between two drivers is nobody's."""
    plan = make_plan("a b")
    first = (BEGAN, AttemptStarted(102.0, 0, 1), AttemptReturned(105.0, 0, 1))
    assert folded(plan, *first).wall_s == 5.0
    again = RunStarted(1000.0, "node1", 43, 999.0, "pool", 2)
    fold = folded(plan, *first, again, AttemptStarted(1001.0, 0, 2))
    assert fold.wall_s == 6.0
    fold.apply(StopRequested(1002.0, StopReason.INTERRUPTED))
    assert fold.stop_reason is StopReason.INTERRUPTED
    fold.apply(RunEnded(1003.0, EndReason.STOPPED))
    assert (fold.wall_s, fold.end, fold.driver) == (8.0, EndReason.STOPPED, again)
    fold.apply(OutputsIngested(2000.0, (), 0))
    assert fold.wall_s == 8.0
    third = RunStarted(3000.0, "node1", 44, 2999.0, "pool", 2)
    fold.apply(third)
    assert fold.wall_s == 8.0
    assert folded(plan, *first, again).stop_reason is None


def test_what_was_wasted() -> None:
    """Attempts that failed, by CPU time; that left no figure, by wall time; and revoked successes."""
    fold = folded(
        make_plan("a:1 a:2 a:3 a:4"),
        BEGAN,
        *(AttemptStarted(101.0, i, 1) for i in range(4)),
        AttemptSucceeded(103.0, ended(0, OutcomeStatus.SUCCEEDED)),
        AttemptFailed(103.0, ended(1, OutcomeStatus.FAILED, cpu_s=0.5)),
        AttemptLost(105.0, 2, 1, "worker 1 was killed", -9, 1, 7000, retried=True),
        AttemptStarted(106.0, 2, 2),
        AttemptSucceeded(109.0, ended(2, OutcomeStatus.SUCCEEDED, 2, peak_rss_bytes=None)),
        AttemptTimedOut(108.0, 3, 1, 7.0),
    )
    (task,) = fold.tasks()
    assert (task.cpu_s, task.useful_cpu_s) == (3.5, 3.0)
    assert (task.wasted_cpu_s, task.wasted_unmeasured_s) == (0.5 + 4.0 + 7.0, 11.0)
    assert task.wall == Spread(2.0, 2.0, 2.0, 2)
    assert task.memory == Spread(1000.0, 7000.0, 7000.0, 3)
    fold.apply(RunEnded(110.0, EndReason.COMPLETED))
    fold.apply(replace(BEGAN, at=200.0))
    fold.apply(RunReopened(200.0, (0,)))
    (task,) = fold.tasks()
    assert (task.useful_cpu_s, task.wasted_cpu_s) == (1.5, 13.0)
    assert task.wall is not None
    assert task.wall.n == 1


def test_a_quantum_that_is_found_done_is_not_measured() -> None:
    """Its time is in the sums; but it says nothing about what the quantum takes."""
    skipped = ended(0, OutcomeStatus.SKIPPED, cpu_s=0.25)
    (task,) = folded(
        make_plan("a"), BEGAN, AttemptStarted(101.0, 0, 1), AttemptSkipped(103.0, skipped)
    ).tasks()
    assert (task.quantum_s, task.useful_cpu_s, task.wasted_cpu_s) == (2.0, 0.25, 0.0)
    assert (task.memory, task.wall, task.peak_rss_bytes) == (None, None, None)


def test_percentiles_are_values_that_occurred() -> None:
    """Of a hundred the median is the fiftieth; what is unknown does not count."""
    values = np.array([*range(1, 101), np.nan], dtype=np.float32)
    assert Spread.of(values) == Spread(50.0, 95.0, 100.0, 100)
    assert Spread.of(values[-1:]) is None
