"""`qgexec.scheduling.policy`: causes, budgets, memory that grows, and when a failure stops the run."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from lsst.pipe.base import InvalidQuantumError, RepeatableQuantumError

from qgexec.errors import UsageError
from qgexec.events import AttemptFailed, AttemptLost, FailureEvent, StopReason
from qgexec.quantum import Attempt, ExceptionSummary, Resources
from qgexec.scheduling.policy import (
    INVALID_QUANTUM_EXIT_CODE,
    REPEATABLE_QUANTUM_EXIT_CODE,
    Account,
    Cause,
    Policy,
    Retries,
    TaskRules,
    cause_of,
)
from qgexec.testing import AnyEnding, Ending, ended

_ATTEMPT = Attempt(0, 1, uuid.UUID(int=1), "a")
_GIB = 2**30

_OS_ERROR = ExceptionSummary("builtins.OSError", "as told")
_ODD_ERROR = ExceptionSummary("my.package.OSError", "as told")

_CAUSES: Mapping[AnyEnding, Cause] = {
    Ending.FAIL: Cause.RAISED,
    Ending.FAIL_INVALID: Cause.RAISED,
    Ending.FAIL_REPEATABLE: Cause.RAISED,
    _OS_ERROR: Cause.RAISED,
    0: Cause.EXITED,
    1: Cause.EXITED,
    137: Cause.EXITED,
    Ending.SEGFAULT: Cause.SIGNALLED,
    -signal.SIGABRT: Cause.SIGNALLED,
    -signal.SIGBUS: Cause.SIGNALLED,
    -signal.SIGXCPU: Cause.SIGNALLED,
    Ending.LOSE: Cause.LOST,
    -signal.SIGHUP: Cause.LOST,
    -signal.SIGINT: Cause.LOST,
    -signal.SIGTERM: Cause.LOST,
    Ending.TIME_OUT: Cause.TIMED_OUT,
    Ending.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    Ending.OUT_OF_MEMORY_BY_KERNEL: Cause.OUT_OF_MEMORY,
}


def _failure(ending: AnyEnding) -> FailureEvent:
    event = ended(_ATTEMPT, ending, 1.0)
    assert isinstance(event, FailureEvent)
    return event


def _is_retried(
    ending: AnyEnding,
    rules: TaskRules,
    charged: Mapping[Account, int] | None = None,
    n_out_of_memory: int = 0,
) -> bool:
    policy = Policy(rules={"a": rules})
    return policy.wants_retry(_failure(ending), "a", charged or {}, n_out_of_memory)


@pytest.mark.parametrize(("ending", "cause"), _CAUSES.items())
def test_cause_of_each_ending(ending: AnyEnding, cause: Cause) -> None:
    """Signals that only others send are a loss, other signals and exits are the quantum's own doing."""
    assert cause_of(_failure(ending)) is cause


def test_a_worker_that_went_away_without_a_status_is_lost() -> None:
    """A host or batch job that vanished has no exit status."""
    assert cause_of(AttemptLost(1.0, 0, 1, "its host is gone")) is Cause.LOST


def test_every_failure_has_a_cause() -> None:
    """Each kind of event that ends an attempt badly is among those above, and each cause comes about."""
    assert {type(_failure(ending)) for ending in _CAUSES} == set(get_args(FailureEvent))
    assert set(_CAUSES.values()) == set(Cause)


@pytest.mark.parametrize("ending", _CAUSES)
def test_by_default_only_losses_are_retried(ending: AnyEnding) -> None:
    """Nobody asked for retries, but infrastructure is not the task's fault: three times."""
    tried_again = [_is_retried(ending, TaskRules(), {(Cause.LOST, None): n}) for n in range(5)]
    assert tried_again == ([True, True, True, False, False] if _CAUSES[ending] is Cause.LOST else [False] * 5)


def test_exceptions_that_are_not_named_may_have_a_budget_of_their_own() -> None:
    """Then they are not charged to the common one."""
    retries = Retries(common=1, raised=2, exceptions={"OSError": 5})
    raised = (Cause.RAISED, None)
    assert retries.budget(_failure(Ending.FAIL), memory_grows=False) == (raised, 2)
    assert retries.budget(_failure(_OS_ERROR), memory_grows=False) == ((Cause.RAISED, "OSError"), 5)
    assert retries.budget(_failure(3), memory_grows=False) == ((None, None), 1)


