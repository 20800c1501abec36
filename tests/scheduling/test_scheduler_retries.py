"""`qgexec.scheduling.scheduler`: further attempts, memory that grows, and runs that are reopened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from qgexec.errors import IllegalEventError
from qgexec.events import (
    AttemptLost,
    AttemptStarted,
    Event,
    FailureEvent,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.quantum import Attempt, ExceptionSummary, Resources
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import AnyEnding, Ending, FakeModel, ended, make_plan, run_plan
from tests.kit.runs.schedulers import FREE, chosen, snapshot_of, states_of

_OS_ERROR = ExceptionSummary("builtins.OSError", "as told")


def _scheduler(text: str, policy: Policy | None = None, **options: Any) -> Scheduler:
    return Scheduler(make_plan(text), policy=policy or Policy(), **options)


def _retrying(**retries: Any) -> Policy:
    return Policy(common_rules=TaskRules(retries=Retries(**retries)))


def _try(scheduler: Scheduler, index: int, ending: AnyEnding = Ending.SUCCEED) -> Event:
    """Start and end an attempt, as the loop does; return the event that ended it."""
    number = scheduler.attempts(index) + 1
    scheduler.apply(AttemptStarted(1.0, index, number))
    plan = scheduler.plan
    event: Event = ended(Attempt(index, number, plan.quantum_id(index), plan.label(index)), ending, 2.0)
    if isinstance(event, FailureEvent):
        event = scheduler.judge(event)
    scheduler.apply(event)
    return event


def _run(policy: Policy, endings: Sequence[AnyEnding]) -> tuple[State, int]:
    """Run one quantum to its end; return its state and the number of its attempts."""
    scheduler = _scheduler("a", policy)
    run_plan(scheduler, FakeModel(script={"a": [*endings, Ending.SUCCEED]}))
    return scheduler.state(0), scheduler.attempts(0)


@pytest.mark.parametrize(
    "ending",
    [Ending.FAIL, 3, Ending.SEGFAULT, Ending.TIME_OUT, Ending.OUT_OF_MEMORY_BY_KERNEL, Ending.OUT_OF_MEMORY],
)
@pytest.mark.parametrize(("n_failures", "expected"), [(2, State.SUCCEEDED), (3, State.FAILED)])
def test_task_is_tried_as_often_as_its_budget_allows(
    ending: Ending, n_failures: int, expected: State
) -> None:
    """Two retries are three attempts, whatever the task brings upon itself."""
    assert _run(_retrying(common=2, lost=0), [ending] * n_failures) == (expected, 3)


def test_retried_quantum_blocks_nothing() -> None:
    """Only the last failure makes it failed, and blocks what waits for it."""
    scheduler = _scheduler("a -> b -> c", _retrying(common=1))
    _try(scheduler, 0, Ending.FAIL)
    assert states_of(scheduler) == ["ready", "waiting", "waiting"]
    assert [(a.index, a.number) for a in scheduler.select(FREE)] == [(0, 2)]
    assert not scheduler.finished
    _try(scheduler, 0, Ending.FAIL)
    assert states_of(scheduler) == ["failed", "blocked", "blocked"]
    assert scheduler.finished


def test_lost_infrastructure_is_not_the_tasks_to_pay() -> None:
    """Losses do not use up the task's budget, nor does the task theirs; what was returned costs nothing."""
    policy = _retrying(common=1, lost=2)
    lost, failed, back = Ending.LOSE, Ending.FAIL, Ending.RETURN
    assert _run(policy, [lost, back, failed, lost, back]) == (State.SUCCEEDED, 6)
    assert _run(policy, [lost, lost, failed, failed]) == (State.FAILED, 4)
    assert _run(policy, [failed, lost, lost, lost]) == (State.FAILED, 4)


