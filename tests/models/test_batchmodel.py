"""Runs whose quanta are the jobs of a batch system: what comes of them, whatever becomes of the jobs."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.endstate import EndState
from qgexec.batch.journals import JobJournals
from qgexec.batch.rounds import Round, last_round, rounds
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.batchjob import JobMargins
from qgexec.books.journal import Journal, read_events
from qgexec.config.runconfig import TaskSettings
from qgexec.errors import JournalError, ModelError, UsageError
from qgexec.events import (
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptTimedOut,
    Event,
    OutputsIngested,
    StopReason,
)
from qgexec.rubin.opener import ImportedExecutor
from tests.kit.batch.handsystem import run_once
from tests.kit.batch.jobforks import N_JOBS, N_QUANTA, Jobs, Place, configured, killed_in
from tests.kit.checkout import PYTHONPATH
from tests.kit.crash.faults import Fault, in_task, is_first
from tests.kit.processes.forks import KILLED

pytestmark = pytest.mark.usefixtures("server")

_GROWING = TaskSettings(memory_bytes=1 << 30, memory_multiplier=2.0, timed_out=1)


def test_a_run_is_what_a_local_run_is(place: Place, local: EndState) -> None:
    """Dataset by dataset, file by file, in the registry and in the report."""
    assert place.run() == 0
    assert local.differences(place.end()) == []
    assert [job for _, job in place.hand.tries] == [*range(N_JOBS)]


@pytest.mark.thorough
def test_a_job_is_the_same_program(place: Place, local: EndState) -> None:
    """What a batch system calls is `qgexec worker`, in a process of its own."""
    in_fork = Jobs()

    def run(batch_round: Round, job: int) -> JobStatus:
        if job:
            return in_fork(batch_round, job)
        found = run_once(batch_round, job, {"PYTHONPATH": PYTHONPATH})
        assert (found.returncode, "Traceback" in found.stderr) == (0, False)
        return JobStatus(JobState.ENDED, "", JobEnd.EXITED, found.returncode)

    place.hand.runs = run
    assert place.run() == 0
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_rounds_of_a_few_jobs(place: Place, local: EndState) -> None:
    """What a batch system does not take at once follows in the next round."""
    place.hand.most = 4
    assert place.run() == 0
    assert local.differences(place.end()) == []
    assert [job for _, job in place.hand.tries] == [*range(4)] * (N_JOBS // 4) + [*range(N_JOBS % 4)]
    assert len(place.hand.submitted) == -(-N_JOBS // 4)


def test_a_batch_system_that_does_not_answer(place: Place) -> None:
    """It is asked before anything is changed: there is no run directory, and the registry is as it was."""
    before = place.repository.dump()
    place.hand.silent = True
    with pytest.raises(ModelError, match="hand does not answer"):
        place.run()
    assert not place.run_dir.exists()
    assert place.repository.dump() == before


@pytest.mark.thorough
def test_a_rehearsal_of_a_few_jobs(place: Place) -> None:
    """It says what is not in the round that is shown."""
    place.hand.most = 1
    found = place.executor().rehearse(str(place.repository.graph))
    n_here = len(found.batch_round.jobs.all_quanta())
    assert n_here < N_QUANTA
    assert f"the other {N_QUANTA - n_here} quanta follow in further rounds" in found.remarks[0]
    place.hand.most = None
    assert not place.executor().rehearse(str(place.repository.graph)).remarks
    assert place.run() == 0  # into the same folder
    assert len(place.hand.submitted) == 1


# --- quanta that fail -----------------------------------------------------------------------------------


def _first_only(mark: Path, message: str = "no stars") -> Fault:
    """The first quantum of isr fails, each time that it is tried."""

    def act() -> None:
        if is_first(mark):
            raise ValueError(message)

    return in_task(isr=act)


def test_a_failure_stops_only_what_follows_from_it(place: Place) -> None:
    """The other quanta of its job are executed; later jobs run, find nothing to do, and succeed."""
    jobs = Jobs({(1, 0): [_first_only(place.mark("isr"))]})
    place.hand.runs = jobs
    assert place.run() == 1
    states = {task.label: (task.succeeded, task.failed, task.blocked) for task in place.report().tasks}
    assert states == {"isr": (1, 1, 0), "calibrate": (1, 0, 1), "summary": (0, 0, 1), "final": (0, 0, 1)}
    assert {code for _, _, code in jobs.codes} == {0}


def test_a_job_whose_prerequisites_failed_has_nothing_to_do(place: Place) -> None:
    """It ends at once, well, and its journal says so."""
    place.hand.runs = jobs = Jobs({(1, 0): [_first_only(place.mark("isr"))]})
    place.submit()
    batch_round = place.work_off()
    assert jobs.codes == [(1, job, 0) for job in range(N_JOBS)]
    kinds = [type(event).__name__ for event in read_events(batch_round.journal(2))]
    assert kinds == ["RunStarted", "RunEnded"]


@pytest.mark.thorough
def test_resume_executes_what_failed(place: Place, local: EndState) -> None:
    """And what was blocked by it, in another round; nothing else."""
    place.hand.runs = Jobs({(1, 0): [_first_only(place.mark("isr"))]})
    assert place.run() == 1
    assert place.resume() == 0
    assert place.attempts() == {"isr": [1, 2], "calibrate": [1, 1], "summary": [1], "final": [1]}
    assert local.differences(place.end()) == []


@pytest.mark.every(2)
@pytest.mark.parametrize(("option", "value"), [("fail_fast", True), ("max_failures", 1)])
def test_failures_that_stop_the_run(place: Place, option: str, value: Any) -> None:
    """The round is removed, and nothing more is submitted."""
    place.hand.runs = Jobs({(1, 0): [_first_only(place.mark("isr"))]})
    assert place.run(**{option: value}) == 1
    assert len(place.hand.submitted) == len(place.hand.cancelled) == 1
    assert place.report().stop_reason in (StopReason.FAILED_FAST, StopReason.TOO_MANY_FAILURES)
    pending = last_round(place.books)
    assert pending is not None
    assert pending.is_closed


# --- jobs that die --------------------------------------------------------------------------------------


def test_the_next_try_of_a_job_that_was_killed_goes_on(place: Place, local: EndState) -> None:
    """What it had done is not done again; what it was doing is lost, and tried again."""
    place.hand.runs = jobs = Jobs({(1, 0): [killed_in("calibrate", place.mark("killed"))]})
    assert place.run() == 0
    assert jobs.codes == [(1, 0, KILLED), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert place.attempts() | {"calibrate": []} == {
        "isr": [1, 1],
        "calibrate": [],
        "summary": [1],
        "final": [1],
    }
    assert local.differences(place.end()) == []
    (lost,) = (event for event in read_events(place.books.journal) if isinstance(event, AttemptLost))
    assert (lost.reason, lost.retried) == ("try 1 of its batch job 0 was ended and could not say how", True)


@pytest.mark.thorough
def test_budgets_hold_over_tries_and_rounds(place: Place) -> None:
    """A quantum is lost so often as it may be, whichever round's job had it; then it has failed."""
    marks = [place.mark(f"killed{n}") for n in range(3)]
    place.hand.runs = Jobs({(n, 0): [killed_in("isr", marks[n - 1])] for n in (1, 2, 3)}, tries=1)
    place.config = configured(TaskSettings(lost=2))
    assert place.run() == 1
    assert len(place.hand.submitted) == 4, "the others of its job follow"
    (failure,) = place.report().failures
    assert [attempt.number for attempt in failure.attempts] == [1, 2, 3]


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (JobEnd.SIGNALLED, AttemptLost),
        (JobEnd.LOST, AttemptLost),
        (JobEnd.OUT_OF_MEMORY, AttemptOutOfMemory),
        (JobEnd.TIMED_OUT, AttemptTimedOut),
    ],
)
def test_a_job_that_dies_in_its_last_try(place: Place, local: EndState, end: JobEnd, kind: type) -> None:
    """Its quantum ended as the batch system says of the job; the next round finishes the run."""
    fault = killed_in("calibrate", place.mark("killed"))
    place.hand.runs = Jobs({(1, 0): [fault]}, {(1, 0): end}, tries=1)
    place.config = configured(_GROWING)
    assert place.run() == 0
    assert len(place.hand.submitted) == 2
    (ended,) = (
        event
        for event in read_events(place.books.journal)
        if isinstance(event, AttemptLost | AttemptOutOfMemory | AttemptTimedOut)
    )
    assert (type(ended), ended.retried) == (kind, True)
    first, second = map(Round.open, rounds(place.books))
    grown = 2 if kind is AttemptOutOfMemory else 1
    assert [first.jobs.request(0).memory_bytes, second.jobs.request(0).memory_bytes] == [1 << 30, grown << 30]
    assert place.attempts()["isr"] == [1, 1]
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_batch_system_that_forgets_ended_jobs(place: Place, local: EndState) -> None:
    """A quantum whose job is not known any more is lost, and nobody knows how."""
    forget = place.hand.look

    def look(batch_round: Round, ticket: object) -> object:
        return replace(forget(batch_round, ticket), jobs={})  # type: ignore[arg-type]

    place.hand.look = look  # type: ignore[method-assign, assignment]
    place.hand.runs = Jobs({(1, 0): [killed_in("calibrate", place.mark("killed"))]}, tries=1)
    assert place.run() == 0
    (lost,) = (event for event in read_events(place.books.journal) if isinstance(event, AttemptLost))
    assert lost.reason == "its batch job 0 (pair) ended: nobody knows how"
    assert local.differences(place.end()) == []


