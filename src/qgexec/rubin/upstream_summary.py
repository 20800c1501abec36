"""Says what became of graphs in upstream's own words: the `Summary` that ``pipetask report`` writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lsst.pipe.base import ExceptionInfo, QuantumSuccessCaveats
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.pipeline_graph.visualization import (
    QuantumProvenanceGraphStatusAnnotator,
    QuantumProvenanceGraphStatusOptions,
    show,
)
from lsst.pipe.base.quantum_provenance_graph import (
    CursedDatasetSummary,
    DatasetTypeSummary,
    ExceptionInfoSummary,
    Summary,
    TaskSummary,
    UnsuccessfulQuantumSummary,
)

from qgexec.errors import UsageError
from qgexec.regularfile import read_regular
from qgexec.rubin.examine import Examination
from qgexec.rubin.graphoutputs import GraphOutputs
from qgexec.rubin.verdicts import DatasetFound, DatasetWord, LastWord, QuantumFound, RunWord

__all__ = ["aggregate", "show_graph", "summarize", "write_summary"]

_RUN_STATUS = {
    RunWord.SUCCEEDED: "SUCCESSFUL",
    RunWord.FAILED: "FAILED",
    RunWord.BLOCKED: "BLOCKED",
    RunWord.LOG_MISSING: "LOGS_MISSING",
    RunWord.UNKNOWN: "METADATA_MISSING",
}
"""Names in upstream's ``QuantumRunStatus``."""


def summarize(examination: Examination) -> Summary:
    """Return upstream's summary of what was found."""
    verdicts = examination.verdicts
    summary = Summary()
    for label, quanta in verdicts.by_label().items():
        summary.tasks[label] = _task(quanta)
    by_type: dict[str, list[DatasetFound]] = {}
    for (name, _), dataset in verdicts.datasets.items():
        by_type.setdefault(name, []).append(dataset)
    for name, datasets in by_type.items():
        summary.datasets[name] = _dataset_type(name, datasets, examination.graphs)
    return summary


def _task(quanta: Sequence[QuantumFound]) -> TaskSummary:
    task = TaskSummary(n_expected=len(quanta))
    for quantum in quanta:
        match quantum.word:
            case LastWord.SUCCEEDED:
                task.n_successful += 1
                if quantum.recovered:
                    task.recovered_quanta.append(quantum.data_id)
                _add_caveats(task, quantum)
            case LastWord.FAILED:
                task.failed_quanta.append(_unsuccessful(quantum))
            case LastWord.WONKY:
                task.wonky_quanta.append(_unsuccessful(quantum))
            case LastWord.BLOCKED:
                task.n_blocked += 1
            case LastWord.UNKNOWN:
                task.n_unknown += 1
    return task


def _add_caveats(task: TaskSummary, quantum: QuantumFound) -> None:
    if quantum.last is None:
        return
    name, run = quantum.last
    if not run.caveats:
        return
    caveats, data_id = QuantumSuccessCaveats(run.caveats), quantum.data_id
    task.caveats.setdefault(caveats.concise(), []).append(data_id)
    if caveats & QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR and run.exception is not None:
        exception = ExceptionInfo(
            type_name=run.exception["type"],
            message=run.exception["message"],
            metadata=run.exception["metadata"],
        )
        info = ExceptionInfoSummary(quantum_id=run.quantum_id, data_id=data_id, run=name, exception=exception)
        task.exceptions.setdefault(exception.type_name, []).append(info)


def _unsuccessful(quantum: QuantumFound) -> UnsuccessfulQuantumSummary:
    return UnsuccessfulQuantumSummary(
        data_id=quantum.data_id,
        runs={name: _RUN_STATUS[run.word] for name, run in quantum.runs.items()},
        messages=[*quantum.messages, *(error for run in quantum.runs.values() for error in run.errors)],
    )


def _dataset_type(
    name: str, datasets: Sequence[DatasetFound], graphs: Iterable[GraphOutputs]
) -> DatasetTypeSummary:
    graph = next(graph.pipeline_graph for graph in graphs if name in graph.pipeline_graph.dataset_types)
    dimensions = graph.dataset_types[name].dimensions
    keys = tuple(dimensions.data_coordinate_keys)
    summary = DatasetTypeSummary(producer=datasets[0].producer.label, n_expected=len(datasets))
    for dataset in datasets:
        match dataset.word:
            case DatasetWord.VISIBLE:
                summary.n_visible += 1
            case DatasetWord.SHADOWED:
                summary.n_shadowed += 1
            case DatasetWord.PREDICTED_ONLY:
                summary.n_predicted_only += 1
            case DatasetWord.UNSUCCESSFUL:
                data_id = dict(zip(keys, dataset.output.values, strict=True))
                summary.unsuccessful_datasets.append(data_id)
            case DatasetWord.CURSED:
                summary.cursed_datasets.append(_cursed(dataset, keys))
    return summary


def _cursed(dataset: DatasetFound, keys: Sequence[str]) -> CursedDatasetSummary:
    return CursedDatasetSummary(
        producer_data_id=dataset.producer.data_id,
        data_id=dict(zip(keys, dataset.output.required_values, strict=False)),
        runs_produced=dict(dataset.produced),
        run_visible=next(iter(dataset.visible), None),
        messages=dataset.messages,
    )


def aggregate(files: Sequence[Path]) -> Summary:
    """Return one summary of the summaries in several files, which are about different data IDs.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, or is no summary.
    """
    return Summary.aggregate([_read(file) for file in files])


def _read(file: Path) -> Summary:
    try:
        summary = Summary.model_validate_json(read_regular(file))
        if summary.model_fields_set >= {"tasks", "datasets"}:
            return summary
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="Check the path.") from error
    except ValueError:
        pass
    raise UsageError(
        f"{file} is not a summary of executed graphs",
        hint="Give files that --full-output-filename has written, of qgexec report or pipetask report.",
    )


def write_summary(summary: Summary, file: Path) -> None:
    """Write a summary as JSON, as ``pipetask report --full-output-filename`` does for several graphs.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot be written.
    """
    text = summary.model_dump_json(indent=2)
    try:
        if file.exists() and not file.is_file():
            file.write_text(text)  # a device or a pipe, which must not be replaced by a file
            return
        target = file.resolve()  # a link stays one
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            aside.write_text(text)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint="Name another file.") from error


def show_graph(pipeline_graph: PipelineGraph, summary: Summary) -> None:
    """Draw the pipeline as text on stdout, each task and dataset type with its counts."""
    show(
        pipeline_graph,
        sys.stdout,
        dataset_types=True,
        status_annotator=QuantumProvenanceGraphStatusAnnotator(summary),
        status_options=QuantumProvenanceGraphStatusOptions(
            display_percent=True, display_counts=True, abbreviate=True, visualize=True
        ),
    )
