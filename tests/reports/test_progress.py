"""`qgexec.reports.progress`: counts, rate and time left from events."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from qgexec.events import (
    AttemptStarted,
    AttemptSucceeded,
    Event,
    FailureEvent,
    RunReopened,
    RunStarted,
    WorkerStarted,
)
from qgexec.quantum import Attempt
from qgexec.reports.progress import RATE_WINDOW_S, LabelProgress, Progress
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State
from qgexec.testing import Ending, ended, make_plan


def _attempt(plan: Plan, index: int) -> Attempt:
    return Attempt(index, 1, plan.quantum_id(index), plan.label(index))


def _folded(plan: Plan, *events: Event) -> Progress:
    progress = Progress(plan)
    for event in events:
        progress.apply(event)
    return progress


def test_counts_per_label() -> None:
    """Each task's quanta are counted by what became of them; blocked ones follow from the failed."""
    plan = make_plan("a:1 a:2 a:3 a:4 a:5; a:2 a:3 -> b:2 -> c; a:4 -> b:4")
    endings = {0: Ending.SUCCEED, 1: Ending.FAIL, 2: Ending.LOSE, 3: Ending.SKIP, 4: Ending.RETURN}
    events: list[Event] = [AttemptStarted(0.0, index, 1) for index in endings]
    events += [ended(_attempt(plan, index), ending, 1.0) for index, ending in endings.items()]
    b4 = next(index for index in range(len(plan)) if plan.label(index) == "b" and not plan.successors(index))
    events.append(AttemptStarted(2.0, b4, 1))
    view = _folded(plan, *events).view(3.0)
    assert view.labels == (
        LabelProgress("a", 5, succeeded=1, skipped=1, failed=2),
        LabelProgress("b", 2, running=1, blocked=1),
        LabelProgress("c", 1, blocked=1),
    )
    assert [row.ended for row in view.labels] == [4, 1, 1]
    assert view.total == LabelProgress("", 8, running=1, succeeded=1, skipped=1, failed=2, blocked=2)


def test_nothing_has_begun() -> None:
    """Before the first attempt nothing is known, and events of the run do not change that."""
    view = _folded(make_plan("a b"), WorkerStarted(5.0, 1, "host", 1, 1.0)).view(9.0)
    assert (view.elapsed_s, view.rate_per_s, view.eta_s) == (0.0, 0.0, None)


