"""The loop: what it starts, what it writes down before it acts, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qgexec.errors import IngestError, JournalError, ModelError
from qgexec.events import (
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.ingestion.base import Ingestion, NoIngestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import ModelFacts
from qgexec.quantum import Attempt, Outcome, OutcomeStatus, Resources, SegmentRef
from qgexec.scheduling.policy import Policy, TaskRules
from qgexec.scheduling.scheduler import Scheduler, State
from qgexec.testing import Ending, FakeModel, make_plan
from tests.kit.runs.loopdesk import Desk, Remembering

RoomFor = Callable[[int], AbstractContextManager[None]]


def test_runs_all_quanta_and_closes_the_books(tmp_path: Path) -> None:
    """The journal begins with RunStarted, ends with RunEnded, and holds each attempt's start and end."""
    desk = Desk(tmp_path, make_plan("a -> b -> c"), FakeModel())
    assert desk.loop.execute() is EndReason.COMPLETED
    kinds = [type(event) for event in desk.events()]
    assert kinds == [RunStarted, *[AttemptStarted, AttemptSucceeded] * 3, RunEnded]
    assert desk.model.closed == [True]


def test_start_is_on_disk_before_the_model_acts(tmp_path: Path) -> None:
    """When a model is told to start an attempt, the journal on disk says so already."""
    seen: list[int] = []

    class Looking(FakeModel):
        def start(self, attempts: Sequence[Attempt]) -> None:
            started = {event.index for event in desk.events() if isinstance(event, AttemptStarted)}
            assert {attempt.index for attempt in attempts} <= started
            seen.extend(attempt.index for attempt in attempts)
            super().start(attempts)

    desk = Desk(tmp_path, make_plan("a b -> c"), Looking(Resources(2)))
    desk.loop.execute()
    assert seen == [0, 1, 2]


def test_failure_blocks_descendants_and_nothing_else(tmp_path: Path) -> None:
    """The run completes: the failed quantum's descendants are blocked, the others succeed."""
    desk = Desk(tmp_path, make_plan("a -> b; c -> d"), FakeModel(script={"a": Ending.FAIL}))
    assert desk.loop.execute() is EndReason.COMPLETED
    names = sorted(state.name for state in desk.states())
    assert names == ["BLOCKED", "FAILED", "SUCCEEDED", "SUCCEEDED"]


def test_fail_fast_returns_what_runs(tmp_path: Path) -> None:
    """After the first failure nothing is started, and what runs is ended and given back."""
    model = FakeModel(Resources(2), {"a": Ending.FAIL, "b": Ending.HANG})
    desk = Desk(tmp_path, make_plan("a b c"), model, fail_fast=True)
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.scheduler.stopping is StopReason.FAILED_FAST
    assert [type(event) for event in desk.events()][-3:] == [StopRequested, AttemptReturned, RunEnded]
    assert [attempt.task_label for attempt in model.started] == ["a", "b"]


def test_invalid_quantum_stops_the_run(tmp_path: Path) -> None:
    """Upstream's InvalidQuantumError stops a run also without fail_fast."""
    desk = Desk(tmp_path, make_plan("a b"), FakeModel(script={"a": Ending.FAIL_INVALID}))
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.scheduler.stopping is StopReason.INVALID_QUANTUM


def _signal_at(model: FakeModel, number: int, times: int) -> Callable[[float], Sequence[Event]]:
    """Return a `wait` that sends this process a signal in its first calls."""
    sent = 0
    wait = model.wait

    def waiting(timeout_s: float) -> Sequence[Event]:
        nonlocal sent
        if sent < times:
            sent += 1
            os.kill(os.getpid(), number)
        return wait(timeout_s)

    return waiting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_interrupt_lets_running_quanta_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing new is started after a first signal; what runs comes to its own end."""
    model = FakeModel(Resources(2), facts=ModelFacts(parallel=True))
    monkeypatch.setattr(model, "wait", _signal_at(model, number, times=1))
    desk = Desk(tmp_path, make_plan("a b c d"), model)
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.scheduler.counts()[State.SUCCEEDED] == 2
    assert len(model.started) == 2


def test_second_interrupt_ends_running_quanta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second signal what runs is given back, and is ready again."""
    model = FakeModel(Resources(2), {"a": Ending.HANG, "b": Ending.HANG}, facts=ModelFacts(parallel=True))
    monkeypatch.setattr(model, "wait", _signal_at(model, signal.SIGINT, times=2))
    desk = Desk(tmp_path, make_plan("a b c"), model)
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.scheduler.counts()[State.READY] == 3


