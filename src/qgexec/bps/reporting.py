"""What BPS's reports and states say of a run: from `qgexec.reports.report` to ctrl_bps's own records.

A job of BPS's is a quantum here: a batch job with a failed quantum in it has not failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from lsst.ctrl.bps import WmsRunReport, WmsStates
from lsst.ctrl.bps.wms_service import WmsSpecificInfo

from qgexec.batch.rounds import last_round
from qgexec.batch.system import JobState
from qgexec.bps.submission import Submission
from qgexec.errors import QgexecError
from qgexec.models.batch import ask
from qgexec.reports.fold import TaskReport
from qgexec.reports.report import RunReport, RunState

__all__ = ["job_states", "report_of", "state_of", "words_on"]

_FAILURE = 1
"""Exit code of pipetask where a task has raised."""

_ACTIVE = {RunState.RUNNING, RunState.PERHAPS_RUNNING, RunState.SUBMITTED}


def state_of(report: RunReport) -> WmsStates:
    """Return the state of a run."""
    match report.state:
        case RunState.NOT_STARTED:
            return WmsStates.READY
        case RunState.RUNNING | RunState.PERHAPS_RUNNING:
            return WmsStates.RUNNING
        case RunState.SUBMITTED:
            has_begun = report.total.ended or report.total.running
            return WmsStates.RUNNING if has_begun else WmsStates.PENDING
        case RunState.SUCCEEDED:
            return WmsStates.SUCCEEDED
        case RunState.STOPPED:
            return WmsStates.DELETED if report.run_dir.cancel_file.exists() else WmsStates.FAILED
        case RunState.FAILED | RunState.DRIVER_GONE | RunState.BROKEN:
            return WmsStates.FAILED


def words_on(report: RunReport) -> str:
    """Return what a state of BPS's does not say; nothing where it says all."""
    path = report.run_dir.path.parent
    match report.state:
        case RunState.DRIVER_GONE:
            return f"The process that executed the run is gone. To go on: bps restart --id {path}"
        case RunState.BROKEN:
            return f"The run broke off; see {path}/qgexec.log. To go on: bps restart --id {path}"
        case RunState.STOPPED:
            is_cancelled = report.run_dir.cancel_file.exists()
            return (
                f"It was {'cancelled' if is_cancelled else 'told to stop'}. To go on: bps restart --id {path}"
            )
        case RunState.PERHAPS_RUNNING:
            host = report.driver.host if report.driver is not None else "another host"
            return f"The run is executed on {host}; from here it cannot be seen whether it still is."
        case _:
            return ""


def job_states(task: TaskReport, report: RunReport) -> dict[WmsStates, int]:
    """Return how many quanta are in each state."""
    is_active = report.state in _ACTIVE
    counts = dict.fromkeys(WmsStates, 0)
    counts[WmsStates.SUCCEEDED] = task.succeeded + task.skipped
    counts[WmsStates.FAILED] = task.failed
    counts[WmsStates.PRUNED] = task.blocked
    counts[WmsStates.RUNNING if is_active else WmsStates.UNKNOWN] = task.running
    is_cancelled = state_of(report) is WmsStates.DELETED
    counts[WmsStates.DELETED if is_cancelled else WmsStates.UNREADY] += task.not_run
    return counts


def report_of(submission: Submission, report: RunReport, *, exit_codes: bool = False) -> WmsRunReport:
    """Return BPS's record of a run.

    Parameters
    ----------
    submission, report
        The run.
    exit_codes
        With the exit code of each failed quantum.
    """
    told = submission.attributes
    # Older versions of ctrl_bps have no place for it.
    site = {"site": told.get("runsite", "")} if "site" in WmsRunReport.__dataclass_fields__ else {}
    return WmsRunReport(
        **site,
        wms_id=submission.identifier,
        global_wms_id=submission.identifier,
        path=str(submission.path),
        label=submission.name,
        run=submission.name,
        project=told.get("project", ""),
        campaign=told.get("campaign", ""),
        payload=told.get("payload", ""),
        operator=told.get("operator") or report.settings.user,
        run_summary=";".join(f"{task.label}:{task.n_quanta}" for task in report.tasks),
        state=state_of(report),
        total_number_jobs=report.total.n_quanta,
        job_state_counts=job_states(report.total, report),
        job_summary={task.label: job_states(task, report) for task in report.tasks},
        exit_code_summary=_exit_codes(report) if exit_codes else None,
        specific_info=_info(report),
    )


def _exit_codes(report: RunReport) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {task.label: [] for task in report.tasks}
    for quantum in report.failures:
        codes[quantum.task_label].append(quantum.last.exit_code or _FAILURE)
    return codes


def _info(report: RunReport) -> WmsSpecificInfo:
    """Return what BPS's tables have no place for; braces in texts are not ctrl_bps's to replace."""
    info = WmsSpecificInfo()
    lines: Mapping[str, str] = {
        "model": f"Execution model: {report.settings.model}",
        "state": f"State: {report.state.value}. {words_on(report)}".strip(),
        "ingested": f"Outputs in the registry: those of {report.total.ingested} quanta",
        "jobs": "; ".join(_batch_jobs(report)),
        "more": f"Causes of failures, logs: qgexec report {report.run_dir.path}",
    }
    for name, text in lines.items():
        if text:
            info.add_message(f"{{{name}}}", {name: text})
    return info


def _batch_jobs(report: RunReport) -> Iterator[str]:
    """Yield what a batch system says of the jobs of a run."""
    pending = last_round(report.run_dir) if report.submitted is not None else None
    if pending is None:
        return
    try:
        found = ask(pending)
    except QgexecError as error:
        yield f"Jobs: not known, {error.message}"
        return
    if found is None:
        yield "Jobs: none was submitted"
        return
    counts = Counter({state.value: found.counts.get(state, 0) for state in JobState})
    yield "Jobs: " + (", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none left")
    reasons = {status.reason for status in found.jobs.values() if status.state is JobState.HELD}
    yield from (f"held: {reason}" for reason in sorted(reasons))
