"""What BPS's reports and states say of a run: from `qgexec.reports.report` to ctrl_bps's own records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lsst.ctrl.bps import WmsJobReport, WmsRunReport, WmsStates
from lsst.ctrl.bps.wms_service import WmsSpecificInfo

from qgexec.bps.jobs import FINAL_JOB, is_cancelled
from qgexec.bps.submission import Submission
from qgexec.reports.report import RunReport, RunState

__all__ = ["report_of", "state_of", "words_on"]

_FAILURE = 1
"""Exit code of pipetask where a task has raised."""


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
            return WmsStates.DELETED if is_cancelled(report) else WmsStates.FAILED
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
            how = "cancelled" if is_cancelled(report) else "told to stop"
            return f"It was {how}. To go on: bps restart --id {path}"
        case RunState.PERHAPS_RUNNING:
            host = report.driver.host if report.driver is not None else "another host"
            return f"The run is executed on {host}; from here it cannot be seen whether it still is."
        case _:
            return ""


def report_of(
    submission: Submission,
    report: RunReport,
    jobs: list[WmsJobReport],
    *,
    batch_words: Sequence[str] = (),
    exit_codes: bool = False,
) -> WmsRunReport:
    """Return BPS's record of a run.

    Parameters
    ----------
    submission, report
        The run.
    jobs
        Its jobs; see `qgexec.bps.jobs.job_reports`.
    batch_words
        What a batch system says of its own jobs.
    exit_codes
        With the exit code of each failed quantum.
    """
    told = submission.attributes
    # Older versions of ctrl_bps have no place for it.
    site = {"site": told.get("runsite", "")} if "site" in WmsRunReport.__dataclass_fields__ else {}
    summary = _by_label([*(task.label for task in report.tasks), FINAL_JOB], jobs)
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
        run_summary=";".join(f"{label}:{sum(counts.values())}" for label, counts in summary.items()),
        state=state_of(report),
        jobs=jobs,
        total_number_jobs=len(jobs),
        job_state_counts={state: sum(row[state] for row in summary.values()) for state in WmsStates},
        job_summary=summary,
        exit_code_summary=_exit_codes(report, summary[FINAL_JOB]) if exit_codes else None,
        specific_info=_info(report, batch_words),
    )


def _by_label(labels: Iterable[str], jobs: Iterable[WmsJobReport]) -> dict[str, dict[WmsStates, int]]:
    """Return how many jobs are in each state, by label; of all states, as ctrl_bps's tables want it."""
    counts = {label: dict.fromkeys(WmsStates, 0) for label in labels}
    for job in jobs:
        counts[job.label][job.state] += 1
    return counts


def _exit_codes(report: RunReport, final_job: Mapping[WmsStates, int]) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {task.label: [] for task in report.tasks}
    for quantum in report.failures:
        codes[quantum.task_label].append(quantum.last.exit_code or _FAILURE)
    return codes | {FINAL_JOB: [_FAILURE] * final_job[WmsStates.FAILED]}


def _info(report: RunReport, batch_words: Sequence[str]) -> WmsSpecificInfo:
    """Return what BPS's tables have no place for; braces in texts are not ctrl_bps's to replace."""
    info = WmsSpecificInfo()
    lines: Mapping[str, str] = {
        "model": f"Execution model: {report.settings.model}",
        "state": f"State: {report.state.value}. {words_on(report)}".strip(),
        "ingested": f"Outputs in the registry: those of {report.total.ingested} quanta",
        "jobs": "; ".join(batch_words),
        "more": f"Causes of failures, logs: qgexec report {report.run_dir.path}",
    }
    for name, text in lines.items():
        if text:
            info.add_message(f"{{{name}}}", {name: text})
    return info
