"""`qgexec.policy`: when a failure stops the run."""

from __future__ import annotations

import uuid

import pytest
from lsst.pipe.base import InvalidQuantumError

from qgexec.events import AttemptStarted, StopReason, WorkerEnded
from qgexec.policy import INVALID_QUANTUM_EXIT_CODE, Policy
from qgexec.quantum import Attempt
from qgexec.testing import Ending, ended

_ATTEMPT = Attempt(0, 1, uuid.UUID(int=1), "a")


@pytest.mark.parametrize("ending", [Ending.FAIL, Ending.LOSE, Ending.TIME_OUT])
def test_failures_stop_only_if_asked(ending: Ending) -> None:
    """Every kind of failure stops a run that fails fast, and no other."""
    event = ended(_ATTEMPT, ending, 1.0)
    assert Policy(fail_fast=True).wants_stop(event) is StopReason.FAILED_FAST
    assert Policy().wants_stop(event) is None


@pytest.mark.parametrize("fail_fast", [True, False])
def test_invalid_quantum_always_stops(fail_fast: bool) -> None:
    """A quantum that says the graph is wrong stops every run."""
    event = ended(_ATTEMPT, Ending.FAIL_INVALID, 1.0)
    assert Policy(fail_fast=fail_fast).wants_stop(event) is StopReason.INVALID_QUANTUM


def test_exit_code_is_upstreams() -> None:
    """The exit code is the one that the installed middleware has."""
    assert InvalidQuantumError.EXIT_CODE == INVALID_QUANTUM_EXIT_CODE


@pytest.mark.parametrize("ending", [Ending.SUCCEED, Ending.SKIP, Ending.RETURN])
def test_nothing_else_stops(ending: Ending) -> None:
    """What is no failure stops nothing, however strict the policy."""
    policy = Policy(fail_fast=True)
    assert policy.wants_stop(ended(_ATTEMPT, ending, 1.0)) is None
    assert policy.wants_stop(AttemptStarted(1.0, 0, 1)) is None
    assert policy.wants_stop(WorkerEnded(1.0, 1, -9)) is None
