"""Tests of `qgexec.fold`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from lsst.pipe.base import QuantumSuccessCaveats

from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.fold import CAVEATS, FailureKind, Fold, total_of
from qgexec.journal import Journal, read_events
from qgexec.plan import Plan
from qgexec.policy import Policy
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources, SegmentRef
from qgexec.scheduler import Scheduler
from qgexec.testing import make_plan, plan_of

BEGAN = RunStarted(100.0, "node1", 42, 99.0, "pool", 4)


def no_log(index: int, attempt: int) -> Path | None:
    return None


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
    live = Scheduler(plan, policy=Policy(fail_fast=data.draw(st.booleans())))
    with tempfile.TemporaryDirectory() as name, Journal.create(Path(name)) as journal:

        def record(event: Event) -> None:
            live.check(event)
            journal.append(event)
            live.apply(event)

        record(BEGAN)
        running: list[Attempt] = []
        returned = 0
        while not live.finished:
            for attempt in live.select(Resources(cores=data.draw(st.integers(1, 3)))):
                record(AttemptStarted(1.0, attempt.index, attempt.number))
                running.append(attempt)
            attempt = running.pop(data.draw(st.integers(0, len(running) - 1)))
            event = data.draw(_endings(attempt, may_return=returned < 5))
            returned += isinstance(event, AttemptReturned)
            record(event)
            if (reason := live.wants_stop()) is not None:
                record(StopRequested(2.0, reason))
        fold = folded(plan, *read_events(Path(name)))
    assert [fold.scheduler.state(i) for i in range(n_quanta)] == [live.state(i) for i in range(n_quanta)]
    assert [fold.scheduler.attempts(i) for i in range(n_quanta)] == [
        live.attempts(i) for i in range(n_quanta)
    ]
    assert fold.scheduler.counts_by_label() == live.counts_by_label()
    assert fold.scheduler.stopping is live.stopping
    total = total_of(fold.tasks())
    failures = fold.failures(no_log)
    assert len(failures) == total.failed
    assert sum(failure.n_blocked for failure in failures) == total.blocked
    assert total.n_quanta == n_quanta == total.done + total.running + total.not_run


def _endings(attempt: Attempt, *, may_return: bool) -> st.SearchStrategy[Event]:
    index, number = attempt.index, attempt.number
    events: list[Event] = [
        AttemptSucceeded(2.0, ended(index, OutcomeStatus.SUCCEEDED, number)),
        AttemptSkipped(2.0, ended(index, OutcomeStatus.SKIPPED, number)),
        AttemptFailed(2.0, ended(index, OutcomeStatus.FAILED, number)),
        AttemptLost(2.0, index, number, "worker 1 was killed", -9, 1),
        AttemptTimedOut(2.0, index, number, 3.5),
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
    assert (total.n_quanta, total.succeeded, total.running, total.not_run, total.done) == (4, 2, 1, 1, 2)
    assert (total.peak_rss_bytes, total.caveats) == (3000, a.caveats)


def test_failures_say_what_where_and_what_follows() -> None:
    """Of an exception its type, message and place; of a lost attempt the reason; of both what they block."""
    error = ExceptionSummary("builtins.ValueError", "no stars", "isr.py:1 run", 20)
    detail = SegmentRef("0001-driver.jsonl", 50, 60)
    fold = folded(
        make_plan("a:1 a:2 -> b -> c; d; e"),
        *(AttemptStarted(101.0, i, 1) for i in (0, 1, 4, 5)),
        AttemptFailed(103.0, ended(0, OutcomeStatus.FAILED, exception=error, detail=detail)),
        AttemptLost(104.0, 1, 1, "worker 2 was killed by signal 9 (SIGKILL)", -9, 2),
        AttemptTimedOut(105.0, 4, 1, 4.5, 3),
        AttemptFailed(106.0, ended(5, OutcomeStatus.FAILED)),
    )
    raised, lost, late, bare = fold.failures(lambda index, attempt: Path(f"{index}.{attempt}.log"))
    assert (raised.kind, raised.exception_type, raised.message, raised.where, raised.exit_code) == (
        FailureKind.RAISED,
        "builtins.ValueError",
        "no stars",
        "isr.py:1 run",
        20,
    )
    assert (raised.detail, raised.n_blocked, str(raised)) == (detail, 2, "a{detector: 1}")
    assert (lost.kind, lost.message, lost.exit_code, lost.worker, lost.n_blocked) == (
        FailureKind.LOST,
        "worker 2 was killed by signal 9 (SIGKILL)",
        -9,
        2,
        0,
    )
    assert (late.kind, late.timed_out, late.message) == (
        FailureKind.TIMED_OUT,
        True,
        "ran over its time limit of 4.5 s",
    )
    assert (bare.exception_type, bare.message) == (None, "it failed without an exception")
    assert [failure.log for failure in (raised, lost)] == [Path("0.1.log"), Path("1.1.log")]


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