_RULES = Retries(
    common=1,
    lost=2,
    out_of_memory=3,
    timed_out=4,
    exceptions={"OSError": 5, "my.package.OSError": 6, "lsst.pipe.base.RepeatableQuantumError": 9},
    exit_codes={3: 7, 11: 77},
    signals={11: 8, 9: 10},
)


@pytest.mark.parametrize(
    ("ending", "account", "budget"),
    [
        (Ending.FAIL, (None, None), 1),
        (_OS_ERROR, (Cause.RAISED, "OSError"), 5),
        (_ODD_ERROR, (Cause.RAISED, "my.package.OSError"), 6),
        (ExceptionSummary("OSError", ""), (Cause.RAISED, "OSError"), 5),
        (ExceptionSummary("builtins.MyOSError", ""), (None, None), 1),
        (3, (Cause.EXITED, 3), 7),
        (11, (Cause.EXITED, 11), 77),
        (4, (None, None), 1),
        (0, (None, None), 1),
        (Ending.SEGFAULT, (Cause.SIGNALLED, 11), 8),
        (-signal.SIGABRT, (None, None), 1),
        (Ending.LOSE, (Cause.LOST, 9), 10),
        (-signal.SIGTERM, (Cause.LOST, None), 2),
        (Ending.TIME_OUT, (Cause.TIMED_OUT, None), 4),
        (Ending.OUT_OF_MEMORY, (Cause.OUT_OF_MEMORY, None), 3),
        (Ending.OUT_OF_MEMORY_BY_KERNEL, (Cause.OUT_OF_MEMORY, None), 3),
    ],
)
def test_most_particular_rule_counts(ending: AnyEnding, account: Account, budget: int) -> None:
    """A type, status or signal that is named, then the cause, then the common budget; no other is charged."""
    assert _RULES.budget(_failure(ending), memory_grows=True) == (account, budget)
    rules = TaskRules(retries=_RULES)
    others = {(cause, name): 99 for cause in (*Cause, None) for name in (None, 3, 9, 11, "OSError")}
    others.pop(account, None)
    assert _is_retried(ending, rules, others | {account: budget - 1})
    assert not _is_retried(ending, rules, {account: budget})


@pytest.mark.parametrize("ending", [Ending.TIME_OUT, Ending.OUT_OF_MEMORY_BY_KERNEL, Ending.SEGFAULT, 3])
def test_causes_without_a_rule_share_the_common_budget(ending: AnyEnding) -> None:
    """What the task brings upon itself is charged together."""
    assert Retries(common=2).budget(_failure(ending), memory_grows=False) == ((None, None), 2)


def test_a_failure_without_an_exception_is_the_tasks() -> None:
    """It has no type that a rule could name."""
    event = _failure(Ending.FAIL)
    assert isinstance(event, AttemptFailed)
    bare = replace(event, outcome=replace(event.outcome, exception=None))
    assert _RULES.budget(bare, memory_grows=False) == ((None, None), 1)
    assert Policy(common_rules=TaskRules(retries=_RULES)).wants_retry(bare, "a", {}, 0)


@pytest.mark.parametrize("ending", [Ending.FAIL_REPEATABLE, Ending.FAIL_INVALID])
def test_some_exceptions_are_never_retried(ending: Ending) -> None:
    """Not even if a rule names them: upstream says that it is of no use."""
    names = {"lsst.pipe.base.RepeatableQuantumError": 9, "InvalidQuantumError": 9}
    assert not _is_retried(ending, TaskRules(retries=Retries(common=9, exceptions=names)))


def test_exit_codes_are_upstreams() -> None:
    """They are those that the installed middleware has."""
    assert InvalidQuantumError.EXIT_CODE == INVALID_QUANTUM_EXIT_CODE
    assert RepeatableQuantumError.EXIT_CODE == REPEATABLE_QUANTUM_EXIT_CODE


_GROWING = TaskRules(Resources(2, 4 * _GIB), memory_multiplier=2.0)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (_GROWING, [4, 8, 16, 32]),
        (replace(_GROWING, memory_max_bytes=20 * _GIB), [4, 8, 16, 20, 20]),
        (replace(_GROWING, memory_max_bytes=4 * _GIB), [4, 4]),
        (replace(_GROWING, memory_max_bytes=3 * _GIB), [4, 4]),
        (replace(_GROWING, memory_multiplier=1.5), [4, 6, 9]),
        (replace(_GROWING, memory_multiplier=1.0), [4, 4, 4]),
    ],
)
def test_memory_grows_up_to_its_limit(rules: TaskRules, expected: list[int]) -> None:
    """Each time that it was too little, by the multiplier; never below what was asked for, cores the same."""
    found = [rules.request_after(n) for n in range(len(expected))]
    assert found == [Resources(2, gib * _GIB) for gib in expected]


