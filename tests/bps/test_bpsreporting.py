"""What BPS is told of each state of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps import WmsJobReport, WmsStates
from lsst.ctrl.bps.bps_reports import compile_code_summary, compile_job_summary

from qgexec.batch.system import JobState
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.bps.jobs import FINAL_JOB, BatchJobs, job_reports
from qgexec.bps.reporting import report_of, state_of, words_on
from qgexec.bps.submission import Submission
from qgexec.events import EndReason, RunEnded, RunStarted
from qgexec.quantum import RunContext
from qgexec.reports.fold import TaskReport, total_of
from qgexec.reports.report import RunReport, RunState, read_run
from tests.kit.runs.handbooks import BEGAN, PLAN, HandBooks, started, succeeded


def _report(folder: Path, state: RunState, **counts: Any) -> RunReport:
    """Return the report of a run with one task of ten quanta."""
    tasks = (TaskReport("isr", 10, **counts),)
    context = RunContext(str(folder / "qgexec"), "repo", "graph.qg", "run", None, ())
    return RunReport(
        run_dir=RunDir(folder / "qgexec"),
        settings=RunSettings(context, "slurm", user="me"),
        state=state,
        stop_reason=None,
        driver=RunStarted(0.0, "far", 1, 0.0, "slurm", 10),
        last_event_at=0.0,
        wall_s=0.0,
        tasks=tasks,
        total=total_of(tasks),
        submitted=None,
        failures=(),
        retried=(),
        running=(),
    )


@pytest.mark.parametrize(
    ("state", "counts", "expected", "said"),
    [
        (RunState.NOT_STARTED, {"not_run": 10}, WmsStates.READY, ""),
        (RunState.RUNNING, {"running": 1}, WmsStates.RUNNING, ""),
        (RunState.PERHAPS_RUNNING, {"running": 1}, WmsStates.RUNNING, "executed on far"),
        (RunState.SUBMITTED, {"not_run": 10}, WmsStates.PENDING, ""),
        (RunState.SUBMITTED, {"running": 1, "not_run": 9}, WmsStates.RUNNING, ""),
        (RunState.SUBMITTED, {"succeeded": 1, "not_run": 9}, WmsStates.RUNNING, ""),
        (RunState.SUCCEEDED, {"succeeded": 9, "skipped": 1}, WmsStates.SUCCEEDED, ""),
        (RunState.FAILED, {"succeeded": 9, "failed": 1}, WmsStates.FAILED, ""),
        (RunState.STOPPED, {"not_run": 10}, WmsStates.FAILED, "told to stop"),
        (RunState.DRIVER_GONE, {"running": 1}, WmsStates.FAILED, "is gone. To go on: bps restart --id"),
        (RunState.BROKEN, {"not_run": 10}, WmsStates.FAILED, "broke off"),
    ],
)
def test_state(
    tmp_path: Path, state: RunState, counts: dict[str, int], expected: WmsStates, said: str
) -> None:
    """Each state has one of BPS's, and a sentence where that does not say what to do."""
    report = _report(tmp_path, state, **counts)
    assert state_of(report) is expected
    assert said in words_on(report)
    assert bool(said) == bool(words_on(report))


def test_cancelled(tmp_path: Path) -> None:
    """What was cancelled is deleted to BPS."""
    (tmp_path / "qgexec").mkdir()
    report = _report(tmp_path, RunState.STOPPED, succeeded=4, not_run=6)
    report.run_dir.ask_to_cancel()
    assert state_of(report) is WmsStates.DELETED
    assert "cancelled" in words_on(report)


