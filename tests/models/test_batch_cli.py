"""The command line over a batch system: what is said while jobs run, and how each command ends."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.system import JobEnd, JobState, JobStatus, RoundStatus
from qgexec.reports.report import RunState
from tests.kit.batch.jobforks import N_QUANTA, Jobs, Place, killed_in
from tests.kit.commands.qgexec import call, one_message
from tests.kit.crash.faults import Fault, in_task, raising

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def given(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The options of a run with three jobs."""
    monkeypatch.chdir(place.folder)
    site = place.folder / "site.yaml"
    site.write_text("cluster:\n  pair:\n    pipetasks: isr, calibrate\nvisibilityWait: 0.1\n")
    return [
        *("-b", place.repository.root, "-g", place.repository.graph, "--register-dataset-types"),
        *("--model", "hand", "--run-dir", "run", "--resources", site),
    ]


def test_run_waits(place: Place, given: list[object]) -> None:
    """It ends with the report, as any run."""
    result = call("run", *given)
    assert result.code == 0
    assert f"{N_QUANTA}/{N_QUANTA} succeeded" in result.err
    assert place.report().state is RunState.SUCCEEDED


@pytest.mark.thorough
def test_ctrl_c_leaves_the_jobs_alone(place: Place, given: list[object]) -> None:
    """It says so, with the commands that see to them; the exit code is that of an interrupt."""
    look = place.hand.look

    def interrupting(batch_round: Round, ticket: object) -> RoundStatus:
        os.kill(os.getpid(), signal.SIGINT)
        return look(batch_round, ticket)  # type: ignore[arg-type]

    place.hand.look = interrupting  # type: ignore[method-assign]
    place.hand.pause = True
    result = call("run", *given)
    assert result.code == 130
    assert "Interrupted: leaving; what was submitted goes on without this process." in result.err
    assert "waiting for the quanta" not in result.err
    assert f"  qgexec status {place.run_dir}\n  qgexec cancel {place.run_dir}" in result.err
    assert place.hand.cancelled == []
    assert place.report().state is RunState.SUBMITTED


def test_submit_and_what_is_seen_of_it(place: Place, given: list[object]) -> None:
    """The run directory is all that is printed; status and report need no driver; the closing job ends it."""
    place.hand.pause = True
    result = call("submit", *given)
    assert (result.code, result.out) == (0, f"{place.run_dir}\n")
    assert f"  qgexec status {place.run_dir}\n  qgexec cancel {place.run_dir}\n" in result.err
    shown = call("status", place.run_dir).out
    assert "submitted" in shown
    assert "Jobs           3 queued" in shown
    place.work_off([0])
    shown = call("status", place.run_dir).out
    assert "Jobs           2 queued, 1 ended" in shown
    assert place.report().total.succeeded == 4
    assert call("report", place.run_dir).code == 1
    place.work_off()
    assert call("collect", place.run_dir, "--round", 1).code == 0
    assert call("report", place.run_dir).code == 0
    assert "Jobs" not in call("status", place.run_dir).out


def test_a_batch_system_that_does_not_answer(place: Place, given: list[object]) -> None:
    """Status shows all else, and says what is not known."""
    place.hand.pause = True
    call("submit", *given)
    place.hand.silent = True
    result = call("status", place.run_dir)
    assert result.code == 0
    assert "Jobs           not known: hand does not answer" in result.out


def test_held_jobs(place: Place, given: list[object]) -> None:
    """Status names them with their reasons, in whatever words."""
    place.hand.pause = True
    call("submit", *given)
    held = JobStatus(JobState.HELD, "no \x1b[31mscratch\nspace")
    place.hand.look = lambda *_: RoundStatus(False, {1: held}, {JobState.HELD: 1})  # type: ignore[method-assign]
    shown = call("status", place.run_dir).out
    assert "Jobs           1 held" in shown
    assert "Held           job 1 (summary): no" in shown
    assert "\x1b" not in shown


