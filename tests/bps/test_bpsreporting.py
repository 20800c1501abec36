"""What BPS is told of each state of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps import WmsStates

from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.bps.reporting import job_states, report_of, state_of, words_on
from qgexec.bps.submission import Submission
from qgexec.events import RunStarted
from qgexec.quantum import RunContext
from qgexec.reports.fold import TaskReport, total_of
from qgexec.reports.report import RunReport, RunState


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
    """What was cancelled is deleted to BPS, and so is what has not run."""
    (tmp_path / "qgexec").mkdir()
    report = _report(tmp_path, RunState.STOPPED, succeeded=4, not_run=6)
    report.run_dir.ask_to_cancel()
    assert state_of(report) is WmsStates.DELETED
    assert "cancelled" in words_on(report)
    counts = job_states(report.total, report)
    assert {state: n for state, n in counts.items() if n} == {WmsStates.SUCCEEDED: 4, WmsStates.DELETED: 6}


def test_every_quantum_is_counted_once(tmp_path: Path) -> None:
    """The counts of all states together are the quanta; all of BPS's states have one."""
    numbers = {"succeeded": 1, "skipped": 2, "failed": 1, "blocked": 3, "running": 2, "not_run": 1}
    for state in RunState:
        counts = job_states(_report(tmp_path, state, **numbers).total, _report(tmp_path, state))
        assert set(counts) == set(WmsStates)
        assert sum(counts.values()) == 10
        assert (counts[WmsStates.SUCCEEDED], counts[WmsStates.PRUNED]) == (3, 3)
        is_alive = state in (RunState.RUNNING, RunState.PERHAPS_RUNNING, RunState.SUBMITTED)
        assert counts[WmsStates.RUNNING] == (2 if is_alive else 0)


def test_record(tmp_path: Path) -> None:
    """The record has what the submission was told; braces in texts are left alone."""
    told = {"project": "dev", "campaign": "quick", "payload": "check", "operator": ""}
    folder = tmp_path / "{curly}"
    submission = Submission(folder, "u_me_check", ("submit",), ends=True, attributes=told)
    record = report_of(submission, _report(folder, RunState.SUBMITTED, not_run=10))
    assert (record.wms_id, record.path, record.run) == (str(folder), str(folder), "u_me_check")
    assert (record.project, record.campaign, record.payload, record.operator) == (
        "dev",
        "quick",
        "check",
        "me",
    )
    assert (record.run_summary, record.total_number_jobs) == ("isr:10", 10)
    assert str(folder / "qgexec") in str(record.specific_info)
    assert record.exit_code_summary is None
