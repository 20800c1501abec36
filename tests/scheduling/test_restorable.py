"""Tests of `qgexec.scheduling.restorable` (that it goes on as if never put down: see test_fold)."""

from __future__ import annotations

import numpy as np
import pytest

from qgexec.events import AttemptStarted
from qgexec.quantum import Resources
from qgexec.scheduling.restorable import STATE_CODES, RestorableScheduler
from qgexec.scheduling.states import State
from qgexec.testing import make_plan
from tests.kit.runs.handbooks import succeeded


def test_it_can_go_on() -> None:
    """What is ready may start, what runs may end, what waits becomes ready."""
    plan = make_plan("a -> b -> c; d")
    before = RestorableScheduler(plan)
    before.apply(AttemptStarted(1.0, 0, 1))
    after = RestorableScheduler(plan)
    after.restore(*before.save())
    assert after.running() == [0]
    assert after.counts() == before.counts()
    after.apply(AttemptStarted(1.0, 3, 1))
    after.apply(succeeded(0))
    assert after.state(1) is State.READY
    assert before.state(1) is State.WAITING
    assert after.running() == [3]


def test_it_chooses_nothing() -> None:
    """It knows what is ready, and keeps it in no order."""
    scheduler = RestorableScheduler(make_plan("a b"))
    assert scheduler.counts()[State.READY] == 2
    assert scheduler.select(Resources(cores=4)) == []


@pytest.mark.parametrize(
    ("states", "n_attempts"),
    [(b"\0", 2), (b"\0\0", 3), (bytes([0, len(STATE_CODES)]), 2)],
)
def test_states_of_something_else_are_refused(states: bytes, n_attempts: int) -> None:
    """Another number of quanta, or codes that mean nothing; and nothing has changed."""
    scheduler = RestorableScheduler(make_plan("a b"))
    scheduler.apply(AttemptStarted(1.0, 0, 1))
    before = scheduler.save()
    with pytest.raises(ValueError, match="not the states of 2 quanta"):
        scheduler.restore(states, np.zeros(n_attempts, dtype=np.int32))
    after = scheduler.save()
    assert (after[0], after[1].tolist()) == (before[0], before[1].tolist())
