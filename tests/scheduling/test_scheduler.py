"""`qgexec.scheduling.scheduler`: every legal and illegal event, selection, stopping."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest

from qgexec.errors import IllegalEventError
from qgexec.events import (
    AttemptEvent,
    AttemptStarted,
    EndReason,
    Event,
    FailureEvent,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.quantum import Attempt, Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import RETRIED, TRANSITIONS, State
from qgexec.testing import Ending, FakeModel, ended, make_plan, run_plan
from tests.kit.runs.schedulers import FREE, chosen, snapshot_of, states_of

_GIB = 2**30

_EVENTS_OF_THE_RUN: list[Event] = [
    RunStarted(1.0, "host", 1, 0.5, "inprocess", 3),
    RunEnded(1.0, EndReason.COMPLETED),
    WorkerStarted(1.0, 1, "host", 2, 0.5),
    WorkerEnded(1.0, 1, 0),
    OutputsIngested(1.0, (0,), 4),
]


def _scheduler(plan: Plan | str, **options: Any) -> Scheduler:
    return Scheduler(make_plan(plan) if isinstance(plan, str) else plan, **({"policy": Policy()} | options))


def _asking(requests: Mapping[str, Resources], **rules: Any) -> Policy:
    """Return a policy of what each label asks for."""
    return Policy(rules={label: TaskRules(request, **rules) for label, request in requests.items()})


def _attempt(scheduler: Scheduler, index: int) -> Attempt:
    """Return the attempt that the quantum is at, or the next one if none was started."""
    plan = scheduler.plan
    return Attempt(index, max(scheduler.attempts(index), 1), plan.quantum_id(index), plan.label(index))


def _start(scheduler: Scheduler, *indices: int) -> None:
    for index in indices:
        scheduler.apply(AttemptStarted(1.0, index, scheduler.attempts(index) + 1))


def _end(scheduler: Scheduler, index: int, ending: Ending = Ending.SUCCEED) -> None:
    scheduler.apply(ended(_attempt(scheduler, index), ending, 2.0))


def _run(scheduler: Scheduler, *indices: int) -> None:
    for index in indices:
        _start(scheduler, index)
        _end(scheduler, index)


def _in_state(state: State) -> Scheduler:
    """Return a scheduler whose quantum 1 is in this state."""
    scheduler = _scheduler("a -> b -> c")
    if state is State.BLOCKED:
        _start(scheduler, 0)
        _end(scheduler, 0, Ending.FAIL)
    elif state is not State.WAITING:
        _run(scheduler, 0)
        if state is not State.READY:
            _start(scheduler, 1)
        ways = {State.SUCCEEDED: Ending.SUCCEED, State.SKIPPED: Ending.SKIP, State.FAILED: Ending.FAIL}
        if state in ways:
            _end(scheduler, 1, ways[state])
    assert scheduler.state(1) is state
    return scheduler


def _event(
    scheduler: Scheduler, kind: type[AttemptEvent], attempt: int, *, retried: bool = False
) -> AttemptEvent:
    if kind is AttemptStarted:
        return AttemptStarted(1.0, 1, attempt)
    whole = Attempt(1, attempt, scheduler.plan.quantum_id(1), "b")
    events = [ended(whole, ending, 2.0) for ending in Ending if ending is not Ending.HANG]
    event = next(event for event in events if type(event) is kind)
    return replace(event, retried=True) if retried and isinstance(event, FailureEvent) else event


_CASES = list(itertools.product(State, get_args(AttemptEvent)))


@pytest.mark.parametrize(("state", "kind"), _CASES)
def test_every_event_in_every_state(state: State, kind: type[AttemptEvent]) -> None:
    """What the table has happens; anything else raises with quantum, state and event, and changes nothing."""
    scheduler = _in_state(state)
    event = _event(scheduler, kind, scheduler.attempts(1) + (kind is AttemptStarted))
    before = snapshot_of(scheduler)
    if (state, kind) in TRANSITIONS:
        scheduler.check(event)
        assert snapshot_of(scheduler) == before
        scheduler.apply(event)
        assert scheduler.state(1) is TRANSITIONS[state, kind]
        return
    refusals: list[Any] = [scheduler.check, scheduler.apply]
    for refuse in [*refusals, scheduler.judge] if isinstance(event, FailureEvent) else refusals:
        with pytest.raises(IllegalEventError) as raised:
            refuse(event)
        assert kind.__name__ in str(raised.value)
        assert f"is {state.value}" in str(raised.value)
        assert "quantum 1 (b{detector: 0})" in str(raised.value)
        assert snapshot_of(scheduler) == before


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, get_args(FailureEvent))))
def test_every_retried_failure_in_every_state(state: State, kind: type[AttemptEvent]) -> None:
    """One that is followed by another attempt makes the quantum ready, where a final one makes it failed."""
    scheduler = _in_state(state)
    event = _event(scheduler, kind, scheduler.attempts(1), retried=True)
    before = snapshot_of(scheduler)
    if (state, kind) in RETRIED:
        scheduler.apply(event)
        assert scheduler.state(1) is RETRIED[state, kind] is State.READY
        assert scheduler.state(2) is State.WAITING
        return
    with pytest.raises(IllegalEventError, match=f"is {state.value}"):
        scheduler.apply(event)
    assert snapshot_of(scheduler) == before


@pytest.mark.parametrize(
    ("state", "kind", "attempt"),
    [(state, kind, number) for state, kind in TRANSITIONS for number in (0, 1, 2, 3)],
)
def test_events_about_another_attempt(state: State, kind: type[AttemptEvent], attempt: int) -> None:
    """An event must be about the attempt that the quantum is at; a late one changes nothing."""
    scheduler = _in_state(state)
    if attempt == scheduler.attempts(1) + (kind is AttemptStarted):
        return
    before = snapshot_of(scheduler)
    with pytest.raises(IllegalEventError, match=f"attempt {attempt}"):
        scheduler.apply(_event(scheduler, kind, attempt))
    assert snapshot_of(scheduler) == before


@pytest.mark.parametrize("index", [-1, 3])
def test_events_about_no_quantum_of_the_plan(index: int) -> None:
    """An index outside the plan raises and changes nothing."""
    scheduler = _in_state(State.READY)
    before = snapshot_of(scheduler)
    with pytest.raises(IllegalEventError, match=f"no quantum {index}"):
        scheduler.apply(AttemptStarted(1.0, index, 1))
    assert snapshot_of(scheduler) == before


def test_something_that_is_no_event() -> None:
    """Only events are taken."""
    scheduler = _in_state(State.READY)
    before = snapshot_of(scheduler)
    with pytest.raises(IllegalEventError, match="str is not an event"):
        scheduler.apply("AttemptStarted")  # type: ignore[arg-type]
    assert snapshot_of(scheduler) == before


@pytest.mark.parametrize("event", _EVENTS_OF_THE_RUN)
def test_events_of_the_run_move_no_quantum(event: Event) -> None:
    """Events that are not about one quantum are taken and change nothing."""
    scheduler = _in_state(State.RUNNING)
    before = snapshot_of(scheduler)
    scheduler.check(event)
    scheduler.apply(event)
    assert snapshot_of(scheduler) == before


def test_failure_blocks_descendants_and_nothing_else() -> None:
    """All that depends on a failed quantum is blocked at once; the rest goes on."""
    scheduler = _scheduler("a b -> c -> e; b -> d; d e -> f")
    _start(scheduler, 0, 1)
    _end(scheduler, 0, Ending.FAIL)
    assert states_of(scheduler) == ["failed", "running", "blocked", "blocked", "waiting", "blocked"]
    _end(scheduler, 1)
    assert states_of(scheduler) == ["failed", "succeeded", "blocked", "blocked", "ready", "blocked"]
    _run(scheduler, 4)
    assert scheduler.finished
    assert scheduler.counts() == {
        State.WAITING: 0,
        State.READY: 0,
        State.RUNNING: 0,
        State.SUCCEEDED: 2,
        State.SKIPPED: 0,
        State.FAILED: 1,
        State.BLOCKED: 3,
    }


def test_skipped_is_as_good_as_succeeded() -> None:
    """Successors of a skipped quantum become ready."""
    scheduler = _scheduler("a -> b")
    _start(scheduler, 0)
    _end(scheduler, 0, Ending.SKIP)
    assert states_of(scheduler) == ["skipped", "ready"]


def test_returned_quantum_is_ready_again_once() -> None:
    """A returned quantum is offered again, once, with the next attempt's number."""
    scheduler = _scheduler("a b")
    for number in (1, 2, 3):
        assert [(attempt.index, attempt.number) for attempt in scheduler.select(FREE)] == [
            (0, number),
            (1, number),
        ]
        _start(scheduler, 0, 1)
        _end(scheduler, 0, Ending.RETURN)
        _end(scheduler, 1, Ending.RETURN)
    assert chosen(scheduler) == [0, 1]
    assert chosen(scheduler) == [0, 1]