@pytest.mark.thorough
def test_a_held_job_is_told_of_while_one_waits(
    place: Place, given: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """In the batch system's words, of which a terminal obeys none."""
    look, held = place.hand.look, JobStatus(JobState.HELD, "no \x1b[31mscratch")

    def holding(batch_round: Round, ticket: Ticket) -> RoundStatus:
        found = look(batch_round, ticket)
        return replace(found, jobs={**found.jobs, 2: held}) if not found.is_over else found

    place.hand.look = holding  # type: ignore[method-assign]
    assert call("run", *given).code == 0
    assert "Job 2 (final) is held: no ?[31mscratch" in caplog.text


@pytest.mark.thorough
def test_a_closing_job_that_is_gone(place: Place, given: list[object]) -> None:
    """Status says how jobs have ended, and how to go on where none is left and the books are not closed."""
    place.hand.runs = lambda _round, _job: JobStatus(JobState.ENDED, "exit status 78", JobEnd.EXITED, 78)
    place.hand.pause = True
    call("submit", *given)
    assert "qgexec resume" not in call("status", place.run_dir).out
    place.work_off()
    shown = call("status", place.run_dir).out
    assert (
        f"Jobs           3 ended\n               3 with exit status 78: see {place.pending().logs}\n" in shown
    )
    assert "Next           qgexec resume: the closing job is gone" in shown


def test_a_refusal(place: Place, given: list[object]) -> None:
    """One message with the batch system's own words, exit code 2, nothing submitted."""
    place.hand.refuses = "no such account"
    result = call("submit", *given)
    assert result.code == 2
    assert "hand refuses the jobs: no such account" in result.err
    assert "Traceback" not in result.err
    assert f"To go on:\n  qgexec resume {place.run_dir} --resources {place.folder}/site.yaml\n" in result.err
    assert place.hand.submitted == []


def test_a_model_that_needs_a_driver(place: Place, given: list[object]) -> None:
    """It cannot be submitted; nothing is left of the attempt."""
    given[given.index("hand")] = "inprocess"
    one_message(call("submit", *given), "inprocess needs a driver as long as it runs", "qgexec run")
    assert not place.run_dir.exists()


def test_no_batch_system(place: Place, given: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is named, or what is named submits nothing, it is said before a graph is built."""
    monkeypatch.setattr("qgexec.cli.run.graph_of", lambda *_, **__: pytest.fail("a graph is built"))
    at = given.index("--model")
    one_message(call("submit", *given[:at], *given[at + 2 :]), "No batch system was named", "--model slurm")
    given[at + 1] = "pool"
    for command in (["submit"], ["submit", "--dry-run"], ["run", "--dry-run"]):
        one_message(call(*command, *given), "pool needs a driver as long as it runs: it submits nothing")


def test_a_dry_run_names_what_is_ignored(place: Place, given: list[object]) -> None:
    """It warns of all that the run itself would warn of."""
    (place.folder / "site.yaml").write_text("chunksize: 5\ncluster: {a: {pipetasks: isr, queue: q}}\n")
    shown = call("submit", *given, "--dry-run")
    assert shown.code == 0
    told = " ".join(shown.out.split())
    assert "is it chunkSize?), queue (" in told
    assert place.hand.submitted == []


@pytest.mark.thorough
def test_cancel_without_an_answer(place: Place, given: list[object]) -> None:
    """It says that the run is told to end all the same; jobs that begin then execute nothing."""
    place.hand.pause = True
    call("submit", *given)
    place.hand.silent = True
    refused = call("cancel", place.run_dir)
    assert refused.code == 2
    assert "jobs that begin now execute nothing" in refused.err
    place.hand.silent = place.hand.pause = False
    place.work_off()
    assert place.report().total.done == 0


def test_cancel(place: Place, given: list[object]) -> None:
    """It says that nothing is left, and what was done; resume goes on."""
    place.hand.pause = True
    call("submit", *given)
    place.work_off([0])
    result = call("cancel", place.run_dir)
    assert result.code == 0
    assert "Nothing of the run is left in any queue." in result.err
    place.hand.pause = False
    assert call("resume", place.run_dir).code == 0
    assert place.report().all_succeeded


@pytest.mark.thorough
@pytest.mark.parametrize("words", [("resume", "--no-wait"), ("submit",)])
def test_the_rest_is_submitted(place: Place, given: list[object], words: tuple[str, ...]) -> None:
    """What is left is handed over again, and the jobs do the rest; what needs a driver is refused."""
    place.hand.pause = True
    call("submit", *given)
    call("cancel", place.run_dir)
    refused = call(*words, place.run_dir, "--model", "inprocess")
    assert refused.code == 2
    assert "inprocess needs a driver as long as it runs" in refused.err
    result = call(*words, place.run_dir)
    assert (result.code, result.out) == (0, f"{place.run_dir}\n")
    assert "The run goes on without this process." in result.err
    assert place.report().state is RunState.SUBMITTED
    assert len(place.hand.submitted) == 2
    place.work_off()
    assert place.report().all_succeeded


@pytest.mark.thorough
def test_a_run_is_left_as_it_is_where_no_batch_system_answers(place: Place, given: list[object]) -> None:
    """It is asked first: the run keeps its model, and no driver has had it."""
    given[given.index("hand")] = "inprocess"
    assert call("run", *given, "--only", "isr").code == 0
    before = {path: path.read_bytes() for path in place.run_dir.rglob("*") if path.is_file()}
    place.hand.silent = True
    one_message(call("submit", place.run_dir, "--model", "hand"), "hand does not answer")
    assert {path: path.read_bytes() for path in place.run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.thorough
def test_what_a_run_knows_is_not_told_again(place: Place, given: list[object]) -> None:
    """An option of new runs beside a run directory is refused; so is neither of both."""
    place.hand.pause = True
    call("submit", *given)
    one_message(call("submit", place.run_dir, *given[:2]), "--butler-config means nothing for a run that")
    one_message(call("submit"), "There is no repository", "a run directory")


@pytest.mark.thorough
def test_a_closing_job_whose_run_has_failures(place: Place, given: list[object]) -> None:
    """Its exit code says so."""
    fault: Fault = in_task(isr=raising(ValueError("no stars")))
    place.hand.runs = Jobs({(1, 0): [fault]})
    place.hand.pause = True
    call("submit", *given)
    place.work_off()
    assert call("collect", place.run_dir, "--round", 1).code == 1


@pytest.mark.thorough
def test_a_job_that_is_none(place: Place, given: list[object]) -> None:
    """A number, or a round, that is not there is named."""
    place.hand.pause = True
    call("submit", *given)
    one_message(call("worker", place.run_dir, "--job", 3), "there is no job 3", "from 0 to 2")
    one_message(call("worker", place.run_dir, "--round", 2, "--job", 0), "0002")
    one_message(call("collect", place.run_dir, "--round", 7), "0007")


@pytest.mark.thorough
def test_the_log_of_what_a_job_lost(place: Place, given: list[object], tmp_path: Path) -> None:
    """There is one, as far as it was written: while nobody watches, and when the loss is in the books."""
    place.hand.pause = True
    call("submit", *given)
    place.hand.runs = Jobs({(1, 0): [killed_in("isr", tmp_path / "killed")]}, tries=1)
    place.work_off([0])
    for _ in range(2):
        result = call("log", place.run_dir, "0", "--attempt", 1)
        assert (result.code, "isr" in result.out) == (0, True)
        place.hand.pause = False
        assert place.resume() == 0