def test_a_round_that_does_nothing_is_not_submitted_again(place: Place) -> None:
    """Jobs that end before any quantum does are an error that says where to look, not another round."""
    place.hand.runs = lambda _round, _job: JobStatus(JobState.ENDED, "no such file", JobEnd.EXITED, 127)
    with pytest.raises(ModelError, match="none of the jobs of the last round has brought any quantum"):
        place.run()
    assert len(place.hand.submitted) == 1


# --- jobs that hand back --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_job_begins_nothing_at_the_end_of_its_time(place: Place, local: EndState) -> None:
    """It asks for another try, and that one does the rest."""
    place.config = replace(
        configured(), batch=replace(configured().batch, walltime_s=1000.0, said=frozenset({"walltime_s"}))
    )
    place.hand.runs = jobs = Jobs(margins={(1, 0): JobMargins(last_part=1.0)})
    assert place.run() == 0
    assert jobs.codes == [(1, 0, 75), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_job_told_to_end_gives_back_what_it_runs(place: Place, local: EndState) -> None:
    """SIGTERM, as before a time limit: the attempt is no failure, and the next try executes the quantum."""

    def told_to_end() -> None:
        job, mark = os.getpid(), place.mark("told")

        def act() -> None:
            if is_first(mark):
                os.kill(job, signal.SIGTERM)
                signal.pause()

        in_task(calibrate=act)()

    place.hand.runs = jobs = Jobs({(1, 0): [told_to_end]}, margins={(1, 0): JobMargins(grace_s=0.0)})
    assert place.run() == 0
    assert [code for _, job, code in jobs.codes if job == 0] == [75, 0]
    returned = [event for event in read_events(place.books.journal) if isinstance(event, AttemptReturned)]
    assert len(returned) == 1
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_memory_that_does_not_fit_is_asked_for_in_the_next_round(place: Place, local: EndState) -> None:
    """A quantum that runs out of memory in its job is handed back, and the next round's job has more."""
    calibrate = TaskSettings(memory_bytes=1, enforce_memory=True, memory_multiplier=float(4 << 30))
    place.config = configured(calibrate=calibrate)
    mark = place.mark("stuck")

    def stuck() -> None:
        if is_first(mark):
            signal.pause()

    place.hand.runs = Jobs({(1, 0): [in_task(calibrate=stuck)]})
    assert place.run() == 0
    first, second = map(Round.open, rounds(place.books))
    assert [first.jobs.request(0).memory_bytes, second.jobs.request(0).memory_bytes] == [1, 4 << 30]
    assert local.differences(place.end()) == []


# --- disks ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_job_without_room_for_its_journal(place: Place, local: EndState) -> None:
    """It breaks off; the next try goes on, and what the journal could not say is tried again."""

    def fill() -> None:
        # The journal of a job is by far the smallest file that grows: one line of it is too many.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        append = Journal.append
        n = 0

        def full(journal: Journal, event: object) -> None:
            nonlocal n
            n += 1
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            if n > 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, hard))
            try:
                append(journal, event)  # type: ignore[arg-type]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        Journal.append = full  # type: ignore[method-assign, assignment]

    place.hand.runs = jobs = Jobs({(1, 0): [fill]})
    assert place.run() == 0
    assert [code for _, job, code in jobs.codes if job == 0] == [2, 0]
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_a_driver_without_room_leaves_the_jobs_alone(
    place: Place, local: EndState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run breaks off with what is wrong; the jobs go on, and the next driver has all they did."""
    append = Journal.append

    def full(journal: Journal, event: object) -> None:
        if journal.path.parent == place.books.journal and place.hand.tries:
            raise JournalError("no space left on device")
        append(journal, event)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(JournalError, match="no space"):
            place.run()
    assert place.hand.cancelled == []
    place.work_off()
    monkeypatch.setattr("qgexec.books.holder.lives", lambda *_: False)  # it is gone
    assert place.resume() == 0
    assert len(place.hand.submitted) == 1
    assert place.attempts() == {"isr": [1, 1], "calibrate": [1, 1], "summary": [1], "final": [1]}
    assert local.differences(place.end()) == []


# --- the batch system -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_batch_system_that_refuses(place: Place) -> None:
    """Its own words are the error; nothing is left of the round, and the run can be gone on with."""
    place.hand.refuses = "no such account"
    with pytest.raises(ModelError, match="no such account"):
        place.run()
    assert place.hand.submitted == []
    assert place.report().submitted is None
    place.hand.refuses = ""
    assert place.resume() == 0


@pytest.mark.thorough
def test_files_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that the batch system could not write its files for is closed, and nothing was submitted."""

    def full(_round: Round) -> list[object]:
        raise ModelError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.hand, "write", full)
        with pytest.raises(ModelError, match="no space"):
            place.run()
    assert place.report().submitted is None
    assert place.resume() == 0
    assert len(place.hand.submitted) == 1


