"""Puts reports from repositories about different data IDs together, from upstream's summaries of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qgexec.reports.fold import TaskReport, caveat_names, total_of
from qgexec.reports.repository import DatasetTypeReport, RepositoryReport, Trouble
from qgexec.rubin.upstream_summary import aggregate, write_summary

if TYPE_CHECKING:
    from lsst.pipe.base.quantum_provenance_graph import (
        DatasetTypeSummary,
        TaskSummary,
        UnsuccessfulQuantumSummary,
    )

__all__ = ["aggregate_reports"]

_CODES: Mapping[str, int] = {"+": 1, "*": 3, "N": 4, "A": 12, "U": 20, "D": 36, "P": 64}
"""Flags that letters of upstream's codes stand for; rare combinations have the code of one of their flags."""


def aggregate_reports(files: Sequence[Path]) -> RepositoryReport:
    """Read reports that ``--full-output-filename`` has written, qgexec's or pipetask's, as one.

    Parameters
    ----------
    files
        The files; no data ID is in more than one.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, or is no such report.
    """
    summary = aggregate(files)
    tasks = tuple(_task(label, task) for label, task in summary.tasks.items())
    return RepositoryReport(
        repository=None,
        graphs=(),
        options=None,
        tasks=tasks,
        total=total_of(tasks),
        datasets=tuple(_dataset_type(name, each) for name, each in summary.datasets.items()),
        failures=tuple(
            _trouble(label, quantum)
            for label, task in summary.tasks.items()
            for quantum in task.failed_quanta
        ),
        wonky=tuple(
            _trouble(label, quantum) for label, task in summary.tasks.items() for quantum in task.wonky_quanta
        ),
        partial=tuple(each for label, task in summary.tasks.items() for each in _partial(label, task)),
        cursed=tuple(each for name, found in summary.datasets.items() for each in _cursed(name, found)),
        write_summary=lambda file: write_summary(summary, file),
        show_graph=lambda: None,
    )


def _task(label: str, task: TaskSummary) -> TaskReport:
    caveats: Counter[str] = Counter()
    for code, data_ids in task.caveats.items():
        flags = 0
        for letter in code:
            flags |= _CODES.get(letter, 0)
        caveats.update(dict.fromkeys(caveat_names(flags), len(data_ids)))
    return TaskReport(
        label=label,
        n_quanta=task.n_expected,
        succeeded=task.n_successful,
        failed=task.n_failed,
        blocked=task.n_blocked,
        unknown=task.n_unknown,
        wonky=task.n_wonky,
        recovered=len(task.recovered_quanta),
        caveats=dict(caveats),
    )


def _dataset_type(name: str, found: DatasetTypeSummary) -> DatasetTypeReport:
    return DatasetTypeReport(
        dataset_type=name,
        producer=found.producer,
        n_expected=found.n_expected,
        visible=found.n_visible,
        shadowed=found.n_shadowed,
        predicted_only=found.n_predicted_only,
        unsuccessful=found.n_unsuccessful,
        cursed=found.n_cursed,
    )


def _trouble(label: str, quantum: UnsuccessfulQuantumSummary) -> Trouble:
    return Trouble(
        name=label,
        data_id=quantum.data_id,
        runs={run: _WORDS.get(status, status.lower()) for run, status in quantum.runs.items()},
        message=quantum.messages[-1] if quantum.messages else "",
        messages=tuple(quantum.messages),
    )


_WORDS = {"SUCCESSFUL": "succeeded", "LOGS_MISSING": "log missing", "METADATA_MISSING": "unknown"}
"""Upstream's names of states, as values of `qgexec.rubin.verdicts.RunWord`; the others are the same."""


def _partial(label: str, task: TaskSummary) -> list[Trouble]:
    return [
        Trouble(
            label,
            each.data_id,
            str(each.quantum_id),
            each.run,
            exception_type=each.exception.type_name,
            message=each.exception.message,
        )
        for exceptions in task.exceptions.values()
        for each in exceptions
    ]


def _cursed(name: str, found: DatasetTypeSummary) -> list[Trouble]:
    return [
        Trouble(
            name,
            each.data_id,
            output_run=each.run_visible,
            message=each.messages[-1] if each.messages else "",
            messages=tuple(each.messages),
        )
        for each in found.cursed_datasets
    ]
