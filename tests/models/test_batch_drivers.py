"""Drivers of runs on a batch system: they leave, die, come back, meet; and the closing job without any."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lsst.pipe.base import automatic_connection_constants as acc

from benchmarks.endstate import EndState
from qgexec.api import GraphExecutor
from qgexec.batch.rounds import Round
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.books.journal import journal_file
from qgexec.cli import EXIT_INTERRUPTED
from qgexec.config.runconfig import TaskSettings
from qgexec.errors import ModelError, RunHeldError, UsageError
from qgexec.models.batch import BatchModel, ask
from qgexec.offline import close_round, collect
from qgexec.reports.report import RunState
from tests.kit.batch.handsystem import HandSystem
from tests.kit.batch.jobforks import N_QUANTA, Jobs, Place, configured, killed_in
from tests.kit.butler.repos import OUTPUT_RUN
from tests.kit.crash.faults import Fault, at_call, in_task, raising, together
from tests.kit.processes.forks import KILLED, Flag, Fork

pytestmark = pytest.mark.usefixtures("server")

_ONCE = {"isr": [1, 1], "calibrate": [1, 1], "summary": [1], "final": [1]}


@pytest.fixture
def watching(place: Place, tmp_path: Path) -> Iterator[Fork]:
    """A driver in a process of its own that has submitted a round, of which nothing runs yet."""
    flag = Flag(tmp_path / "watches")
    place.hand.pause = True
    driver = place.start(at_call(BatchModel, "wait", act=flag.raise_))
    flag.wait()
    place.hand.pause = False
    place.hand.submit(place.pending())  # the driver's batch system is a copy
    yield driver
    if _is_there(driver):
        os.kill(driver.pid, signal.SIGKILL)
        driver.finish()
    flag.close()


def _is_there(driver: Fork) -> bool:
    try:
        return os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


# --- nobody watches -------------------------------------------------------------------------------------


def test_the_closing_job_closes_the_books(place: Place, local: EndState) -> None:
    """After `submit` nobody watches: it records, ingests and closes all, and removes no job."""
    driver = place.submit()
    assert driver.has_left
    assert place.report().state is RunState.SUBMITTED
    place.work_off()
    assert close_round(place.run_dir, 1) is True
    assert place.pending().is_closed
    assert place.hand.cancelled == []
    assert local.differences(place.end()) == []


@pytest.mark.every(2)
@pytest.mark.parametrize("visibility_s", [0.0, 1.0])
def test_the_closing_job_submits_what_is_to_be_tried_again(
    place: Place, local: EndState, visibility_s: float
) -> None:
    """It waits for last words, then leaves the next round to itself, whose own closing job ends the run."""
    place.config = replace(place.config, batch=replace(place.config.batch, visibility_s=visibility_s))
    place.hand.runs = Jobs({(1, 0): [killed_in("calibrate", place.mark("killed"))]}, tries=1)
    place.submit()
    place.work_off()
    place.hand.pause = True
    assert close_round(place.run_dir, 1) is True
    place.hand.pause = False
    assert (place.pending().number, place.report().state) == (2, RunState.SUBMITTED)
    place.work_off()
    assert close_round(place.run_dir, 2) is True
    assert place.attempts()["isr"] == [1, 1]
    assert local.differences(place.end()) == []


def test_closing_jobs_do_not_submit_for_ever(place: Place) -> None:
    """Where no job of a round has done anything the closing job ends with an error, and submits nothing."""
    place.submit()
    place.hand.jobs[place.pending().name] = dict.fromkeys(range(3), _ended())
    with pytest.raises(ModelError, match="none of the jobs"):
        close_round(place.run_dir, 1)
    assert len(place.hand.submitted) == 1
    assert place.pending().is_closed


def _ended() -> JobStatus:
    return JobStatus(JobState.ENDED, "no such file", JobEnd.EXITED, 127)


@pytest.mark.thorough
def test_a_closing_job_says_what_failed(place: Place) -> None:
    """It ends badly where quanta have failed, and submits nothing for them."""
    place.hand.runs = Jobs({(1, 0): [in_task(isr=raising(ValueError("no stars")))]})
    place.submit()
    place.work_off()
    assert close_round(place.run_dir, 1) is False
    total = place.report().total
    assert (total.failed, total.blocked, len(place.hand.submitted)) == (2, 4, 1)


@pytest.mark.skipif(
    not hasattr(acc, "PROVENANCE_DATASET_TYPE_NAME"),
    reason="lsst-pipe-base has run_provenance from 30.0.1 and 30.2026.400 on",
)
@pytest.mark.parametrize("fail_fast", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_closing_job_keeps_provenance(place: Place, fail_fast: bool) -> None:
    """It writes the provenance graph when all has ended, well or not, or the run was stopped."""
    place.hand.runs = Jobs({(1, 0): [in_task(isr=raising(ValueError("no stars")))]})
    place.submit(provenance=True, fail_fast=fail_fast)
    place.work_off()
    with place.repository.butler() as butler:
        assert not butler.registry.queryDatasetTypes("run_provenance")
    assert close_round(place.run_dir, 1) is False
    with place.repository.butler() as butler:
        graph = butler.get("run_provenance", collections=OUTPUT_RUN)
    found = Counter(info["status"].name for _, info in graph.quantum_only_xgraph.nodes(data=True))
    assert found["FAILED"] >= 1
    assert found.total() == N_QUANTA


@pytest.mark.thorough
def test_a_resume_while_jobs_are_left(
    place: Place, local: EndState, caplog: pytest.LogCaptureFixture
) -> None:
    """It watches them, and says that what has failed waits for the next resume, which tries it again."""
    place.hand.runs = Jobs({(1, 0): [in_task(isr=raising(ValueError("no stars")))]})
    place.submit()
    place.work_off([0])
    assert place.resume() == 1
    assert "What has failed (quanta: 2) is not tried again before they have ended" in caplog.text
    assert len(place.hand.submitted) == 1
    caplog.clear()
    assert place.resume() == 0
    assert "has failed" not in caplog.text
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_closing_job_that_comes_again(place: Place, local: EndState) -> None:
    """It does nothing, and says the same."""
    place.submit()
    place.work_off()
    assert [close_round(place.run_dir, 1), close_round(place.run_dir, 1)] == [True, True]
    assert len(list(place.books.journal.iterdir())) == 2
    assert local.differences(place.end()) == []


def test_progress_is_seen_without_any_driver(place: Place) -> None:
    """What jobs have done is in the report while they run, and the batch system says how many are left."""
    place.submit()
    place.hand.pause = True
    place.work_off([0])
    found = place.report()
    assert (found.state, found.total.succeeded, found.total.not_run) == (RunState.SUBMITTED, 4, 2)
    assert found.submitted is not None
    assert (found.submitted.n_jobs, found.submitted.number) == (3, 1)
    status = ask(place.pending())
    assert status is not None
    assert status.counts == {JobState.QUEUED: 2, JobState.ENDED: 1}
    assert len(list(place.books.journal.iterdir())) == 1, "reading writes nothing"


@pytest.mark.thorough
def test_collect_takes_in_what_is_there(place: Place, local: EndState) -> None:
    """Also while jobs are left, and again and again; what is there already is not taken in again."""
    place.submit()
    place.hand.pause = True
    place.work_off([0])
    assert collect(place.run_dir) == 4 * 3
    assert collect(place.run_dir) == 0
    assert place.report().state is RunState.SUBMITTED
    place.hand.pause = False
    place.work_off()
    assert collect(place.run_dir) == 2 * 3
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_collect_judges_losses_as_the_run_does(place: Place) -> None:
    """A quantum that may be lost so often is not failed by `collect`, one that may not is."""
    place.hand.runs = Jobs({(1, 0): [killed_in("isr", place.mark("killed"))]}, tries=1)
    place.config = configured(TaskSettings(lost=0))
    place.submit()
    place.work_off()
    collect(place.run_dir)
    assert place.report().total.failed == 1


@pytest.mark.thorough
def test_a_run_directory_that_was_moved(place: Place, local: EndState) -> None:
    """Where all jobs have ended the run is gone on with from its new place."""
    place.submit()
    place.work_off([0])
    place.run_dir.rename(place.folder / "elsewhere")
    (place.folder / "run").symlink_to("elsewhere")  # for the jobs that were given its old name
    place.work_off()
    (place.folder / "run").unlink()
    assert close_round(place.folder / "elsewhere", 1) is True
    (place.folder / "elsewhere").rename(place.run_dir)
    assert local.differences(place.end()) == []


# --- drivers that die -----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fault", "was_submitted"),
    [
        (at_call(HandSystem, "submit"), False),
        (at_call(HandSystem, "submit", "after"), True),
        (at_call(Round, "write_ticket", "after"), True),
        (at_call(BatchModel, "wait", "after"), True),
    ],
    ids=["before it submits", "before the ticket", "after the ticket", "while it watches"],
)
def test_a_driver_that_dies(place: Place, local: EndState, fault: Fault, was_submitted: bool) -> None:
    """The next one goes on with the round that was submitted, found by its name where need be."""
    place.hand.pause = True
    assert place.start(fault).finish() == KILLED
    place.hand.pause = False
    if was_submitted:
        place.hand.submit(place.pending())
    assert place.resume() == 0
    assert len(place.hand.submitted) == 1
    assert place.attempts() == _ONCE
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_what_jobs_did_meanwhile(place: Place, local: EndState) -> None:
    """A driver that comes back when all is done only records it."""
    place.hand.pause = True
    assert place.start(at_call(BatchModel, "wait", "after")).finish() == KILLED
    assert place.report().state is RunState.DRIVER_GONE
    place.hand.submit(place.pending())
    place.work_off()
    assert place.resume() == 0
    assert place.attempts() == _ONCE
    assert local.differences(place.end()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("is_silent", [False, True])
def test_the_closing_job_of_a_driver_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """One that gave a sign of life is left to do it all; one that was silent for minutes is gone."""
    place.hand.pause = True
    assert place.start(at_call(BatchModel, "wait", "after")).finish() == KILLED
    place.hand.submit(place.pending())
    place.work_off()
    monkeypatch.setattr("qgexec.books.holder.lives", lambda *_: None)  # as seen from another machine
    if is_silent:
        os.utime(journal_file(place.books.journal, 1), (1e9, 1e9))
    assert close_round(place.run_dir, 1, patience_s=0.0) is True
    assert place.pending().is_closed is is_silent
    assert place.report().total.ingested == (N_QUANTA if is_silent else 0)


# --- two at a time --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_driver_that_watches_is_left_alone(place: Place, watching: Fork) -> None:
    """Another driver and `collect` are refused, the closing job leaves it all to the driver."""
    with pytest.raises(RunHeldError, match=str(watching.pid)):
        place.resume()
    with pytest.raises(RunHeldError, match=str(watching.pid)):
        collect(place.run_dir)
    assert close_round(place.run_dir, 1, patience_s=0.0) is True
    assert not place.pending().is_closed
    assert len(place.hand.submitted) == 1


@pytest.mark.thorough
def test_an_interrupt_leaves_the_jobs_alone(place: Place, watching: Fork, local: EndState) -> None:
    """Ctrl-C ends the driver, as an interrupt; the round goes on, and so can anybody."""
    os.kill(watching.pid, signal.SIGINT)
    assert watching.finish() == EXIT_INTERRUPTED
    assert place.report().state is RunState.SUBMITTED
    assert place.resume() == 0
    assert (len(place.hand.submitted), place.attempts()) == (1, _ONCE)
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_driver_that_was_taken_over_from(place: Place, tmp_path: Path, local: EndState) -> None:
    """It ends when it sees that, writes nothing more, and leaves the jobs to the other one."""
    cancelled = tmp_path / "cancelled"
    watches, goes_on = Flag(tmp_path / "watches"), Flag(tmp_path / "goes_on")
    place.hand.pause = True

    def sleeps() -> None:
        watches.raise_()
        goes_on.wait()

    fault = together(
        at_call(BatchModel, "wait", act=sleeps), at_call(HandSystem, "cancel", act=cancelled.touch)
    )
    driver = place.start(fault)
    watches.wait()
    place.hand.submit(place.pending())
    place.work_off()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgexec.books.holder.lives", lambda *_: None)  # as seen from another machine
        patch.setattr("qgexec.books.holder.silent_for", lambda _file: 3600.0)
        GraphExecutor.of_run(place.run_dir).resume(force=True)
    goes_on.raise_()
    assert driver.finish() == 2
    assert "has taken over the run" in (place.folder / "driver.log").read_text()
    assert not cancelled.exists()
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_another_model_while_jobs_are_left(place: Place, local: EndState) -> None:
    """It is refused with what can be done; once the jobs have ended it does the rest."""
    place.hand.runs = Jobs({(1, 0): [killed_in("calibrate", place.mark("killed"))]}, tries=1)
    place.submit()
    place.hand.pause = True
    place.work_off([0])
    with pytest.raises(UsageError, match="still in the hands of hand"):
        place.resume("inprocess")
    place.work_off()
    assert place.resume("inprocess") == 0
    assert len(place.hand.submitted) == 1
    assert place.attempts()["isr"] == [1, 1]
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_batch_system_that_does_not_say(place: Place) -> None:
    """Whether jobs are left is not guessed: nobody goes on until it answers."""
    place.submit()
    place.hand.silent = True
    with pytest.raises(ModelError, match="does not say whether jobs of the run are left"):
        place.resume("inprocess")
    place.hand.silent = False
    assert place.resume() == 0
