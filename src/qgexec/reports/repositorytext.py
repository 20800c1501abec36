"""How a report from a repository is told in plain text; needs neither the repository nor the stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from qgexec.config.units import moment_text
from qgexec.plaintext import printable
from qgexec.reports.table import Column, fit, render_parts
from qgexec.reports.tasktables import caveat_lines, task_columns, use_lines

if TYPE_CHECKING:
    from qgexec.reports.repository import FailureCause, RepositoryReport, Trouble

__all__ = ["format_repository"]

_SHOWN = 10
"""Quanta or datasets that are named of one trouble."""

_SHOWN_CAUSES = 20


def format_repository(report: RepositoryReport, *, width: int = 100, brief: bool = False) -> str:
    """Return a report as plain text.

    Parameters
    ----------
    report
        What to say.
    width
        Of the terminal, characters; only paths may be wider.
    brief
        Counts alone, and what somebody should look at: wonky quanta, cursed datasets.
    """
    lines = list(_head(report))
    if len(report.graphs) > 1:
        lines += [*render_parts(_graph_columns(report), width), ""]
    lines += list(_nothing_lines(report, width))
    lines += [*render_parts(task_columns(report.tasks, report.total), width)]
    lines += caveat_lines(report.tasks, width)
    if report.knows_use and not brief:
        lines += use_lines(report.tasks, width)
    lines += ["", *render_parts(_dataset_columns(report), width)]
    if not brief:
        lines += _cause_lines(report.causes(), width)
        lines += _trouble_lines("Wrote part of its outputs", report.partial, width)
    lines += _trouble_lines("Wonky quanta", report.wonky, width)
    lines += _trouble_lines("Cursed datasets", report.cursed, width)
    return "\n".join(lines)


def _head(report: RepositoryReport) -> Iterator[str]:
    if report.repository is None:
        return
    yield f"Repository     {printable(report.repository)}"
    for graph in report.graphs:
        yield f"Graph {graph.number:<8} {printable(graph.name)}"
        yield f"  RUN          {printable(graph.output_run)}"
        yield f"  built        {moment_text(graph.built_at)}"
    yield ""


def _nothing_lines(report: RepositoryReport, width: int) -> Iterator[str]:
    """Point at graphs that have left nothing, which may be for another reason than that nothing ran."""
    for graph in report.graphs:
        if not graph.n_datasets:
            yield from wrap(
                f"The registry has no outputs of graph {graph.number} in its RUN. Nothing has run, nobody "
                "has taken the outputs in yet, or it is another repository.",
                max(20, width),
            )
            yield ""


def _graph_columns(report: RepositoryReport) -> list[Column]:
    return [
        Column("graph", [str(graph.number) for graph in report.graphs], is_text=True),
        Column("quanta", [str(graph.n_quanta) for graph in report.graphs]),
        Column("succeeded", [str(graph.succeeded) for graph in report.graphs]),
        Column("recovered", [str(graph.recovered) for graph in report.graphs]),
    ]


def _dataset_columns(report: RepositoryReport) -> list[Column]:
    rows = report.datasets
    counts = [
        Column(name.replace("_", " "), [str(getattr(row, name)) for row in rows])
        for name in ("visible", "shadowed", "predicted_only", "unsuccessful", "cursed")
        if name == "visible" or any(getattr(row, name) for row in rows)
    ]
    return [
        Column("dataset type", [printable(row.dataset_type) for row in rows], is_text=True),
        Column("expected", [str(row.n_expected) for row in rows]),
        *counts,
    ]


def _cause_lines(causes: Sequence[FailureCause], width: int) -> Iterator[str]:
    if not causes:
        return
    n_failed = sum(len(cause.quanta) for cause in causes)
    yield from ("", fit(f"Failed quanta: {n_failed}; causes: {len(causes)}", width))
    for number, cause in enumerate(causes[:_SHOWN_CAUSES], start=1):
        kind = cause.exception_type or "no exception is recorded"
        title = printable(f"{number}. {len(cause.quanta)} x {cause.task_label}: {kind}")
        yield from ("", fit(title, width))
        yield from _wrapped(cause.quanta[0].message, width)
        yield from _names(cause.quanta, width)
    if len(causes) > _SHOWN_CAUSES:
        yield from ("", f"And {len(causes) - _SHOWN_CAUSES} more causes; --json lists all")


def _trouble_lines(title: str, troubles: Sequence[Trouble], width: int) -> Iterator[str]:
    if not troubles:
        return
    yield from ("", f"{title}: {len(troubles)}", "")
    for trouble in troubles[:_SHOWN]:
        yield from _names([trouble], width)
        said = f"{trouble.exception_type}: {trouble.message}" if trouble.exception_type else trouble.message
        yield from _wrapped(said, width, indent=5)
    if len(troubles) > _SHOWN:
        yield f"   and {len(troubles) - _SHOWN} more; --json lists all"


def _names(troubles: Sequence[Trouble], width: int) -> Iterator[str]:
    for trouble in troubles[:_SHOWN]:
        place = f", in {trouble.output_run}" if trouble.output_run else ""
        yield from wrap(
            printable(f"{trouble}{place}"),
            max(20, width),
            initial_indent="   ",
            subsequent_indent=" " * 5,
            break_on_hyphens=False,
        )
    if len(troubles) > _SHOWN:
        yield f"   and {len(troubles) - _SHOWN} more; --json lists all"


def _wrapped(text: str, width: int, *, indent: int = 3) -> Iterator[str]:
    space = " " * indent
    for line in printable(text).splitlines():
        yield from wrap(line, max(20, width), initial_indent=space, subsequent_indent=space)