# isr 1 to 5 are quanta 0 to 4; calibrate 1 follows isr 1; calibrate 2, and coadd after it, follow isr 2.
_SOME = [BEGAN, *started(0, 1, 2), succeeded(0)]


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run of which isr 1 has succeeded, isr 2 failed, and isr 3 runs."""
    books = HandBooks(tmp_path / "qgexec")
    books.write(*_SOME, books.failed(1))
    return books


def _jobs(books: HandBooks, batch_jobs: BatchJobs | None = None, **changes: Any) -> list[WmsJobReport]:
    report, plan, fold = read_run(books.run_dir.path, is_alive=lambda _: True)
    return job_reports(replace(report, **changes), plan, fold.scheduler, batch_jobs or BatchJobs())


def _states(jobs: list[WmsJobReport]) -> dict[str, WmsStates]:
    return {job.name: job.state for job in jobs}


class TestJobs:
    """The list of jobs: `WmsRunReport.jobs`."""

    def test_each_quantum_is_a_job(self, books: HandBooks) -> None:
        """Every quantum is there once, with label, name and state; the last one is the final job."""
        jobs = _jobs(books)
        assert [job.label for job in jobs] == [*(PLAN.label(n) for n in range(len(PLAN))), FINAL_JOB]
        assert len({job.name for job in jobs}) == len({job.wms_id for job in jobs}) == len(PLAN) + 1
        assert _states(jobs) == {
            "isr_1": WmsStates.SUCCEEDED,
            "isr_2": WmsStates.FAILED,
            "isr_3": WmsStates.RUNNING,
            "isr_4": WmsStates.READY,
            "isr_5": WmsStates.READY,
            "calibrate_1": WmsStates.READY,
            "calibrate_2": WmsStates.PRUNED,
            "coadd_0": WmsStates.PRUNED,
            FINAL_JOB: WmsStates.UNREADY,
        }

    def test_batch_jobs(self, books: HandBooks) -> None:
        """What a batch system holds is held, also what had begun; what it has queued is pending."""
        batch_jobs = BatchJobs({2: JobState.HELD, 3: JobState.HELD, 4: JobState.QUEUED}, JobState.HELD)
        found = _states(_jobs(books, batch_jobs, state=RunState.SUBMITTED))
        assert [found[f"isr_{n}"] for n in (1, 3, 4, 5)] == [
            WmsStates.SUCCEEDED,
            WmsStates.HELD,
            WmsStates.HELD,
            WmsStates.PENDING,
        ]
        assert found[FINAL_JOB] is WmsStates.HELD
        running = BatchJobs({2: JobState.RUNNING}, JobState.RUNNING)
        found = _states(_jobs(books, running, state=RunState.SUBMITTED))
        assert found["isr_3"] is found[FINAL_JOB] is WmsStates.RUNNING

    @pytest.mark.parametrize(
        ("state", "running", "waiting", "final"),
        [
            (RunState.STOPPED, WmsStates.UNKNOWN, WmsStates.READY, WmsStates.UNREADY),
            (RunState.DRIVER_GONE, WmsStates.UNKNOWN, WmsStates.READY, WmsStates.FAILED),
            (RunState.BROKEN, WmsStates.UNKNOWN, WmsStates.READY, WmsStates.FAILED),
            (RunState.PERHAPS_RUNNING, WmsStates.RUNNING, WmsStates.READY, WmsStates.UNREADY),
        ],
    )
    def test_without_a_driver(
        self, books: HandBooks, state: RunState, running: WmsStates, waiting: WmsStates, final: WmsStates
    ) -> None:
        """Whether something runs is not known where its driver is gone; what broke off is not closed."""
        found = _states(_jobs(books, state=state))
        assert (found["isr_3"], found["isr_4"], found[FINAL_JOB]) == (running, waiting, final)

    def test_cancelled(self, books: HandBooks) -> None:
        """What a cancelled run has not come to is deleted, the final job too; what it has done stays."""
        books.run_dir.ask_to_cancel()
        found = _states(_jobs(books, state=RunState.STOPPED))
        assert (found["isr_1"], found["isr_2"]) == (WmsStates.SUCCEEDED, WmsStates.FAILED)
        assert {found[name] for name in ("isr_3", "isr_4", FINAL_JOB)} == {WmsStates.DELETED}

    def test_all_succeeded(self, tmp_path: Path) -> None:
        """A run that succeeded has a list, too: all succeeded, the final job among them."""
        books = HandBooks(tmp_path / "qgexec")
        books.write(BEGAN)
        for index in range(len(PLAN)):
            books.write(*started(index), succeeded(index))
        books.write(RunEnded(BEGAN.at + 9, EndReason.COMPLETED))
        assert set(_states(_jobs(books)).values()) == {WmsStates.SUCCEEDED}

    def test_counts_are_those_of_the_list(self, books: HandBooks) -> None:
        """Summaries by label and in all, and what ctrl_bps makes of the list, say the same."""
        jobs = _jobs(books)
        report = read_run(books.run_dir.path, is_alive=lambda _: True)[0]
        submission = Submission(books.run_dir.path.parent, "name", (), ends=False)
        record = report_of(submission, report, jobs, exit_codes=True)
        assert record.jobs == jobs
        assert record.total_number_jobs == len(PLAN) + 1
        assert record.run_summary == "isr:5;calibrate:2;coadd:1;finalJob:1"
        assert all(set(row) == set(WmsStates) for row in record.job_summary.values())
        assert sum(record.job_state_counts.values()) == len(jobs)
        assert record.exit_code_summary == {"isr": [1], "calibrate": [], "coadd": [], FINAL_JOB: []}
        assert compile_code_summary(record) == []
        ours, record.job_summary = record.job_summary, None
        compile_job_summary(record)
        assert record.job_summary == ours


def test_record(tmp_path: Path) -> None:
    """The record has what the submission was told; braces in texts are left alone."""
    told = {"project": "dev", "campaign": "quick", "payload": "check", "operator": ""}
    folder = tmp_path / "{curly}"
    submission = Submission(folder, "u_me_check", ("submit",), ends=True, attributes=told)
    jobs = [WmsJobReport(str(n), f"isr_{n}", "isr", WmsStates.UNREADY) for n in range(10)]
    record = report_of(submission, _report(folder, RunState.SUBMITTED, not_run=10), jobs)
    assert (record.wms_id, record.path, record.run) == (str(folder), str(folder), "u_me_check")
    assert (record.project, record.campaign, record.payload, record.operator) == (
        "dev",
        "quick",
        "check",
        "me",
    )
    assert (record.run_summary, record.total_number_jobs) == ("isr:10;finalJob:0", 10)
    assert str(folder / "qgexec") in str(record.specific_info)
    assert record.exit_code_summary is None
