"""Says what became of a run in upstream's own words: `lsst.pipe.base.quantum_reports.Report`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from lsst.pipe.base.graph import QgraphSummary, QgraphTaskSummary
from lsst.pipe.base.quantum_reports import ExceptionInfo, ExecutionStatus, QuantumReport, Report

from qgexec.scheduling.plan import Plan
from qgexec.scheduling.scheduler import State

__all__ = ["FailedQuantum", "make_upstream_report"]


class FailedQuantum(Protocol):
    """What upstream's report says of a failure."""

    @property
    def exception_type(self) -> str | None:
        """Fully qualified class name, where the quantum raised."""
        ...

    @property
    def message(self) -> str:
        """What was raised, or how the worker died."""
        ...

    @property
    def exit_code(self) -> int | None:
        """Exit status of the process; minus the signal's number."""
        ...

    @property
    def timed_out(self) -> bool:
        """Ended for its time limit."""
        ...


_STATUS = {
    State.SUCCEEDED: ExecutionStatus.SUCCESS,
    State.SKIPPED: ExecutionStatus.SUCCESS,
    State.FAILED: ExecutionStatus.FAILURE,
    State.BLOCKED: ExecutionStatus.SKIPPED,
}
"""Upstream calls a blocked quantum skipped, and reports nothing of one that was not reached."""


def make_upstream_report(
    plan: Plan, states: Iterable[State], failures: Mapping[int, FailedQuantum], header: Mapping[str, Any]
) -> Report:
    """Build upstream's report.

    Parameters
    ----------
    plan
        The quanta.
    states
        State of each quantum, in the plan's order.
    failures
        Failed quanta by index.
    header
        The header of the graph file.

    Returns
    -------
    report
        As `lsst.pipe.base.mp_graph_executor.MPGraphExecutor.getReport` gives it. The graph summary holds the
        numbers of quanta, not those of datasets, which only reading the whole graph would tell.
    """
    report = Report(qgraphSummary=_summarize(header))
    for node, state in zip(plan, states, strict=True):
        if (status := _STATUS.get(state)) is None:
            continue
        quantum_report = QuantumReport(
            dataId=dict(node.data_id),
            taskLabel=node.task_label,
            status=status,
            quantumId=node.quantum_id,
        )
        if state is State.FAILED:
            _add_failure(quantum_report, failures[node.index])
        report.quantaReports.append(quantum_report)
    report.status = _overall(report.quantaReports)
    return report


def _add_failure(quantum_report: QuantumReport, failure: FailedQuantum) -> None:
    if failure.timed_out:
        quantum_report.status = ExecutionStatus.TIMEOUT
    if failure.exception_type:
        quantum_report.exceptionInfo = ExceptionInfo(
            className=failure.exception_type, message=failure.message
        )
    quantum_report.exitCode = failure.exit_code


def _overall(reports: Iterable[QuantumReport]) -> ExecutionStatus:
    found = {report.status for report in reports}
    for status in (ExecutionStatus.FAILURE, ExecutionStatus.TIMEOUT):
        if status in found:
            return status
    return ExecutionStatus.SUCCESS


def _summarize(header: Mapping[str, Any]) -> QgraphSummary:
    return QgraphSummary(
        cmdLine=header["command"] or " ".join(sys.argv),
        creationUTC=str(header["timestamp"]),
        inputCollection=header["inputs"] or None,
        outputCollection=header["output"],
        outputRun=header["output_run"],
        qgraphTaskSummaries={
            label: QgraphTaskSummary(taskLabel=label, numQuanta=count)
            for label, count in header["n_task_quanta"].items()
        },
    )
