"""The loop over models that order the work themselves and go on without it; and other ways to go away."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from qgexec.books.journal import Journal, read_events
from qgexec.errors import ModelError, RunHeldError
from qgexec.events import (
    AttemptLost,
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    EndReason,
    Event,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.models.base import ModelFacts
from qgexec.quantum import Attempt, Resources
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler, State
from qgexec.testing import Ending, FakeModel, ended, make_plan
from tests.kit.runs.benches import SkippingClock
from tests.kit.runs.loopdesk import Desk, Remembering

LONG_S = 3600.0
"""After this a loop looks at everything that it looks at now and then."""


class Delayed(FakeModel):
    """Takes all that is left, and executes one quantum at each look, in order, for so many looks."""

    def __init__(self, script: dict[int | str, Ending | list[Ending]] | None = None, looks: int = 99) -> None:
        facts = ModelFacts(parallel=True, orders_itself=True, survives_driver=True)
        super().__init__(script=script, facts=facts)
        self.rounds: list[list[Attempt]] = []
        self.looks = looks
        self._todo: list[Attempt] = []

    def capacity(self) -> Resources:
        return Resources(0 if self._todo else 1)

    def start(self, attempts: Sequence[Attempt]) -> None:
        self.rounds.append(list(attempts))
        self._todo = list(attempts)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        assert self.opened is not None
        assert self.opened.ledger is not None
        self.looks -= 1
        while self._todo and self.looks >= 0:
            attempt = self._todo.pop(0)
            begins = AttemptStarted(self.clock.now, attempt.index, attempt.number)
            if self.opened.ledger.state(attempt.index) is State.READY:
                end = self._ending(attempt)
                if end is Ending.HANG:
                    self._todo.insert(0, attempt)
                    self.running.append(attempt)
                    self.looks = 0
                    return [begins]
                assert isinstance(end, Ending)
                return [begins, ended(attempt, end, self.clock.now)]
        return []

    def close(self, *, cancel: bool) -> Sequence[Event]:
        self.closed.append(cancel)
        returned = [AttemptReturned(self.clock.now, each.index, each.number) for each in self.running]
        self.running.clear()
        self._todo.clear()
        return returned if cancel else []


def kinds(desk: Desk) -> list[type[Event]]:
    return [type(event) for event in desk.events()]


def test_it_is_given_all_that_is_left_at_once(tmp_path: Path) -> None:
    """Waiting quanta too; what it tells of is recorded, and the loop begins nothing of its own."""
    model = Delayed()
    desk = Desk(tmp_path, make_plan("a -> b -> c"), model)
    assert desk.loop.execute() is EndReason.COMPLETED
    assert [[attempt.index for attempt in each] for each in model.rounds] == [[0, 1, 2]]
    assert kinds(desk) == [RunStarted, *[AttemptStarted, AttemptSucceeded] * 3, RunEnded]
    assert model.closed == [True]


def test_what_comes_back_is_given_to_it_again(tmp_path: Path) -> None:
    """Once nothing is in its hands any more: the next attempt, and what waits for it."""
    model = Delayed({"a": [Ending.RETURN, Ending.SUCCEED]})
    desk = Desk(tmp_path, make_plan("a -> b; c"), model)
    assert desk.loop.execute() is EndReason.COMPLETED
    numbers = [[(attempt.index, attempt.number) for attempt in each] for each in model.rounds]
    assert numbers == [[(0, 1), (1, 1), (2, 1)], [(0, 2), (1, 1)]]


def test_what_it_says_of_retries_stands(tmp_path: Path) -> None:
    """The loop does not judge once more what was judged where it happened."""

    class Judging(Delayed):
        def wait(self, timeout_s: float) -> Sequence[Event]:
            events = super().wait(timeout_s)
            return [
                AttemptLost(1.0, each.index, each.attempt, "gone", retried=each.attempt == 1)
                if isinstance(each, AttemptSucceeded)
                else each
                for each in events
            ]

    model = Judging()
    desk = Desk(tmp_path, make_plan("a"), model)
    desk.loop.scheduler = Scheduler(
        make_plan("a"), policy=Policy(common_rules=TaskRules(retries=Retries(lost=0)))
    )
    assert desk.loop.execute() is EndReason.COMPLETED
    assert [event.retried for event in desk.events() if isinstance(event, AttemptLost)] == [True, False]


def test_it_leaves_when_all_is_in_other_hands(tmp_path: Path) -> None:
    """Nothing is removed, nothing given back, and no stop recorded: the next driver goes on."""
    model = Delayed(looks=0)
    desk = Desk(tmp_path, make_plan("a -> b"), model)
    desk.loop.leaves = True
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.loop.has_left
    assert model.closed == [False]
    assert kinds(desk) == [RunStarted, RunEnded]


def test_it_does_not_leave_a_model_that_needs_it(tmp_path: Path) -> None:
    """`leaves` is nothing to a model that does not go on alone."""
    desk = Desk(tmp_path, make_plan("a -> b"), FakeModel())
    desk.loop.leaves = True
    assert desk.loop.execute() is EndReason.COMPLETED
    assert not desk.loop.has_left


def test_an_interrupt_leaves_what_goes_on(tmp_path: Path) -> None:
    """And no remains are removed: a next attempt may be writing."""
    ingestion = Remembering()
    model = Delayed({"a": Ending.RETURN, "b": Ending.HANG}, looks=2)
    desk = Desk(tmp_path, make_plan("a b"), model, ingestion=ingestion)
    desk.loop.observers = (lambda event: _interrupt_at(desk, event),)
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.loop.has_left
    assert model.closed == [False]
    assert ingestion.discarded == []
    assert desk.states() == [State.READY, State.RUNNING]
    assert StopRequested not in kinds(desk)


def _interrupt_at(desk: Desk, event: Event) -> None:
    if isinstance(event, AttemptStarted) and event.index == 1:
        desk.loop.interrupts.handle(signal.SIGINT, None)


def test_an_interrupt_before_anything_is_in_hand(tmp_path: Path) -> None:
    """Nothing is submitted: there is nothing to leave."""
    model = Delayed()
    desk = Desk(tmp_path, make_plan("a"), model)
    desk.loop.interrupts.handle(signal.SIGINT, None)
    assert desk.loop.execute() is EndReason.STOPPED
    assert (model.rounds, desk.loop.has_left) == ([], False)
    assert desk.scheduler.stopping is StopReason.INTERRUPTED


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_cancelled_run_is_not_left_to_itself(tmp_path: Path, signals: int) -> None:
    """Whatever signals come with the mark: what is in hand is removed, what ran is given back."""
    model = Delayed({"a": Ending.HANG})
    desk = Desk(tmp_path, make_plan("a b"), model)
    desk.loop.monotonic = clock = SkippingClock()
    desk.loop.cancelled = lambda: bool(model.running)

    def observe(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            for _ in range(signals):
                desk.loop.interrupts.handle(signal.SIGTERM, None)
            clock.skip(LONG_S)

    desk.loop.observers = (observe,)
    assert desk.loop.execute() is EndReason.STOPPED
    assert (desk.loop.has_left, model.closed) == (False, [True])
    assert kinds(desk)[-3:] == [StopRequested, AttemptReturned, RunEnded]


def test_a_failure_that_stops_the_run_removes_the_rest(tmp_path: Path) -> None:
    """A model that starts more by itself cannot be waited for."""
    model = Delayed({"a": Ending.FAIL})
    desk = Desk(tmp_path, make_plan("a b c"), model, fail_fast=True)
    assert desk.loop.execute() is EndReason.STOPPED
    assert model.closed == [True]
    assert desk.states() == [State.FAILED, State.READY, State.READY]


def test_what_goes_wrong_here_does_not_end_what_goes_on(tmp_path: Path) -> None:
    """The driver breaks; the jobs do not, and no attempt is given back."""

    class Deaf(Delayed):
        def wait(self, timeout_s: float) -> Sequence[Event]:
            if self.running:
                raise ModelError("the journals cannot be read")
            return super().wait(timeout_s)

    model = Deaf({"a": Ending.HANG})
    desk = Desk(tmp_path, make_plan("a b"), model)
    with pytest.raises(ModelError, match="cannot be read"):
        desk.loop.execute()
    assert set(model.closed) == {False}
    assert kinds(desk) == [RunStarted, AttemptStarted, RunEnded]
    assert desk.states() == [State.RUNNING, State.READY]


def test_a_round_that_was_refused_leaves_nothing_to_go_on(tmp_path: Path) -> None:
    """The model is closed as any other, and the error is its own."""

    class Refusing(Delayed):
        def start(self, attempts: Sequence[Attempt]) -> None:
            raise ModelError("no such queue")

    model = Refusing()
    desk = Desk(tmp_path, make_plan("a"), model)
    with pytest.raises(ModelError, match="no such queue"):
        desk.loop.execute()
    assert (model.closed, desk.loop.has_left) == ([True], False)


@pytest.mark.parametrize("delayed", [False, True])
def test_a_driver_that_was_taken_over_from_writes_nothing_more(tmp_path: Path, delayed: bool) -> None:
    """What it hears after a later writer has come is in that one's books; what goes on is left to it."""

    class Slow(Delayed):
        def wait(self, timeout_s: float) -> Sequence[Event]:
            later()
            return super().wait(timeout_s)

    class SlowHere(FakeModel):
        def wait(self, timeout_s: float) -> Sequence[Event]:
            later()
            clock.skip(LONG_S)
            return ()

    def later() -> None:
        if not (desk.folder / "0002.jsonl").exists():
            Journal.create(desk.folder, after=1).close()

    model = Slow() if delayed else SlowHere()
    desk = Desk(tmp_path, make_plan("a b"), model)
    desk.loop.monotonic = clock = SkippingClock()
    with pytest.raises(RunHeldError):
        desk.loop.execute()
    assert kinds(desk) == ([RunStarted] if delayed else [RunStarted, AttemptStarted])
    assert set(model.closed) == {not delayed}