def test_returned_without_being_selected() -> None:
    """Events from a journal, without any selection before them, do not make a quantum be offered twice."""
    scheduler = _scheduler("a b")
    for _ in range(3):
        _start(scheduler, 0)
        _end(scheduler, 0, Ending.RETURN)
    assert chosen(scheduler) == [0, 1]
    _run(scheduler, 0)
    assert chosen(scheduler) == [1]


def test_longest_remaining_path_first_then_index() -> None:
    """Of ready quanta the one with most ahead of it comes first, then the one with the smaller index."""
    scheduler = _scheduler("a; b; c -> d -> e; f -> g; h")
    assert chosen(scheduler) == [2, 5, 0, 1, 7]
    assert chosen(scheduler, Resources(2)) == [2, 5]


def test_selection_changes_nothing() -> None:
    """Asking twice gives the same answer; only what was started is gone."""
    scheduler = _scheduler("a b c d")
    assert chosen(scheduler, Resources(3)) == [0, 1, 2]
    assert chosen(scheduler, Resources(3)) == [0, 1, 2]
    _start(scheduler, 1)
    assert chosen(scheduler, Resources(3)) == [0, 2, 3]


@pytest.mark.parametrize("capacity", [Resources(0), Resources(-1), Resources(0, _GIB)])
def test_no_capacity_starts_nothing(capacity: Resources) -> None:
    """Without a free core nothing is started."""
    assert chosen(_scheduler("a b"), capacity) == []