@pytest.mark.thorough
def test_a_batch_system_that_is_not_there(place: Place) -> None:
    """It is an error before anything is submitted."""
    place.hand.silent = True
    with pytest.raises(ModelError, match="does not answer"):
        place.run()
    assert place.hand.submitted == []


@pytest.mark.thorough
def test_a_batch_system_that_is_silent_for_a_while(
    place: Place, local: EndState, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver goes on with what the jobs' journals say, says so once, and asks again later."""
    look, asked = place.hand.look, []

    def hard_of_hearing(batch_round: Round, ticket: object) -> object:
        asked.append(1)
        if 2 <= len(asked) <= 5:
            raise ModelError("hand does not answer")
        return look(batch_round, ticket)  # type: ignore[arg-type]

    place.hand.look = hard_of_hearing  # type: ignore[method-assign, assignment]
    assert place.run() == 0
    assert [record.getMessage() for record in caplog.records if "unseen" in record.getMessage()] == [
        "The jobs go on unseen: hand does not answer"
    ]
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_the_last_words_of_a_job_are_waited_for(
    place: Place, local: EndState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job wrote just before its end, and is seen late, is no loss: its quanta are not run again."""
    place.config = replace(place.config, batch=replace(place.config.batch, visibility_s=50.0))
    hidden: list[Path] = []
    plain, read = Jobs(), JobJournals.read

    def run(batch_round: Round, job: int) -> JobStatus:
        status = plain(batch_round, job)
        if job == N_JOBS - 1:
            (path,) = batch_round.journal(job).glob("*.jsonl")
            hidden.append(path.rename(path.with_suffix(".later")))
        return status

    def read_in_vain(journals: JobJournals) -> list[Event]:
        found = read(journals)
        while hidden:  # it appears once somebody has looked in vain
            path = hidden.pop()
            path.rename(path.with_suffix(".jsonl"))
        return found

    place.hand.runs = run
    monkeypatch.setattr(JobJournals, "read", read_in_vain)
    assert place.run() == 0
    assert len(place.hand.submitted) == 1
    assert local.differences(place.end()) == []


@pytest.mark.thorough
def test_an_executor_of_the_clients_own(place: Place) -> None:
    """Jobs would not use it: it is refused, and there is no run directory then."""
    with pytest.raises(UsageError, match="hand cannot take a quantum_executor"):
        place.run(quantum_executor=object())
    assert not place.run_dir.exists()


@pytest.mark.thorough
def test_an_executor_that_is_imported(place: Place) -> None:
    """Each job makes one, and it is given every quantum; nothing is taken into the registry."""
    out = place.folder / "out"
    out.mkdir()
    named = ImportedExecutor("tests.kit.tasks.countingexecutor:CountingExecutor", {"folder": str(out)})
    assert place.run(quantum_executor=named) == 0
    assert len(list(out.iterdir())) == len(place.books.load_plan())
    assert place.report().all_succeeded
    assert not any(isinstance(event, OutputsIngested) for event in read_events(place.books.journal))
