"""What both programs' reports say of a repository, in a form in which they can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_provenance_graph import QuantumProvenanceGraph, Summary

from qgexec.reports.repository import ExamineOptions, RepositoryReport, report_repository

__all__ = ["as_summary", "in_order", "ours", "theirs"]


def theirs(root: Path, graphs: Iterable[Path], **options: Any) -> Summary:
    """Return what ``pipetask report`` says."""
    with Butler.from_config(str(root)) as butler:
        found = QuantumProvenanceGraph(butler, [str(graph) for graph in graphs], **options)
        return found.to_summary(butler)


def ours(root: Path, graphs: Iterable[Path], **options: Any) -> RepositoryReport:
    """Return what ``qgexec report`` says."""
    return report_repository(str(root), [str(graph) for graph in graphs], ExamineOptions(**options))


def as_summary(report: RepositoryReport, folder: Path) -> Any:
    """Return our report in the format of theirs, as it is written to a file in this folder."""
    file = folder / "summary.json"
    report.write_summary(file)
    return json.loads(file.read_text())


def in_order(value: Any, but: Sequence[str] = ()) -> Any:
    """Return JSON without the order of its lists, which is a set's, and without sentences about oddities.

    Parameters
    ----------
    value
        A summary.
    but
        Keys to leave out wherever they are.
    """
    if isinstance(value, dict):
        for key in ("wonky_quanta", "cursed_datasets"):
            assert all(item.pop("messages") for item in value.get(key, ()))
        return {key: in_order(item, but) for key, item in value.items() if key not in but}
    if isinstance(value, list):
        return sorted((in_order(item, but) for item in value), key=lambda i: json.dumps(i, sort_keys=True))
    return value