def test_attempt_says_what_to_start() -> None:
    """An attempt carries ID, label, request, time limit, and a limit of memory where it is enforced."""
    plan = make_plan("a b")
    request = Resources(2, _GIB)
    rules = {"b": TaskRules(request, enforce_memory=True, timeout_s=7.0)}
    scheduler = _scheduler(plan, policy=Policy(rules=rules, common_rules=TaskRules(timeout_s=9.0)))
    assert scheduler.select(FREE) == [
        Attempt(1, 1, plan.quantum_id(1), "b", request, 7.0, _GIB),
        Attempt(0, 1, plan.quantum_id(0), "a", Resources(), 9.0),
    ]


def test_admission_by_cores_and_memory() -> None:
    """What is started together fits together, in cores and in memory."""
    requests = {"a": Resources(1, 3 * _GIB), "b": Resources(2, _GIB)}
    scheduler = _scheduler("a:1 a:2 b:1 b:2 a:3 -> end", policy=_asking(requests))
    assert chosen(scheduler, Resources(5, 10 * _GIB)) == [0, 1, 4, 2]
    assert chosen(scheduler, Resources(4, 10 * _GIB)) == [0, 1, 4]
    assert chosen(scheduler, Resources(4, 5 * _GIB)) == [0]
    assert chosen(scheduler, Resources(100)) == [0, 1, 4, 2, 3]
    assert chosen(scheduler, Resources(1)) == [0]


def test_largest_first_among_equally_long_paths() -> None:
    """Of equally urgent quanta the one that asks for most memory is first, but none before a longer path."""
    requests = {"small": Resources(1, 1), "large": Resources(1, 9), "long": Resources(1, 4)}
    scheduler = _scheduler("small:1 small:2 large:1 none long -> end; large:2", policy=_asking(requests))
    labels = [scheduler.plan.describe(index) for index in chosen(scheduler)]
    assert [label.partition("{")[0] for label in labels] == [
        *("large", "long", "small", "small", "none"),
        "large",
    ]


def test_nothing_overtakes_the_best() -> None:
    """What is free is kept for the best ready quantum, even if smaller ones would fit."""
    scheduler = _scheduler("big -> x -> y; small:1 small:2", policy=_asking({"big": Resources(4, 10)}))
    assert chosen(scheduler, Resources(3)) == []
    assert chosen(scheduler, Resources(5, 9)) == []
    assert chosen(scheduler, Resources(5, 10)) == [0, 3]


