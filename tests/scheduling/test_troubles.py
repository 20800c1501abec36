"""`qgexec.scheduling.troubles`, and how a scheduler takes up what another one left."""

from __future__ import annotations

import numpy as np
import pytest

from qgexec.events import AttemptStarted, FailureEvent, StopReason, StopRequested
from qgexec.quantum import Resources
from qgexec.scheduling.policy import Cause, Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.scheduling.troubles import Past
from qgexec.testing import Ending, ended, make_plan

_GROWING = Policy(
    common_rules=TaskRules(
        request=Resources(1, 100), memory_multiplier=2.0, retries=Retries(common=2, out_of_memory=3)
    )
)


def _end_badly(scheduler: Scheduler, index: int, ending: Ending) -> FailureEvent:
    (attempt,) = (each for each in scheduler.left() if each.index == index)
    scheduler.apply(AttemptStarted(1.0, index, attempt.number))
    event = ended(attempt, ending, 2.0)
    assert isinstance(event, FailureEvent)
    event = scheduler.judge(event)
    scheduler.apply(event)
    return event


def test_what_is_behind_a_quantum_moves_to_another_scheduler() -> None:
    """Budgets, number of attempts and grown memory go on as if it had been one scheduler."""
    plan = make_plan("a b")
    first = Scheduler(plan, policy=_GROWING)
    assert _end_badly(first, 0, Ending.OUT_OF_MEMORY).retried
    assert _end_badly(first, 0, Ending.FAIL).retried
    past = first.past(0)
    assert (past.n_attempts, past.n_out_of_memory) == (2, 1)
    assert past.charged == {(Cause.OUT_OF_MEMORY, None): 1, (None, None): 1}

    second = Scheduler(plan, policy=_GROWING)
    second.take_up(0, past)
    assert second.past(0) == past
    (attempt,) = second.select(Resources(1))
    assert (attempt.index, attempt.number, attempt.resources) == (0, 3, Resources(1, 200))
    assert second.counts() == first.counts()
    assert _end_badly(second, 0, Ending.FAIL).retried
    assert not _end_badly(second, 0, Ending.FAIL).retried


def test_a_quantum_without_a_past_has_none() -> None:
    """Of a quantum that was never tried there is nothing to take up, and it is as it was."""
    scheduler = Scheduler(make_plan("a -> b"), policy=_GROWING)
    assert scheduler.past(1) == Past()
    scheduler.take_up(0, Past())
    assert [attempt.index for attempt in scheduler.select(Resources(5))] == [0]


def test_left_is_what_has_not_ended_in_order() -> None:
    """For who orders the work itself: ready and waiting quanta, not running, ended or blocked ones."""
    scheduler = Scheduler(make_plan("a -> b -> c; d -> e; f"), policy=Policy())
    names = [scheduler.plan.label(index) for index in range(6)]
    failing, running = names.index("d"), names.index("a")
    _end_badly(scheduler, failing, Ending.FAIL)
    scheduler.apply(AttemptStarted(3.0, running, 1))
    left = scheduler.left()
    assert [names[attempt.index] for attempt in left] == ["b", "c", "f"]
    assert [attempt.number for attempt in left] == [1, 1, 1]
    assert scheduler.state(names.index("e")) is State.BLOCKED
    scheduler.apply(StopRequested(4.0, StopReason.INTERRUPTED))
    assert scheduler.left() == []


def test_what_is_too_large_is_left_for_another_machine() -> None:
    """Quanta that ask for more than is told are never selected, and hold up no other; the rest goes on."""
    scheduler = Scheduler(make_plan("a b c"), policy=_GROWING)
    scheduler.leave_larger(150)
    assert _end_badly(scheduler, 1, Ending.OUT_OF_MEMORY).retried  # and asks for 200 from now on
    assert [attempt.index for attempt in scheduler.select(Resources(9, 1000))] == [0, 2]
    assert not scheduler.finished
    assert scheduler.stuck(Resources(9, 150)) is not None
    scheduler.leave_larger(None)
    assert [attempt.index for attempt in scheduler.select(Resources(9, 1000))] == [1, 0, 2]


def test_part_of_a_plan() -> None:
    """Some quanta alone keep their labels, IDs and data IDs, and the edges between them."""
    plan = make_plan("a -> b -> c; a -> d; d -> c")
    names = [plan.label(index) for index in range(len(plan))]
    chosen = sorted(names.index(name) for name in "acd")
    part = plan.part(np.asarray(chosen))
    assert [part.label(index) for index in range(3)] == [names[index] for index in chosen]
    assert [part.quantum_id(n) for n in range(3)] == [plan.quantum_id(index) for index in chosen]
    assert [part.data_id(n) for n in range(3)] == [plan.data_id(index) for index in chosen]
    edges = {(part.label(i), part.label(j)) for i in range(3) for j in part.successors(i)}
    assert edges == {("a", "d"), ("d", "c")}


@pytest.mark.parametrize("indices", [[], [0]])
def test_part_may_be_small(indices: list[int]) -> None:
    """No quanta, or one, are a plan too."""
    part = make_plan("a -> b").part(np.asarray(indices, dtype=np.int64))
    assert len(part) == len(indices)
    assert len(list(part)) == len(indices)
