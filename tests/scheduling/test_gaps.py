"""`qgexec.scheduling.gaps`: events that are followed although some before them are missing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgexec.errors import IllegalEventError
from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptLost,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    RunReopened,
)
from qgexec.quantum import Outcome, OutcomeStatus, Resources
from qgexec.scheduling.gaps import FollowingScheduler
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.restorable import RestorableScheduler
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import make_plan, plan_of

_DONE = (State.SUCCEEDED, State.SKIPPED)


def _outcome(index: int, attempt: int, status: OutcomeStatus) -> Outcome:
    return Outcome(index, attempt, status, 1.0, 2.0)


def _ok(index: int, attempt: int = 1) -> Event:
    return AttemptSucceeded(2.0, _outcome(index, attempt, OutcomeStatus.SUCCEEDED))


def test_a_success_that_is_missing() -> None:
    """The quantum runs until somebody looks, though what follows from it has been done."""
    scheduler = FollowingScheduler(make_plan("a -> b"), policy=Policy())
    for event in (AttemptStarted(1.0, 0, 1), AttemptStarted(3.0, 1, 1), _ok(1)):
        scheduler.follow(event)
    assert [scheduler.state(0), scheduler.state(1)] == [State.RUNNING, State.SUCCEEDED]
    scheduler.apply(_ok(0))
    assert scheduler.finished


def test_what_follows_is_not_run_before_it() -> None:
    """Where both are given back, what follows waits: it must not run without its input."""
    scheduler = FollowingScheduler(make_plan("a -> b"), policy=Policy())
    scheduler.follow(AttemptStarted(1.0, 0, 1))
    scheduler.follow(AttemptStarted(3.0, 1, 1))
    for index in (1, 0):
        scheduler.apply(AttemptReturned(4.0, index, 1))
    assert [attempt.index for attempt in scheduler.select(Resources(8))] == [0]
    scheduler.apply(AttemptStarted(5.0, 0, 2))
    scheduler.apply(_ok(0, 2))
    assert [attempt.index for attempt in scheduler.select(Resources(8))] == [1]


def test_what_is_of_another_plan_is_refused() -> None:
    """No line is missing that would explain it."""
    scheduler = FollowingScheduler(make_plan("a"), policy=Policy())
    with pytest.raises(IllegalEventError, match="no quantum 7"):
        scheduler.follow(AttemptStarted(1.0, 7, 1))


def test_a_reopening_while_something_seems_to_run() -> None:
    """Its end is missing; what had failed, and what is revoked, is open again."""
    scheduler = FollowingScheduler(make_plan("a b c"), policy=Policy())
    failed = AttemptFailed(2.0, _outcome(1, 1, OutcomeStatus.FAILED))
    for event in (*(AttemptStarted(1.0, index, 1) for index in range(3)), failed, _ok(2)):
        scheduler.follow(event)
    scheduler.follow(RunReopened(3.0, (2, 0, 99)))
    assert [scheduler.state(index) for index in range(3)] == [State.RUNNING, State.READY, State.READY]


@st.composite
def _damaged(draw: st.DrawFn) -> tuple[Plan, list[Event], list[Event]]:
    """A plan, what happened, and what is left of that: a run of failures, retries, resumes."""
    n = draw(st.integers(1, 7))
    pairs = [(a, b) for b in range(n) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * n)) if pairs else []
    plan = plan_of([f"q:{index}" for index in range(n)], edges)
    scheduler = Scheduler(plan, policy=Policy())
    events: list[Event] = []

    def happen(event: Event) -> None:
        scheduler.apply(event)
        events.append(event)

    for _ in range(draw(st.integers(1, 30))):
        ready = [i for i in range(n) if scheduler.state(i) is State.READY]
        running = scheduler.running()
        if not running and draw(st.integers(0, 5)) == 0:
            happen(RunReopened(1.0, tuple(i for i in range(n) if scheduler.state(i) is State.SUCCEEDED)[:1]))
        elif ready and (not running or draw(st.booleans())):
            index = draw(st.sampled_from(ready))
            happen(AttemptStarted(1.0, index, scheduler.attempts(index) + 1))
        elif running:
            index = draw(st.sampled_from(running))
            number = scheduler.attempts(index)
            ends: list[Event] = [
                _ok(index, number),
                AttemptSkipped(2.0, _outcome(index, number, OutcomeStatus.SKIPPED)),
                AttemptFailed(2.0, _outcome(index, number, OutcomeStatus.FAILED)),
                AttemptLost(2.0, index, number, "killed", retried=True),
                AttemptReturned(2.0, index, number),
            ]
            happen(draw(st.sampled_from(ends)))
    lost = draw(st.sets(st.integers(0, len(events) - 1), min_size=1, max_size=4)) if events else set()
    return plan, events, [event for place, event in enumerate(events) if place not in lost]


@settings(max_examples=50)
@given(_damaged(), st.sampled_from([RestorableScheduler, None]))
def test_whatever_is_missing(history: tuple[Plan, list[Event], list[Event]], kind: type | None) -> None:
    """It is followed, its counts agree with its states, and no quantum is ready without its prerequisites."""
    plan, _, left = history
    scheduler = RestorableScheduler(plan) if kind else FollowingScheduler(plan, policy=Policy())
    for event in left:
        scheduler.follow(event)
        states = [scheduler.state(index) for index in range(len(plan))]
        assert {state: n for state, n in scheduler.counts().items() if n} == Counter(states)
        assert scheduler.running() == [i for i, state in enumerate(states) if state is State.RUNNING]
        for index, state in enumerate(states):
            if state is State.READY:
                assert all(states[other] in _DONE for other in plan.prerequisites(index))
        assert scheduler.finished == (State.RUNNING not in states and State.READY not in states)
        if isinstance(event, AttemptEvent):
            assert scheduler.attempts(event.index) == event.attempt
            if isinstance(event, AttemptSucceeded):
                assert scheduler.state(event.index) is State.SUCCEEDED


@settings(max_examples=50)
@given(_damaged())
def test_what_is_whole_is_followed_as_ever(history: tuple[Plan, list[Event], list[Event]]) -> None:
    """Without a gap there is no difference."""
    plan, events, _ = history
    scheduler, strict = FollowingScheduler(plan, policy=Policy()), Scheduler(plan, policy=Policy())
    for event in events:
        scheduler.follow(event)
        strict.apply(event)
    assert scheduler.counts() == strict.counts()
    assert scheduler.select(Resources(99)) == strict.select(Resources(99))
