"""Says what became of a run in upstream's own words: `lsst.pipe.base.quantum_reports.Report`."""

from __future__ import annotations

import json
import re
import signal
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lsst.pipe.base import QuantumGraph
from lsst.pipe.base.graph import QgraphSummary, QgraphTaskSummary
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import HeaderModel, PredictedQuantumGraph, PredictedQuantumGraphComponents
from lsst.pipe.base.quantum_reports import ExceptionInfo, ExecutionStatus, QuantumReport, Report
from lsst.resources import ResourcePath
from lsst.utils.introspection import get_full_type_name

from qgexec.rubin.graphfile import AnyGraph, open_graph, read_old
from qgexec.rubin.graphwrite import BuiltGraph
from qgexec.rubin.qgfile import QgFile
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import INVALID_QUANTUM_EXIT_CODE, Cause
from qgexec.scheduling.states import State

__all__ = ["FailedQuantum", "make_upstream_report", "report_nothing"]


@dataclass(frozen=True, slots=True)
class FailedQuantum:
    """What upstream's report says of a failure."""

    cause: Cause
    """Why it failed."""
    exception_type: str | None
    """Fully qualified class name, where the quantum raised."""
    message: str
    """What was raised, in full, or how the worker died."""
    exit_code: int | None
    """What the exception asks for; or the exit status of the process, minus the signal's number."""


_STATUS = {
    State.SUCCEEDED: ExecutionStatus.SUCCESS,
    State.SKIPPED: ExecutionStatus.SUCCESS,
    State.FAILED: ExecutionStatus.FAILURE,
    State.BLOCKED: ExecutionStatus.SKIPPED,
}
"""Upstream calls a blocked quantum skipped, and reports nothing of one that was not reached."""

_SYS_EXIT = re.compile(r"called sys\.exit\((-?\d+)\)")
_SYSTEM_EXIT = "SystemExit"
_EXIT_FAILURE = 1
"""Status of a Python process that an exception ends."""


def make_upstream_report(
    plan: Plan,
    graph_file: Path,
    states: Iterable[State],
    failures: Mapping[int, FailedQuantum],
    *,
    in_process: bool,
    error: Exception | None = None,
) -> Report:
    """Build upstream's report.

    Parameters
    ----------
    plan
        The quanta.
    graph_file
        The graph that they are of (``.qg``).
    states
        State of each quantum, in the plan's order.
    failures
        Failed quanta by index.
    in_process
        Quanta ran in the process of the driver: there are no exit codes then, as with upstream's executor.
    error
        What the run raised.

    Returns
    -------
    report
        As `lsst.pipe.base.mp_graph_executor.MPGraphExecutor.getReport` gives it, but that a
        quantum whose outputs were found done is among those that succeeded. About 0.1 ms for each quantum.
    """
    with open_graph(graph_file, imports=False) as reader:
        header, pipeline_graph = reader.components.header, reader.components.pipeline_graph
    report = Report(qgraphSummary=_summarize(header, _count_datasets(graph_file, plan, pipeline_graph)))
    n_required = {label: len(node.dimensions.required) for label, node in pipeline_graph.tasks.items()}
    for node, state in zip(plan, states, strict=True):
        if (status := _STATUS.get(state)) is None:
            continue
        quantum_report = QuantumReport(
            dataId=dict(list(node.data_id.items())[: n_required[node.task_label]]),
            taskLabel=node.task_label,
            status=status,
            exitCode=0 if status is ExecutionStatus.SUCCESS else None,
            quantumId=node.quantum_id,
        )
        if state is State.FAILED:
            _add_failure(quantum_report, failures[node.index])
        if in_process:
            quantum_report.exitCode = None
        report.quantaReports.append(quantum_report)
    report.status = _overall(report.quantaReports)
    if error is not None:
        report.exceptionInfo = _exception_info(error)
        if report.status is ExecutionStatus.SUCCESS:
            report.status = ExecutionStatus.FAILURE
    return report


def report_nothing(graph: AnyGraph) -> Report:
    """Return upstream's report of a graph that has no quanta."""
    return Report(qgraphSummary=_summarize(_header_of(graph), {}))