# --- a job's own loop -----------------------------------------------------------------------------------


def test_nothing_is_begun_after_its_time(tmp_path: Path) -> None:
    """What runs comes to its end; the rest is left to another try."""
    model = FakeModel()
    desk = Desk(tmp_path, make_plan("a b c"), model)
    desk.loop.until = model.clock.now + 1.5
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.states() == [State.SUCCEEDED, State.SUCCEEDED, State.READY]
    assert desk.scheduler.stopping is StopReason.INTERRUPTED


def test_what_does_not_fit_is_handed_back(tmp_path: Path) -> None:
    """Where another machine may have room it is no error."""
    desk = Desk(tmp_path, make_plan("a"), FakeModel(Resources(1, 100)))
    desk.loop.scheduler = Scheduler(
        make_plan("a"), policy=Policy(rules={"a": TaskRules(request=Resources(1, 200))})
    )
    desk.loop.hands_back = True
    assert desk.loop.execute() is EndReason.STOPPED
    assert kinds(desk) == [RunStarted, StopRequested, RunEnded]


def test_cancel_ends_what_runs_at_once(tmp_path: Path) -> None:
    """An interrupt would wait for it; somebody who wants the run ended would not."""
    model = FakeModel(script={"a": Ending.HANG})
    desk = Desk(tmp_path, make_plan("a"), model)
    desk.loop.monotonic = clock = SkippingClock()
    desk.loop.cancelled = lambda: bool(model.running)
    desk.loop.observers = (lambda _event: clock.skip(LONG_S),)
    assert desk.loop.execute() is EndReason.STOPPED
    assert kinds(desk) == [RunStarted, AttemptStarted, StopRequested, AttemptReturned, RunEnded]
    assert len(list(read_events(desk.folder))) == 5