def test_second_interrupt_breaks_into_a_quantum_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantum that runs in the loop's own thread is ended by an exception, and given back."""
    model = FakeModel()

    def wait(timeout_s: float) -> Sequence[Event]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal raises before this line")

    monkeypatch.setattr(model, "wait", wait)
    desk = Desk(tmp_path, make_plan("a b"), model)
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.scheduler.counts()[State.READY] == 2


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    """After a run Ctrl-C is what it was."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Desk(tmp_path, make_plan("a"), FakeModel()).loop.execute()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_quantum_larger_than_the_machine_is_an_error(tmp_path: Path) -> None:
    """A request that can never be met ends the run with a message, not a hang."""
    desk = Desk(tmp_path, make_plan("a"), FakeModel(Resources(1, 100)))
    desk.loop.scheduler = Scheduler(
        make_plan("a"), policy=Policy(rules={"a": TaskRules(request=Resources(1, 200))})
    )
    with pytest.raises(ModelError, match="asks for"):
        desk.loop.execute()
    last = desk.events()[-1]
    assert isinstance(last, RunEnded)
    assert last.reason is EndReason.BROKEN


def test_model_that_breaks_closes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the model is raised; attempts are given back, ingester and books are closed."""
    model = FakeModel()

    def wait(timeout_s: float) -> Sequence[Event]:
        raise ModelError("the cable is cut")

    monkeypatch.setattr(model, "wait", wait)
    ingestion = Remembering()
    desk = Desk(tmp_path, make_plan("a"), model, ingestion=ingestion)
    with pytest.raises(ModelError, match="the cable is cut"):
        desk.loop.execute()
    assert ingestion.closed
    assert [type(event) for event in desk.events()][-2:] == [AttemptReturned, RunEnded]


@pytest.mark.parametrize("refusing", [("collect", "drain"), ("drain",)])
def test_quanta_go_on_without_the_registry(tmp_path: Path, refusing: Sequence[str]) -> None:
    """A registry that refuses outputs stops no quantum; the error comes at the end, and says how to go on."""

    def refuse(*_: object) -> Sequence[OutputsIngested]:
        raise IngestError("the registry is gone")

    ingestion = Remembering()
    for call in refusing:
        setattr(ingestion, call, refuse)
    desk = Desk(tmp_path, make_plan("a -> b -> c"), FakeModel(), ingestion=ingestion)
    with pytest.raises(IngestError, match=rf"the registry is gone\n.*qgexec collect {tmp_path}"):
        desk.loop.execute()
    assert desk.scheduler.counts()[State.SUCCEEDED] == 3
    assert ingestion.closed


def test_registry_that_is_back_at_the_end(tmp_path: Path) -> None:
    """What could not be taken in while quanta ran is tried once more, and then the run is as any other."""
    n_refused = 0

    def refuse() -> Sequence[OutputsIngested]:
        nonlocal n_refused
        n_refused += 1
        raise IngestError("the registry is gone")

    ingestion = Remembering()
    setattr(ingestion, "collect", refuse)  # noqa: B010 - of this one object
    desk = Desk(tmp_path, make_plan("a -> b -> c"), FakeModel(), ingestion=ingestion)
    assert desk.loop.execute() is EndReason.COMPLETED
    assert n_refused == 1
    assert [event for event in desk.events() if isinstance(event, OutputsIngested)]


def test_full_disk_is_said_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that cannot be written down does not happen."""
    desk = Desk(tmp_path, make_plan("a"), FakeModel())
    append = desk.loop.journal.append

    def fail(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            raise JournalError("no space left on device")
        append(event)

    monkeypatch.setattr(desk.loop.journal, "append", fail)
    with pytest.raises(JournalError, match="no space"):
        desk.loop.execute()
    assert desk.model.started == []
    assert desk.scheduler.counts()[State.READY] == 1


def test_observers_see_every_event_after_it_was_recorded(tmp_path: Path) -> None:
    """What an observer is told is in the journal already."""
    desk = Desk(tmp_path, make_plan("a -> b"), FakeModel())
    seen: list[Event] = []

    def observe(event: Event) -> None:
        seen.append(event)
        assert desk.events() == seen

    desk.loop.observers = (observe,)
    desk.loop.execute()
    assert seen == desk.events()


def test_ingestion_protocol_is_met() -> None:
    """`NoIngestion` is an `Ingestion`."""
    ingestion: Ingestion = NoIngestion()
    ingestion.offer(0, SegmentRef("x", 0, 1))
    assert list(ingestion.collect()) == list(ingestion.drain(0.0)) == []
    ingestion.close()


def test_run_that_cannot_be_begun_leaves_nothing_open(tmp_path: Path, room_for: RoomFor) -> None:
    """Where not even the first event can be written, ingester and journal are closed."""
    ingestion = Remembering()
    desk = Desk(tmp_path, make_plan("a"), FakeModel(), ingestion=ingestion)
    with room_for(desk.loop.journal.path.stat().st_size), pytest.raises(JournalError):
        desk.loop.execute()
    assert ingestion.closed
    assert desk.model.started == []
    with pytest.raises(JournalError):
        desk.loop.journal.append(RunEnded(0.0, EndReason.BROKEN))


def test_what_settles_the_past_is_not_acted_upon(tmp_path: Path) -> None:
    """Of an earlier driver's attempts successes are ingested; nothing is discarded, no stop asked for."""
    ingestion = Remembering()
    desk = Desk(tmp_path, make_plan("a b c"), FakeModel(), ingestion=ingestion, fail_fast=True)
    detail = SegmentRef("0001-settle.jsonl", 40, 10)
    desk.loop.opening = (
        *(AttemptStarted(1.0, index, 1) for index in range(3)),
        AttemptSucceeded(2.0, Outcome(0, 1, OutcomeStatus.SUCCEEDED, 1.0, 2.0, detail=detail)),
        AttemptReturned(2.0, 1, 1),
        AttemptTimedOut(2.0, 2, 1, 5.0),
        RunReopened(3.0),
    )
    assert desk.loop.execute() is EndReason.COMPLETED
    assert desk.states() == [State.SUCCEEDED] * 3
    assert (ingestion.offered, ingestion.discarded) == ([0], [])