@pytest.mark.parametrize("asked", [(2,), (1, 10)])
def test_large_quantum_does_not_starve(asked: tuple[int, ...]) -> None:
    """A large quantum among ever new small ones is started when enough has ended, not last."""
    small = "; ".join(f"small:{number}" for number in range(20))
    scheduler = _scheduler(f"big -> end; {small}", policy=_asking({"big": Resources(*asked)}))
    model = FakeModel(Resources(2, 10))
    _start(scheduler, 2)
    model.start([_attempt(scheduler, 2)])
    run_plan(scheduler, model)
    assert [attempt.task_label for attempt in model.started][:2] == ["small", "big"]


def test_serial_label_runs_one_at_a_time_beside_the_others() -> None:
    """Of a serial label one quantum runs at a time; it takes no core of the capacity."""
    scheduler = _scheduler("s:1 s:2 t:1 a b", serial_labels={"s", "t"}, policy=_asking({"s": Resources(64)}))
    assert chosen(scheduler, Resources(0)) == [0, 2]
    assert chosen(scheduler, Resources(1)) == [0, 2, 3]
    _start(scheduler, 0)
    assert chosen(scheduler, Resources(0)) == [2]
    _end(scheduler, 0)
    assert chosen(scheduler, Resources(0)) == [1, 2]


def test_serial_label_counts_for_memory() -> None:
    """What it asks for is not there for the others, and it waits until there is enough."""
    requests = {"s": Resources(64, 4), "a": Resources(1, 3)}
    scheduler = _scheduler("s:1 s:2 a:1 a:2", serial_labels={"s"}, policy=_asking(requests))
    assert chosen(scheduler, Resources(8, 10)) == [0, 2, 3]
    assert chosen(scheduler, Resources(8, 9)) == [0, 2]
    assert chosen(scheduler, Resources(0, 4)) == [0]
    assert chosen(scheduler, Resources(8, 3)) == []
    _start(scheduler, 0)
    assert chosen(scheduler, Resources(8, 3)) == [2]


def test_serial_labels_do_not_overtake() -> None:
    """A better quantum keeps its memory, also while it waits for cores; what it leaves is theirs."""
    requests = {"best": Resources(4, 6), "s": Resources(1, 4), "other": Resources(1, 1)}
    scheduler = _scheduler("best -> x -> end; s; other", serial_labels={"s"}, policy=_asking(requests))
    s, other = (next(i for i in range(5) if scheduler.plan.label(i) == label) for label in ("s", "other"))
    assert chosen(scheduler, Resources(4, 9)) == [0]
    assert chosen(scheduler, Resources(4, 10)) == [0, s]
    assert chosen(scheduler, Resources(5, 11)) == [0, s, other]
    assert chosen(scheduler, Resources(3, 9)) == []
    assert chosen(scheduler, Resources(3, 11)) == [s]


def test_of_serial_labels_the_best_has_the_memory() -> None:
    """The one with the longer path, then the one that asks for more."""
    requests = {"s": Resources(1, 2), "t": Resources(1, 3), "u": Resources(1, 2)}
    scheduler = _scheduler("s t -> a; u -> b -> c", serial_labels=set("stu"), policy=_asking(requests))
    s, t, u = (next(i for i in range(6) if scheduler.plan.label(i) == label) for label in "stu")
    assert chosen(scheduler, Resources(0, 7)) == [u, t, s]
    assert chosen(scheduler, Resources(0, 5)) == [u, t]
    assert chosen(scheduler, Resources(0, 4)) == [u]
    assert chosen(scheduler, Resources(0, 1)) == []


def test_stop_starts_nothing_more() -> None:
    """After a stop nothing is chosen; what runs may end or be returned, and then it is finished."""
    scheduler = _scheduler("a b c -> d", serial_labels={"c"})
    _start(scheduler, 0, 1)
    scheduler.apply(StopRequested(1.0, StopReason.INTERRUPTED))
    scheduler.apply(StopRequested(2.0, StopReason.FAILED_FAST))
    assert scheduler.stopping is StopReason.INTERRUPTED
    assert chosen(scheduler) == []
    finished = [scheduler.finished]
    _end(scheduler, 0)
    finished.append(scheduler.finished)
    _end(scheduler, 1, Ending.RETURN)
    finished.append(scheduler.finished)
    assert finished == [False, False, True]
    assert states_of(scheduler) == ["succeeded", "ready", "ready", "waiting"]


