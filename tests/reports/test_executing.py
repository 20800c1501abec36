"""Tests of `qgexec.reports.executing`: running means executing, and not sent ahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.events import AttemptBegan, AttemptReturned, AttemptStarted, Event, WorkerEnded
from qgexec.quantum import Attempt
from qgexec.reports.executing import Executing
from qgexec.reports.progress import Progress
from qgexec.reports.text import format_status
from qgexec.testing import Ending, ended, make_plan
from tests.kit.runs.handbooks import BEGAN, HandBooks, started, succeeded

POOL = replace(BEGAN, at=0.0, sends_ahead=True)
PLAN = make_plan(" ".join(f"a:{number}" for number in range(9)))


def folded(*events: Event) -> Executing:
    """Return what is executed after these events, also after all of it was saved and restored."""
    executing = Executing()
    for event in events:
        executing.apply(event)
    assert Executing(executing.state()).running() == executing.running()
    return executing


def sent(*indices: int, at: float = 1.0) -> list[Event]:
    """Return that quanta were handed to the model."""
    return [AttemptStarted(at, index, 1) for index in indices]


def done(index: int, at: float) -> Event:
    """Return that a quantum has ended."""
    return ended(Attempt(index, 1, PLAN.quantum_id(index), "a"), Ending.SUCCEED, at)


def began(index: int, at: float, worker: int) -> Event:
    """Return that a worker has begun with a quantum."""
    return AttemptBegan(at, index, 1, worker)


def test_nothing_runs_before_a_worker_has_begun() -> None:
    """Workers that start execute nothing."""
    assert folded(POOL, *sent(0, 1, 2)).running() == {}


def test_one_of_what_each_worker_holds() -> None:
    """Nine are in hand of two workers: two run, as they run too short to be told of."""
    executing = folded(POOL, *sent(*range(9)), began(0, 2.0, 1), began(1, 2.5, 2), done(0, 3.0), done(1, 3.5))
    assert executing.running() == {2: 3.5, 3: 3.5}
    assert len(executing) == 2


def test_its_time_runs_from_its_own_beginning() -> None:
    """What waits behind a long one does not run, however long ago it was sent."""
    executing = folded(
        POOL, *sent(0, 1, 2), began(0, 2.0, 1), began(2, 2.0, 2), done(0, 4.0), began(1, 4.0, 1)
    )
    assert executing.running() == {2: 2.0, 1: 4.0}
    assert (executing.since(1), executing.since(0)) == (4.0, None)


def test_a_worker_that_is_gone_runs_nothing() -> None:
    """What it had is sent to another one, and waits until then."""
    executing = folded(POOL, *sent(0, 1), began(0, 2.0, 1), WorkerEnded(3.0, 1, -9))
    assert executing.running() == {}
    executing.apply(began(0, 5.0, 2))
    assert executing.running() == {0: 5.0}


def test_what_is_given_back_does_not_run() -> None:
    """Nor what a worker is said to have begun that is not in hand any more."""
    executing = folded(POOL, *sent(0), began(0, 2.0, 1), AttemptReturned(3.0, 0, 1), began(0, 3.5, 1))
    assert executing.running() == {}


def test_another_driver_begins_anew() -> None:
    """Workers end with their driver."""
    executing = folded(POOL, *sent(0), began(0, 2.0, 1), replace(POOL, at=9.0), AttemptReturned(9.5, 0, 1))
    assert executing.running() == {}
    executing.apply(AttemptStarted(10.0, 1, 1))
    assert len(executing) == 0


def test_a_model_that_sends_nothing_ahead() -> None:
    """All that it has in hand runs, since it was handed over; but for what its own books show to wait."""
    executing = folded(replace(POOL, sends_ahead=False), *sent(0), *sent(1, 2, at=5.0))
    assert executing.running() == {0: 1.0, 1: 5.0, 2: 5.0}
    executing.hold_back([1])
    assert (executing.running(), len(executing)) == ({0: 1.0, 2: 5.0}, 2)


def test_progress_counts_what_is_executed() -> None:
    """By task, too; what waits is not running."""
    progress = Progress(PLAN)
    for event in (POOL, *sent(*range(9)), began(0, 2.0, 1), began(1, 2.0, 2)):
        progress.apply(event)
    assert progress.view(3.0).total.running == 2


@pytest.mark.parametrize("is_alive", [True, False])
def test_status_and_report(tmp_path: Path, is_alive: bool) -> None:
    """They count it so and name it so; what waits has not been run."""
    books = HandBooks(tmp_path / "run")
    at = BEGAN.at
    books.write(replace(BEGAN, sends_ahead=True), *started(0, 1, 2), AttemptBegan(at + 2, 0, 1, 1))
    books.write(succeeded(0), AttemptBegan(at + 3, 1, 1, 1))
    report = books.read(is_alive=is_alive)
    assert (report.total.running, report.total.not_run) == (1, 6)
    assert [(quantum.index, quantum.started_at - at) for quantum in report.running] == [(1, 3.0)]
    if is_alive:
        assert "quantum 1, attempt 1, for 7.0 s" in format_status(report, now=at + 10)
