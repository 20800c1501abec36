"""`cancel`: the mark first, then every job is gone, then the books are closed; whatever runs the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.endstate import EndState
from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.system import JobState, JobStatus, RoundStatus
from qgexec.errors import ModelError
from qgexec.events import AttemptSucceeded
from qgexec.models.batch import BatchModel
from qgexec.offline import cancel, close_round
from qgexec.reports.report import RunState
from qgexec.resume import take_over
from tests.kit.batch.handsystem import HandSystem
from tests.kit.batch.jobforks import Jobs, Place, in_first, start_job
from tests.kit.batch.submitted import wait_until
from tests.kit.crash.faults import at_call, at_kind, together
from tests.kit.processes.forks import KILLED, Flag, Fork

pytestmark = pytest.mark.usefixtures("server")

_ONCE = {"isr": [1, 1], "calibrate": [1, 1], "summary": [1], "final": [1]}


@pytest.fixture
def flag(tmp_path: Path) -> Iterator[Flag]:
    """Something to wait for."""
    flag = Flag(tmp_path / "flag")
    yield flag
    flag.close()


def _begun(place: Place, flag: Flag) -> Fork:
    """Return a driver that has submitted a round; a mark says that it has had jobs removed."""
    place.hand.pause = True
    cancels = at_call(HandSystem, "cancel", act=place.mark("cancelled").touch)
    driver = place.start(together(at_call(BatchModel, "wait", act=flag.raise_), cancels))
    flag.wait()
    place.hand.pause = False
    place.hand.submit(place.pending())
    return driver


@pytest.mark.thorough
def test_nobody_watches(place: Place, local: EndState) -> None:
    """What was done is in the registry, the rest can be gone on with; nothing of it is left in the queue."""
    place.submit()
    place.work_off([0])
    cancel(place.run_dir)
    assert set(place.hand.cancelled) == set(place.hand.submitted)
    assert place.books.cancel_file.exists()
    assert place.pending().is_closed
    found = place.report()
    assert (found.state, found.submitted, found.total.ingested) == (RunState.STOPPED, None, 4)
    cancel(place.run_dir)  # once more does no harm
    assert place.resume() == 0
    assert not place.books.cancel_file.exists()
    assert place.attempts() == _ONCE
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_what_runs_is_given_back(place: Place, flag: Flag, local: EndState) -> None:
    """A job looks for the mark while it runs, and ends; its quantum is no failure."""
    place.submit()
    job = start_job(place.pending(), 0, in_first("calibrate", place.mark("stuck"), flag.raise_))
    flag.wait()
    cancel(place.run_dir)
    assert job.finish() == 0
    found = place.report()
    assert (found.total.failed, found.total.running, found.total.succeeded) == (0, 0, 2)
    assert place.resume() == 0
    assert local.differences(place.end()) == []


def test_jobs_that_begin_after_the_mark(place: Place) -> None:
    """A job that the batch system began all the same does nothing, and the closing job submits nothing."""
    place.submit()
    place.books.ask_to_cancel()
    assert start_job(place.pending(), 0).finish() == 0
    assert not place.pending().journal(0).exists()
    place.hand.pause = True
    assert close_round(place.run_dir, 1) is False
    assert len(place.hand.submitted) == 1


@pytest.mark.thorough
def test_the_mark_that_comes_while_a_closing_job_takes_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands: the closing job submits nothing more."""
    place.hand.runs = Jobs(tries=0)
    place.submit()

    def marked(*args: object, **kwargs: object) -> object:
        place.books.ask_to_cancel()
        return take_over(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("qgexec.offline.take_over", marked)
    place.work_off()
    assert close_round(place.run_dir, 1) is False
    assert place.books.cancel_file.exists()
    assert len(place.hand.submitted) == 1


@pytest.mark.thorough
def test_a_driver_watches_here(place: Place, flag: Flag, local: EndState) -> None:
    """It ends, and does not leave the jobs to themselves."""
    driver = _begun(place, flag)
    cancel(place.run_dir)
    assert driver.finish() != 0
    assert "goes on without" not in (place.folder / "driver.log").read_text()
    assert place.hand.cancelled or place.mark("cancelled").exists()
    assert (place.report().state, place.report().submitted) == (RunState.STOPPED, None)
    assert place.resume() == 0
    assert local.differences(place.end()) == []


def test_a_driver_about_to_submit(place: Place, flag: Flag) -> None:
    """The round that it submits after the mark was left is removed too."""

    def last_moment() -> None:
        flag.raise_()
        signal.sigtimedwait([], 0)
        while not (place.run_dir / "cancel").exists():
            signal.sigtimedwait([], 0.01)

    def prepare() -> None:
        at_call(HandSystem, "submit", act=last_moment)()
        at_call(HandSystem, "cancel", act=place.mark("cancelled").touch)()

    place.hand.pause = True
    driver = place.start(prepare)
    flag.wait()
    place.hand.submit(place.pending())
    cancel(place.run_dir)
    assert driver.finish() != 0
    assert place.mark("cancelled").exists()
    assert place.pending().is_closed
    assert place.report().submitted is None


@pytest.mark.every(2)
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_a_run_that_no_batch_system_has(place: Place, flag: Flag, local: EndState, model: str) -> None:
    """A driver on this host ends what it runs; the run can be gone on with."""
    driver = place.start(in_first("calibrate", place.mark("stuck"), flag.raise_), model)
    flag.wait()
    cancel(place.run_dir)
    assert driver.finish() != 0
    found = place.report()
    assert (found.state, found.total.failed, found.total.running) == (RunState.STOPPED, 0, 0)
    assert place.resume() == 0
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_batch_system_that_does_not_answer(place: Place, local: EndState) -> None:
    """Nothing is claimed; the mark stays, and another try ends the run."""
    place.submit()
    place.hand.silent = True
    with pytest.raises(ModelError, match="does not answer"):
        cancel(place.run_dir)
    assert place.books.cancel_file.exists()
    place.hand.silent = False
    cancel(place.run_dir)
    assert place.pending().is_closed
    assert place.resume() == 0
    assert local.differences(place.end()) == []


def test_jobs_that_do_not_go_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how many are left, and how to try once more."""
    place.submit()
    place.hand.pause = True
    monkeypatch.setattr(place.hand, "cancel", lambda *_: None)
    place.hand.pace = replace(place.hand.pace, removal_s=0.0)
    with pytest.raises(ModelError, match=r"do not go away: \{'queued': 3\}") as caught:
        cancel(place.run_dir)
    assert caught.value.hint.startswith(f"Try once more: qgexec cancel {place.run_dir}\n")


@pytest.mark.thorough
def test_the_closing_job_of_a_round_that_is_over(place: Place) -> None:
    """It may be between two of its tries when a driver has done its work: it is removed, once."""
    assert place.run() == 0
    assert place.pending().is_closed
    look, closing = place.hand.look, JobStatus(JobState.RUNNING)

    def waits(batch_round: Round, ticket: Ticket) -> RoundStatus:
        found = look(batch_round, ticket)
        return found if place.hand.cancelled else replace(found, closing=closing)

    place.hand.look = waits  # type: ignore[method-assign]
    cancel(place.run_dir)
    assert place.hand.cancelled == place.hand.submitted
    cancel(place.run_dir)
    assert place.hand.cancelled == place.hand.submitted


@pytest.mark.thorough
def test_a_run_that_is_over_where_no_batch_system_answers(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """That its closing job may be left is told, and no reason to fail."""
    assert place.run() == 0
    place.hand.silent = True
    cancel(place.run_dir)
    assert "the closing job of qgexec-" in caplog.text
    assert place.report().all_succeeded


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_a_driver_that_was_killed(place: Place, local: EndState, model: str) -> None:
    """What it was running is given back: nothing runs in a run that has stopped."""
    driver = place.start(in_first("calibrate", place.mark("stuck"), place.mark("reached").touch), model)
    wait_until(place.mark("reached").exists)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.finish() == KILLED
    cancel(place.run_dir)
    found = place.report()
    assert (found.state, found.total.failed, found.total.running) == (RunState.STOPPED, 0, 0)
    assert found.running == ()
    assert place.resume() == 0
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_what_a_killed_driver_had_not_heard(place: Place, local: EndState) -> None:
    """An attempt that had written all it had to write has succeeded, and is taken in."""
    driver = place.start(at_kind(AttemptSucceeded, "before"), "inprocess")
    assert driver.finish() == KILLED
    assert place.report().total.succeeded == 0
    cancel(place.run_dir)
    found = place.report().total
    assert (found.succeeded, found.ingested, found.running) == (1, 1, 0)
    assert place.resume() == 0
    assert place.attempts() == _ONCE
    assert local.differences(place.end()) == []