def test_memory_that_nobody_asked_for_does_not_grow() -> None:
    """Without a request there is nothing to multiply."""
    rules = TaskRules(memory_multiplier=3.0)
    assert rules.request_after(7) == Resources()
    assert not rules.memory_grows


def test_memory_stays_a_number_however_often_it_grows() -> None:
    """Ten thousand doublings overflow nothing."""
    memory = replace(_GROWING, memory_multiplier=1e300).request_after(10_000).memory_bytes
    assert memory is not None
    assert memory < 2**63


@pytest.mark.parametrize("n_out_of_memory", range(4))
def test_no_retry_where_memory_cannot_grow(n_out_of_memory: int) -> None:
    """With no more memory it would end in the same way; unless it was the kernel that had too little."""
    rules = replace(_GROWING, memory_max_bytes=12 * _GIB, retries=Retries(common=9, out_of_memory=9))
    retried = _is_retried(Ending.OUT_OF_MEMORY, rules, {}, n_out_of_memory)
    assert retried == (n_out_of_memory < 2)
    assert _is_retried(Ending.OUT_OF_MEMORY_BY_KERNEL, rules, {}, n_out_of_memory)


def test_memory_that_grows_has_a_budget_of_its_own() -> None:
    """Five times where nothing else was said; where it does not grow it is the common budget's."""
    assert _GROWING.retries.budget(_failure(Ending.OUT_OF_MEMORY), memory_grows=True) == (
        (Cause.OUT_OF_MEMORY, None),
        5,
    )
    fixed = replace(_GROWING, memory_multiplier=1.0, retries=Retries(common=1))
    assert _is_retried(Ending.OUT_OF_MEMORY, fixed)
    assert not _is_retried(Ending.OUT_OF_MEMORY, fixed, {(None, None): 1})


@pytest.mark.parametrize("ending", _CAUSES)
def test_failures_stop_only_if_asked(ending: AnyEnding) -> None:
    """Every kind of failure stops a run that fails fast, and no other, except for an invalid quantum."""
    event, is_invalid = _failure(ending), ending is Ending.FAIL_INVALID
    expected = StopReason.INVALID_QUANTUM if is_invalid else StopReason.FAILED_FAST
    assert Policy(fail_fast=True).wants_stop(event, 1) is expected
    assert Policy().wants_stop(event, 1_000_000) is (StopReason.INVALID_QUANTUM if is_invalid else None)


@pytest.mark.parametrize(("n_failed", "reason"), [(1, None), (2, None), (3, StopReason.TOO_MANY_FAILURES)])
def test_so_many_failures_stop(n_failed: int, reason: StopReason | None) -> None:
    """The last one that the run was told to bear stops it."""
    assert Policy(max_failures=3).wants_stop(_failure(Ending.FAIL), n_failed) is reason


def test_rules_of_labels_that_are_not_named() -> None:
    """They have the common rules."""
    named, common = TaskRules(timeout_s=1.0), TaskRules(timeout_s=2.0)
    policy = Policy(rules={"a": named}, common_rules=common)
    assert (policy.rules_of("a"), policy.rules_of("b")) == (named, common)


@pytest.mark.parametrize(
    "options",
    [
        {"common": -1},
        {"lost": -1},
        {"out_of_memory": -1},
        {"timed_out": -2},
        {"raised": -1},
        {"exceptions": {"OSError": 1, "ValueError": -1}},
        {"exit_codes": {3: -1}},
        {"signals": {9: -1}},
    ],
)
def test_negative_budgets_are_refused(options: dict[str, Any]) -> None:
    """Less than never is a mistake."""
    with pytest.raises(UsageError, match="less than 0 times"):
        Retries(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": Resources(0)}, "0 cores"),
        ({"request": Resources(-1)}, "-1 cores"),
        ({"request": Resources(1, -1)}, "-1 bytes of memory"),
        ({"memory_multiplier": 0.5}, "a factor of 0.5"),
        ({"memory_multiplier": float("nan")}, "a factor of nan"),
        ({"memory_multiplier": float("inf")}, "a factor of inf"),
        ({"timeout_s": 0.0}, "a time limit of 0.0 s"),
        ({"timeout_s": -1.0}, "a time limit of -1.0 s"),
        ({"timeout_s": float("nan")}, "a time limit of nan s"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """Each is named with what to give instead."""
    with pytest.raises(UsageError, match=message) as raised:
        TaskRules(**options)
    assert raised.value.hint