def test_what_is_left_behind_is_discarded_once_nothing_follows(tmp_path: Path) -> None:
    """A lost attempt's remains are removed by the next attempt, or at the end of a run that was stopped."""
    ingestion = Remembering()
    model = FakeModel(Resources(3), {"a": [Ending.LOSE, Ending.SUCCEED], "b": Ending.FAIL, "c": Ending.HANG})
    desk = Desk(tmp_path, make_plan("a b c"), model, ingestion=ingestion, fail_fast=True)
    assert desk.loop.execute() is EndReason.STOPPED
    assert sorted(ingestion.discarded) == [0, 2]


def test_a_final_loss_is_discarded_at_once(tmp_path: Path) -> None:
    """What an attempt left that no other follows is removed while the run goes on."""
    ingestion = Remembering()
    model = FakeModel(script={"a": [*[Ending.LOSE] * 4]})
    desk = Desk(tmp_path, make_plan("a b"), model, ingestion=ingestion)
    assert desk.loop.execute() is EndReason.COMPLETED
    assert ingestion.discarded == [0]
    assert desk.states() == [State.FAILED, State.SUCCEEDED]


def test_nothing_to_do_opens_no_model(tmp_path: Path) -> None:
    """A run without anything left to execute starts no worker, and still ingests what it is offered."""
    ingestion = Remembering()
    desk = Desk(tmp_path, make_plan("a"), FakeModel(), ingestion=ingestion)
    outcome = Outcome(0, 1, OutcomeStatus.SUCCEEDED, 1.0, 2.0)
    desk.loop.opening = (AttemptStarted(1.0, 0, 1), AttemptSucceeded(2.0, outcome))
    desk.loop.offers = {0: SegmentRef("0001-driver.jsonl", 40, 10)}
    assert desk.loop.execute() is EndReason.COMPLETED
    assert desk.model.opened is None
    assert ingestion.offered == [0]


def test_usr1_asks_how_far_it_is(tmp_path: Path) -> None:
    """SIGUSR1 has the loop say how far the run is, and changes nothing else."""
    asked: list[int] = []

    class Asking(FakeModel):
        def start(self, attempts: Sequence[Attempt]) -> None:
            super().start(attempts)
            os.kill(os.getpid(), signal.SIGUSR1)

    desk = Desk(tmp_path, make_plan("a b"), Asking())
    desk.loop.tell = lambda: asked.append(1)
    assert desk.loop.execute() is EndReason.COMPLETED
    assert asked == [1, 1]


def test_too_many_failures_let_what_runs_finish(tmp_path: Path) -> None:
    """After the given number of failures nothing is started, and what runs comes to its own end."""
    model = FakeModel(Resources(3), {"a": Ending.FAIL, "b": Ending.FAIL})
    desk = Desk(tmp_path, make_plan("a b c d"), model)
    desk.loop.scheduler = Scheduler(make_plan("a b c d"), policy=Policy(max_failures=2))
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.loop.scheduler.stopping is StopReason.TOO_MANY_FAILURES
    states = [desk.loop.scheduler.state(index) for index in range(4)]
    assert states == [State.FAILED, State.FAILED, State.SUCCEEDED, State.SUCCEEDED]


def test_grace(tmp_path: Path) -> None:
    """After the first signal what runs has so much time to finish, and is ended then."""
    interrupts = Interrupts(grace_s=0.0)
    desk = Desk(tmp_path, make_plan("a"), FakeModel(script={"a": Ending.HANG}))
    desk.loop.interrupts = interrupts
    interrupts.handle(signal.SIGTERM, None)
    assert interrupts.patience_over
    assert desk.loop.execute() is EndReason.STOPPED
    assert desk.states() == [State.READY]