@pytest.mark.parametrize(
    ("fail_fast", "ending", "reason"),
    [
        (True, Ending.FAIL, StopReason.FAILED_FAST),
        (True, Ending.LOSE, StopReason.FAILED_FAST),
        (True, Ending.TIME_OUT, StopReason.FAILED_FAST),
        (True, Ending.OUT_OF_MEMORY, StopReason.FAILED_FAST),
        (False, Ending.FAIL_INVALID, StopReason.INVALID_QUANTUM),
        (False, Ending.FAIL, None),
        (True, Ending.SUCCEED, None),
    ],
)
def test_wanted_stop_lasts_until_requested(
    fail_fast: bool, ending: Ending, reason: StopReason | None
) -> None:
    """The policy's wish stands, also over later successes, until the stop is an event."""
    scheduler = _scheduler("a b c", policy=Policy(fail_fast=fail_fast))
    assert scheduler.wants_stop() is None
    _start(scheduler, 0, 1)
    _end(scheduler, 0, ending)
    _end(scheduler, 1)
    assert scheduler.wants_stop() is reason
    assert scheduler.stopping is None
    scheduler.apply(StopRequested(3.0, reason or StopReason.INTERRUPTED))
    assert scheduler.wants_stop() is None


def test_counts_by_label() -> None:
    """Each label's quanta are counted in their states."""
    scheduler = _scheduler("a:1 a:2 -> b:1; a:1 -> b:2")
    _run(scheduler, 0)
    _start(scheduler, 1)
    counts = scheduler.counts_by_label()
    assert {state: n for state, n in counts["a"].items() if n} == {State.SUCCEEDED: 1, State.RUNNING: 1}
    assert {state: n for state, n in counts["b"].items() if n} == {State.WAITING: 1, State.READY: 1}
    assert scheduler.running() == [1]


def test_stuck_names_who_asks_for_too_much() -> None:
    """A task that asks for more than the whole machine is found before anything is started."""
    scheduler = _scheduler(
        "a -> b:1 b:2; a -> s",
        policy=_asking({"b": Resources(8, 2 * _GIB), "s": Resources(99)}),
        serial_labels={"s"},
    )
    message = scheduler.stuck(Resources(4, 8 * _GIB))
    assert message is not None
    assert "the 2 quanta of task b that are left" in message
    assert "8 cores and 2 GiB" in message
    assert "no more than 4 cores and 8 GiB" in message
    assert scheduler.stuck(Resources(8, _GIB)) is not None
    assert scheduler.stuck(Resources(8, 2 * _GIB)) is None
    _start(scheduler, 0)
    assert scheduler.stuck(Resources(4)) is None
    _end(scheduler, 0, Ending.FAIL)
    assert scheduler.stuck(Resources(4)) is None


def test_stuck_for_the_memory_of_a_serial_label() -> None:
    """It needs no core of the capacity, but memory like all others."""
    policy = _asking({"s": Resources(99, 2 * _GIB)})
    scheduler = _scheduler("a; s", policy=policy, serial_labels={"s"})
    assert scheduler.stuck(Resources(1, 2 * _GIB)) is None
    message = scheduler.stuck(Resources(1, _GIB))
    assert message is not None
    assert "task s that are left asks for 99 cores and 2 GiB" in message


def test_empty_plan_is_finished() -> None:
    """Nothing to do is done."""
    scheduler = _scheduler("")
    assert scheduler.finished
    assert chosen(scheduler) == []
    assert sum(scheduler.counts().values()) == 0


def test_check_is_not_a_promise() -> None:
    """What was legal when checked is refused if another event came in between, or if it comes twice."""
    scheduler = _scheduler("a b")
    first, same, other = AttemptStarted(1.0, 0, 1), AttemptStarted(1.0, 0, 1), AttemptStarted(1.0, 1, 1)
    scheduler.check(first)
    scheduler.apply(same)
    before = snapshot_of(scheduler)
    with pytest.raises(IllegalEventError, match="is running"):
        scheduler.apply(first)
    assert snapshot_of(scheduler) == before
    scheduler.check(other)
    scheduler.apply(other)
    with pytest.raises(IllegalEventError, match="is running"):
        scheduler.apply(other)