def test_budgets_are_separate() -> None:
    """Each named type, status and signal, and each cause, has its own; what is not named shares one."""
    policy = _retrying(
        common=1, lost=1, timed_out=1, exceptions={"OSError": 1}, exit_codes={3: 1}, signals={11: 1}
    )
    each: list[AnyEnding] = [Ending.LOSE, Ending.TIME_OUT, _OS_ERROR, 3, Ending.SEGFAULT, Ending.FAIL]
    assert _run(policy, each) == (State.SUCCEEDED, 7)
    for ending in [*each, 4]:
        assert _run(policy, [*each, ending]) == (State.FAILED, 7)


@pytest.mark.parametrize("ending", [Ending.FAIL_REPEATABLE, Ending.FAIL_INVALID])
def test_of_no_use_to_retry(ending: Ending) -> None:
    """Upstream says so: one attempt, whatever the budgets."""
    assert _run(_retrying(common=9), [ending]) == (State.FAILED, 1)


def test_judge_says_what_the_policy_wants_whatever_the_model_said() -> None:
    """An event that comes in as retried is not, without a budget; and judging changes nothing."""
    scheduler = _scheduler("a")
    scheduler.apply(AttemptStarted(1.0, 0, 1))
    event = ended(Attempt(0, 1, scheduler.plan.quantum_id(0), "a"), Ending.FAIL, 2.0)
    assert isinstance(event, FailureEvent)
    before = snapshot_of(scheduler)
    assert scheduler.judge(event) is event
    assert scheduler.judge(replace(event, retried=True)) == event
    assert snapshot_of(scheduler) == before


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(fail_fast=True, common_rules=TaskRules(retries=Retries(common=1))), StopReason.FAILED_FAST),
        (Policy(max_failures=1, common_rules=TaskRules(retries=Retries(1))), StopReason.TOO_MANY_FAILURES),
    ],
)
def test_only_final_failures_stop_the_run(policy: Policy, reason: StopReason) -> None:
    """An attempt that is followed by another is no reason yet."""
    scheduler = _scheduler("a b", policy)
    _try(scheduler, 0, Ending.FAIL)
    _try(scheduler, 1, Ending.LOSE)
    assert scheduler.wants_stop() is None
    _try(scheduler, 0, Ending.FAIL)
    assert scheduler.wants_stop() is reason


def test_so_many_quanta_may_fail() -> None:
    """Failed quanta are counted, blocked ones and attempts are not; another driver counts anew."""
    scheduler = _scheduler("a:1 a:2 a:3 a:4; a:1 -> b c", Policy(max_failures=2))
    _try(scheduler, 0, Ending.FAIL)
    assert scheduler.wants_stop() is None
    scheduler.apply(RunReopened(3.0))
    _try(scheduler, 1, Ending.FAIL)
    assert scheduler.wants_stop() is None
    _try(scheduler, 2, Ending.FAIL)
    assert scheduler.wants_stop() is StopReason.TOO_MANY_FAILURES


def _growing(memory: int = 4, most: int | None = None, **options: Any) -> Policy:
    rules = TaskRules(
        Resources(1, memory), memory_multiplier=2, memory_max_bytes=most, enforce_memory=True, **options
    )
    return Policy(rules={"a": rules})


def _asked(scheduler: Scheduler) -> list[tuple[int, int | None, int | None]]:
    return [(a.index, a.resources.memory_bytes, a.memory_limit_bytes) for a in scheduler.select(FREE)]


@pytest.mark.parametrize("serial", [set(), {"a"}])
def test_next_attempt_has_more_memory(serial: set[str]) -> None:
    """Only the quantum that had too little asks for more, and it is admitted by that."""
    scheduler = _scheduler("a:1 a:2", _growing(), serial_labels=serial)
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    alike = [] if serial else [(1, 4, 4)]
    assert _asked(scheduler) == [(0, 8, 8), *alike]
    assert chosen(scheduler, Resources(9, 8)) == [0]
    assert chosen(scheduler, Resources(9, 7)) == []
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert _asked(scheduler) == [(0, 16, 16), *alike]
    _try(scheduler, 0)
    assert _asked(scheduler) == [(1, 4, 4)]