def _header_of(graph: AnyGraph) -> HeaderModel:
    if isinstance(graph, BuiltGraph):
        return graph.take().header
    if isinstance(graph, PredictedQuantumGraph):
        return graph.header
    if isinstance(graph, QuantumGraph):
        return PredictedQuantumGraphComponents.from_old_quantum_graph(graph).header
    uri = ResourcePath(graph, forceDirectory=False)
    if uri.getExtension() == ".qgraph":
        return read_old(uri).header
    with uri.as_local() as local, QgFile(Path(local.ospath)) as file:
        return HeaderModel.model_validate(file.header)


def _add_failure(quantum_report: QuantumReport, failure: FailedQuantum) -> None:
    if failure.cause is Cause.TIMED_OUT:
        quantum_report.status = ExecutionStatus.TIMEOUT
    if failure.exception_type:
        quantum_report.exceptionInfo = ExceptionInfo(
            className=failure.exception_type, message=failure.message
        )
    quantum_report.exitCode = _exit_code(failure)


def _exit_code(failure: FailedQuantum) -> int:
    """Return the exit code that upstream's process for this one quantum would have had."""
    code = failure.exit_code
    match failure.cause:
        case Cause.RAISED:
            if code == INVALID_QUANTUM_EXIT_CODE:
                return code
            if failure.exception_type == _SYSTEM_EXIT and (said := _SYS_EXIT.fullmatch(failure.message)):
                return int(said[1]) % 256 or _EXIT_FAILURE
            return _EXIT_FAILURE
        case Cause.TIMED_OUT:
            return -signal.SIGTERM if code is None else code
        case Cause.OUT_OF_MEMORY:
            return -signal.SIGKILL
        case Cause.EXITED | Cause.SIGNALLED | Cause.LOST:
            return -1 if code is None else code or _EXIT_FAILURE


def _exception_info(error: Exception) -> ExceptionInfo:
    """Return the error in upstream's words: what is one of its executor's errors has the name of that."""
    name = get_full_type_name(error)
    for kind in (MPTimeoutError, MPGraphExecutorError):
        if isinstance(error, kind):
            name = get_full_type_name(kind)
            break
    return ExceptionInfo(className=name, message=str(error))


def _overall(reports: Iterable[QuantumReport]) -> ExecutionStatus:
    found = {report.status for report in reports}
    for status in (ExecutionStatus.FAILURE, ExecutionStatus.TIMEOUT):
        if status in found:
            return status
    return ExecutionStatus.SUCCESS


def _summarize(header: HeaderModel, tasks: dict[str, QgraphTaskSummary]) -> QgraphSummary:
    return QgraphSummary(
        cmdLine=header.command or None,
        creationUTC=None if header.timestamp is None else str(header.timestamp),
        inputCollection=header.inputs or None,
        outputCollection=header.output,
        outputRun=header.output_run,
        qgraphTaskSummaries=tasks,
    )


def _count_datasets(
    graph_file: Path, plan: Plan, pipeline_graph: PipelineGraph
) -> dict[str, QgraphTaskSummary]:
    """Count quanta, and inputs and outputs by parent dataset type, of each task."""
    counts = plan.count_by_label()
    tasks = {label: QgraphTaskSummary(taskLabel=label, numQuanta=n) for label, n in counts.items()}
    with QgFile(graph_file) as file:
        for text in file.quanta():
            quantum = json.loads(text)
            try:
                # Init-quanta have descriptions too, and are not in the plan.
                label = plan.label(plan.index_of(uuid.UUID(quantum["quantum_id"])))
            except LookupError:
                continue
            task, node = tasks[label], pipeline_graph.tasks[label]
            for connection, datasets in quantum["inputs"].items():
                task.numInputs[node.get_input_edge(connection).parent_dataset_type_name] += len(datasets)
            for connection, datasets in quantum["outputs"].items():
                task.numOutputs[node.get_output_edge(connection).parent_dataset_type_name] += len(datasets)
    return tasks