def _two_at_a_time(plan: Plan, n_quanta: int, took_s: float = 1.0) -> list[Event]:
    """Return the events of the first quanta, of so many seconds each on two workers, from 10.0 on."""
    events: list[Event] = []
    for index in range(n_quanta):
        at = 10.0 + took_s * (index // 2)
        events += [AttemptStarted(at, index, 1)]
        if index % 2:
            both = (_attempt(plan, index - 1), _attempt(plan, index))
            events += [_took(attempt, took_s, at + took_s) for attempt in both]
    return events


def _took(attempt: Attempt, took_s: float, at: float) -> Event:
    event = ended(attempt, Ending.SUCCEED, at)
    assert isinstance(event, AttemptSucceeded)
    return replace(event, outcome=replace(event.outcome, started_at=at - took_s))


def test_time_left_is_the_work_by_what_is_executed_at_a_time() -> None:
    """Two workers, one-second quanta: the four left take two seconds."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(8)))
    view = _folded(plan, *_two_at_a_time(plan, 4)).view(12.0)
    assert (view.elapsed_s, view.rate_per_s) == (2.0, 2.0)
    assert view.eta_s == pytest.approx(2.0)
    assert view.unmeasured == ()


def test_there_is_no_time_left_before_there_is_a_basis() -> None:
    """The first quantum of a process imports; and short tasks say nothing of one that was not measured."""
    plan = make_plan("a:1 a:2 a:3 a:4 -> b:1 b:2 b:3 b:4 b:5 b:6")
    events = _two_at_a_time(plan, 8)
    views = [_folded(plan, *events[:n]).view(events[n - 1].at) for n in range(1, len(events) + 1)]
    assert [(view.eta_s, view.unmeasured) for view in views[:3]] == [(None, ("a", "b"))] * 3
    assert {(view.eta_s, view.unmeasured) for view in views[8:11]} == {(None, ("b",))}
    assert views[-1].eta_s == pytest.approx(1.0)
    assert views[-1].unmeasured == ()


def test_what_is_not_known_comes_on_top() -> None:
    """Of most quanta it is known how long they take: it takes at least that."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(8)) + " -> b")
    view = _folded(plan, *_two_at_a_time(plan, 4)).view(12.0)
    assert view.eta_s == pytest.approx(2.0)
    assert view.unmeasured == ("b",)


def test_time_left_is_not_less_than_the_longest_path() -> None:
    """However many workers there are, one quantum of each task must follow the other."""
    plan = make_plan("; ".join(f"a:{n} -> b:{n} -> c:{n}" for n in range(4)))
    progress = Progress(plan)
    for at, name in enumerate("abc"):
        first = [index for index in range(len(plan)) if plan.label(index) == name][:3]
        for index in first:
            progress.apply(AttemptStarted(10.0 + at, index, 1))
        for index in first:
            progress.apply(ended(_attempt(plan, index), Ending.SUCCEED, 11.0 + at))
    assert progress.view(13.0).eta_s == pytest.approx(3.0)


def test_quanta_that_are_executed_in_a_row() -> None:
    """Those of one task that wait for each other take one after the other."""
    plan = make_plan("a:1 -> a:2 -> a:3 -> a:4 -> a:5; b:1 b:2 b:3 b:4 b:5")
    chain = [index for index in range(10) if plan.label(index) == "a"]
    progress = Progress(plan)
    for at, index in enumerate(chain[:3]):
        beside = next(i for i in range(10) if plan.label(i) == "b") + at
        for each in (index, beside):
            progress.apply(AttemptStarted(10.0 + at, each, 1))
        for each in (index, beside):
            progress.apply(ended(_attempt(plan, each), Ending.SUCCEED, 11.0 + at))
    assert progress.view(13.0).eta_s == pytest.approx(2.0)


def test_a_quantum_that_runs_longer_than_the_others() -> None:
    """What is left of one that runs is what it has not had; after the longest time, as long again."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(5)))
    progress = _folded(plan, *_two_at_a_time(plan, 4, took_s=30.0), AttemptStarted(70.0, 4, 1))
    assert [progress.view(at).eta_s for at in (70.0, 80.0, 130.0)] == [30.0, 20.0, 60.0]


def test_skipped_quanta_say_nothing_about_time() -> None:
    """After only skipped quanta the time left is unknown; blocked ones are not waited for."""
    plan = make_plan("a:1 a:2")
    started: list[Event] = [AttemptStarted(0.0, 0, 1), AttemptStarted(0.0, 1, 1)]
    assert _folded(plan, *started, ended(_attempt(plan, 0), Ending.SKIP, 1.0)).view(1.0).eta_s is None
    chain = make_plan("a -> b -> c")
    failed = _folded(chain, AttemptStarted(0.0, 0, 1), ended(_attempt(chain, 0), Ending.FAIL, 1.0))
    assert failed.view(1.0).eta_s == 0.0


def test_rate_is_of_the_last_minute() -> None:
    """What ended long ago does not count to the rate."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(200)))
    progress = Progress(plan)
    for index in range(180):
        progress.apply(AttemptStarted(float(index), index, 1))
        progress.apply(ended(_attempt(plan, index), Ending.SUCCEED, float(index + 1)))
    assert progress.view(180.0).rate_per_s == pytest.approx(1.0)
    assert progress.view(180.0 + 2 * RATE_WINDOW_S).rate_per_s == 0.0


def test_memory_is_that_of_the_last_minute() -> None:
    """A run of hours takes no more than one of minutes."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(1000)))
    progress, sizes = Progress(plan), []
    for index in range(1000):
        progress.apply(AttemptStarted(float(index), index, 1))
        progress.apply(ended(_attempt(plan, index), Ending.SUCCEED, float(index + 1)))
        sizes.append(len(pickle.dumps(progress)))
    assert sizes[-1] < sizes[100] + 100


def _again(event: Event) -> Event:
    assert isinstance(event, FailureEvent)
    return replace(event, retried=True)


@pytest.mark.parametrize("ending", [Ending.FAIL, Ending.LOSE, Ending.TIME_OUT, Ending.OUT_OF_MEMORY])
def test_retried_attempts_are_no_failures(ending: Ending) -> None:
    """An attempt that is followed by another counts as retried, blocks nothing, and may still succeed."""
    plan = make_plan("a -> b")
    progress = _folded(plan, AttemptStarted(0.0, 0, 1), _again(ended(_attempt(plan, 0), ending, 1.0)))
    assert progress.view(1.0).total == LabelProgress("", 2, retried=1)
    progress.apply(AttemptStarted(1.0, 0, 2))
    assert progress.view(1.0).total == LabelProgress("", 2, running=1, retried=1)
    progress.apply(ended(replace(_attempt(plan, 0), number=2), Ending.SUCCEED, 2.0))
    assert progress.view(2.0).total == LabelProgress("", 2, succeeded=1, retried=1)


def test_reopening_counts_no_failures_any_more() -> None:
    """What failed and what it blocked is to be done, and so is what is revoked, however often it is named."""
    plan = make_plan("a b -> c; b -> d")
    events: list[Event] = [AttemptStarted(0.0, index, 1) for index in (0, 1)]
    events += [ended(_attempt(plan, 0), Ending.FAIL, 1.0), ended(_attempt(plan, 1), Ending.SUCCEED, 1.0)]
    progress = _folded(plan, *events)
    assert progress.view(1.0).total == LabelProgress("", 4, succeeded=1, failed=1, blocked=1)
    progress.apply(RunReopened(1.0, (1, 1)))
    assert progress.view(1.0).total == LabelProgress("", 4)
    progress.apply(AttemptStarted(2.0, 1, 2))
    progress.apply(ended(replace(_attempt(plan, 1), number=2), Ending.FAIL, 3.0))
    assert progress.view(1.0).total == LabelProgress("", 4, failed=1, blocked=2)


def test_time_without_a_driver_does_not_count() -> None:
    """After a night without one, the time left is as it was before."""
    plan = make_plan(" ".join(f"a:{number}" for number in range(8)))
    began, again = (RunStarted(at, "host", 1, at, "pool", 8) for at in (10.0, 50_003.0))
    progress = _folded(plan, began)
    for index in range(3):
        progress.apply(AttemptStarted(10.0 + index, index, 1))
        progress.apply(ended(_attempt(plan, index), Ending.SUCCEED, 11.0 + index))
    before = progress.view(13.0)
    assert (before.elapsed_s, before.eta_s) == (3.0, 5.0)
    progress.apply(again)
    assert progress.view(50_003.0).elapsed_s < 5.0
    progress.apply(AttemptStarted(50_003.0, 3, 1))
    assert progress.view(50_003.5).eta_s == pytest.approx(4.5)


def test_what_an_earlier_driver_left_in_hand_runs() -> None:
    """Until it is said to have ended."""
    plan = make_plan("a:1 a:2")
    progress = Progress(plan, {"a": {State.RUNNING: 2}})
    assert progress.view(1.0).total == LabelProgress("", 2, running=2)
    progress.apply(ended(_attempt(plan, 0), Ending.SUCCEED, 2.0))
    assert progress.view(2.0).total == LabelProgress("", 2, running=1, succeeded=1)