def test_other_failures_do_not_change_what_it_asks_for() -> None:
    """It keeps what it has learned."""
    scheduler = _scheduler("a", _growing(retries=Retries(common=1)))
    for ending in (Ending.LOSE, Ending.OUT_OF_MEMORY, Ending.FAIL, Ending.RETURN, Ending.LOSE):
        _try(scheduler, 0, ending)
    assert _asked(scheduler) == [(0, 8, 8)]


def _lose(scheduler: Scheduler, used_bytes: int | None, exit_code: int | None = -9) -> None:
    """Start an attempt and lose its worker."""
    number = scheduler.attempts(0) + 1
    scheduler.apply(AttemptStarted(1.0, 0, number))
    event = AttemptLost(2.0, 0, number, "its worker died", exit_code, 1, used_bytes)
    scheduler.apply(scheduler.judge(event))


def test_killed_with_more_than_it_had_asked_for() -> None:
    """Memory is the likeliest reason: the next attempt asks for more; it still counts as a loss."""
    scheduler = _scheduler("a", _growing(retries=Retries(lost=2, out_of_memory=0)))
    _lose(scheduler, 5)
    assert _asked(scheduler) == [(0, 8, 8)]
    _lose(scheduler, 8)
    assert _asked(scheduler) == [(0, 8, 8)]
    _lose(scheduler, 9)
    assert scheduler.state(0) is State.FAILED


@pytest.mark.parametrize(("used_bytes", "exit_code"), [(None, -9), (4, -9), (99, -15), (99, None), (99, 1)])
def test_other_losses_are_no_question_of_memory(used_bytes: int | None, exit_code: int | None) -> None:
    """Nobody knows what it used, it was no more than it asked for, or something else ended it."""
    scheduler = _scheduler("a", _growing(retries=Retries(common=1)))
    _lose(scheduler, used_bytes, exit_code)
    assert _asked(scheduler) == [(0, 4, 4)]


def test_memory_that_cannot_grow_is_not_tried_again() -> None:
    """At the most that it may have, it has failed, though its budget is not used up."""
    scheduler = _scheduler("a", _growing(most=7))
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert _asked(scheduler) == [(0, 7, 7)]
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert scheduler.state(0) is State.FAILED


def test_memory_grows_as_often_as_its_budget_allows() -> None:
    """Five times by itself, or as told."""
    assert _run(_growing(), [Ending.OUT_OF_MEMORY] * 9) == (State.FAILED, 6)
    assert _run(_growing(retries=Retries(out_of_memory=1)), [Ending.OUT_OF_MEMORY] * 9) == (State.FAILED, 2)


@pytest.mark.parametrize("asked_between", [True, False])
def test_quantum_with_more_memory_is_offered_once(asked_between: bool) -> None:
    """Also where nobody asked what to start: as when a journal is folded."""
    scheduler = _scheduler("a:1 a:2", _growing())
    for _ in range(2):
        if asked_between:
            scheduler.select(FREE)
        _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert _asked(scheduler) == [(0, 16, 16), (1, 4, 4)]
    assert _asked(scheduler) == [(0, 16, 16), (1, 4, 4)]


@pytest.mark.parametrize("serial", [set(), {"a"}])
def test_stuck_where_memory_has_grown_beyond_the_machine(serial: set[str]) -> None:
    """It is found as if it had asked for that at first."""
    scheduler = _scheduler("a:1 a:2", _growing(), serial_labels=serial)
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert scheduler.stuck(Resources(1, 8)) is None
    message = scheduler.stuck(Resources(1, 7))
    assert message is not None
    assert "each of the 1 quanta of task a that are left" in message


def test_cores_of_a_serial_label_with_more_memory_do_not_make_it_stuck() -> None:
    """It still needs none of the capacity's."""
    rules = TaskRules(Resources(64, 4), memory_multiplier=2)
    scheduler = _scheduler("a", Policy(rules={"a": rules}), serial_labels={"a"})
    _try(scheduler, 0, Ending.OUT_OF_MEMORY)
    assert scheduler.stuck(Resources(1, 8)) is None
    assert chosen(scheduler, Resources(0, 8)) == [0]


def test_failed_and_blocked_come_back() -> None:
    """What failed is ready, what it blocked waits as its prerequisites have it; the rest stays as it is."""
    scheduler = _scheduler("a b -> c -> d; b -> e; f")
    _try(scheduler, 0, Ending.FAIL)
    _try(scheduler, 1)
    _try(scheduler, 4, Ending.FAIL)
    assert states_of(scheduler) == ["failed", "succeeded", "blocked", "blocked", "failed", "ready"]
    scheduler.apply(RunReopened(3.0))
    assert states_of(scheduler) == ["ready", "succeeded", "waiting", "waiting", "ready", "ready"]
    assert [(a.index, a.number) for a in scheduler.select(FREE)] == [(0, 2), (4, 2), (5, 1)]
    run_plan(scheduler, FakeModel(FREE))
    assert scheduler.counts()[State.SUCCEEDED] == 6
    assert scheduler.attempts(0) == scheduler.attempts(4) == 2


def test_blocked_by_two_waits_for_both() -> None:
    """A quantum behind two failures is ready only after both have succeeded."""
    scheduler = _scheduler("a b -> c")
    _try(scheduler, 0, Ending.FAIL)
    _try(scheduler, 1, Ending.FAIL)
    scheduler.apply(RunReopened(3.0))
    _try(scheduler, 1)
    assert states_of(scheduler) == ["ready", "succeeded", "waiting"]
    _try(scheduler, 0)
    assert states_of(scheduler) == ["succeeded", "succeeded", "ready"]


def test_budgets_begin_anew_but_what_was_learned_stays() -> None:
    """Who resumes wants it tried again; what is known about its memory is still true."""
    scheduler = _scheduler("a", _growing(most=16, retries=Retries(common=1, out_of_memory=1)))
    for ending in (Ending.OUT_OF_MEMORY, Ending.FAIL, Ending.OUT_OF_MEMORY):
        _try(scheduler, 0, ending)
    assert scheduler.state(0) is State.FAILED
    scheduler.apply(RunReopened(3.0))
    assert _asked(scheduler) == [(0, 16, 16)]
    assert _try(scheduler, 0, Ending.FAIL).retried  # type: ignore[union-attr]
    assert not _try(scheduler, 0, Ending.FAIL).retried  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([0], ["ready", "waiting", "waiting"]),  # its successor was ready
        ([0, 1], ["ready", "succeeded", "ready"]),  # its successor has succeeded
        ([0, 1, 2], ["ready", "succeeded", "succeeded"]),
    ],
)
def test_revoked_success_is_run_again(done: list[int], expected: list[str]) -> None:
    """What has succeeded behind it stays; what is ready and needs it waits; all come to their end once."""
    scheduler = _scheduler("a -> b -> c")
    for index in done:
        _try(scheduler, index)
    scheduler.apply(RunReopened(3.0, (0,)))
    assert states_of(scheduler) == expected
    model = FakeModel()
    run_plan(scheduler, model)
    assert states_of(scheduler) == ["succeeded"] * 3
    assert [attempt.index for attempt in model.started] == [0, *range(len(done), 3)]
    assert [scheduler.attempts(index) for index in range(3)] == [2, 1, 1]


def test_revoked_success_of_which_two_are_prerequisites() -> None:
    """What waits for two of them waits for both, however often each is named."""
    scheduler = _scheduler("a b -> c")
    _try(scheduler, 0)
    _try(scheduler, 1)
    assert chosen(scheduler) == [2]
    scheduler.apply(RunReopened(3.0, (0, 1, 0)))
    assert chosen(scheduler) == [0, 1]
    _try(scheduler, 0)
    assert chosen(scheduler) == [1]
    _try(scheduler, 1)
    assert chosen(scheduler) == [2]


def test_revoked_success_that_fails_now() -> None:
    """It blocks what has not been done yet, and nothing of what has."""
    scheduler = _scheduler("a -> b -> c; a -> d -> e")
    for index in (0, 1):
        _try(scheduler, index)
    scheduler.apply(RunReopened(3.0, (0,)))
    _try(scheduler, 0, Ending.FAIL)
    assert states_of(scheduler) == ["failed", "succeeded", "ready", "blocked", "blocked"]
    _try(scheduler, 2)
    assert scheduler.finished


@pytest.mark.parametrize(
    ("revoked", "message"),
    [
        ((0, 1), "quantum 1 (b{detector: 0}) is skipped, not succeeded"),
        ((2,), "quantum 2 (c{detector: 0}) is failed"),
        ((3,), "quantum 3 (d{detector: 0}) is blocked"),
        ((4,), "quantum 4 (e{detector: 0}) is ready"),
        ((-1,), "there is no quantum -1"),
        ((0, 5), "there is no quantum 5"),
    ],
)
def test_only_successes_can_be_revoked(revoked: tuple[int, ...], message: str) -> None:
    """Anything else raises and changes nothing."""
    scheduler = _scheduler("a b c -> d; e")
    for index, ending in enumerate((Ending.SUCCEED, Ending.SKIP, Ending.FAIL)):
        _try(scheduler, index, ending)
    before = snapshot_of(scheduler)
    for refuse in (scheduler.check, scheduler.apply):
        with pytest.raises(IllegalEventError) as raised:
            refuse(RunReopened(3.0, revoked))
        assert message in str(raised.value)
        assert snapshot_of(scheduler) == before


def test_nothing_is_reopened_while_something_runs() -> None:
    """What runs must be settled first; it raises and changes nothing."""
    scheduler = _scheduler("a b c")
    _try(scheduler, 0, Ending.FAIL)
    scheduler.apply(AttemptStarted(1.0, 1, 1))
    before = snapshot_of(scheduler)
    for refuse in (scheduler.check, scheduler.apply):
        with pytest.raises(IllegalEventError, match="1 quanta are running"):
            refuse(RunReopened(3.0))
        assert snapshot_of(scheduler) == before


def test_reopening_what_needs_it_not() -> None:
    """Where nothing failed it changes nothing, also twice."""
    scheduler = _scheduler("a b -> c")
    _try(scheduler, 0)
    before = snapshot_of(scheduler)
    scheduler.apply(RunReopened(3.0))
    scheduler.apply(RunReopened(3.0))
    assert snapshot_of(scheduler) == before


def test_reopened_run_is_as_stopped_as_before() -> None:
    """Going on is the next driver's to say."""
    scheduler = _scheduler("a")
    _try(scheduler, 0, Ending.FAIL)
    scheduler.apply(StopRequested(2.0, StopReason.INTERRUPTED))
    scheduler.apply(RunReopened(3.0))
    assert scheduler.stopping is StopReason.INTERRUPTED
    assert chosen(scheduler) == []


def test_next_driver_is_not_stopped_by_the_last_ones_reason() -> None:
    """With a new driver nothing is stopping any more, nor wanted to, and the run goes on."""
    scheduler = _scheduler("a b", Policy(fail_fast=True))
    began = RunStarted(3.0, "host", 2, 2.5, "pool", 2)
    _try(scheduler, 0, Ending.FAIL)
    assert scheduler.wants_stop() is StopReason.FAILED_FAST
    scheduler.apply(began)
    assert scheduler.wants_stop() is None
    scheduler.apply(StopRequested(4.0, StopReason.FAILED_FAST))
    assert scheduler.finished
    scheduler.apply(began)
    assert (scheduler.stopping, scheduler.wants_stop(), scheduler.finished) == (None, None, False)
    assert chosen(scheduler) == [1]


def test_more_cores_than_there_are() -> None:
    """A quantum that asks for more cores than there are gets all of them, and is told what it asked for."""
    policy = Policy(rules={"a": TaskRules(request=Resources(8)), "b": TaskRules(request=Resources(1))})
    scheduler = _scheduler("a b", policy)
    assert scheduler.stuck(Resources(2)) is not None
    scheduler.limit_cores(2)
    assert scheduler.stuck(Resources(2)) is None
    (attempt,) = scheduler.select(Resources(2))
    assert (attempt.task_label, attempt.resources.cores) == ("a", 8)
    assert scheduler.select(Resources(1)) == []
