"""How a report of several runs is told in plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qgexec.config.units import duration_text
from qgexec.plaintext import printable
from qgexec.reports.several import SeveralRuns, Share
from qgexec.reports.table import Column, render_parts
from qgexec.reports.tasktables import detail_lines, task_columns
from qgexec.reports.text import trouble_lines

__all__ = ["format_several"]


def format_several(runs: SeveralRuns, *, width: int = 100, brief: bool = False) -> str:
    """Return a report as plain text.

    Parameters
    ----------
    runs
        What to say.
    width
        Of the terminal, characters; only tracebacks and paths may be wider.
    brief
        Counts alone.
    """
    total = runs.total
    useful, wasted = duration_text(total.useful_cpu_s), duration_text(total.wasted_cpu_s)
    lines = [
        *(f"Run {share.number:<10} {share.report.run_dir.path}" for share in runs.shares),
        f"CPU time       {useful} useful, {wasted} wasted",
        "",
        *render_parts(_run_columns(runs.shares), width),
    ]
    if strangers := [str(share.number) for share in runs.shares[1:] if not share.n_known]:
        lines += [
            "",
            f"No quantum of run {' or '.join(strangers)} is in an earlier one: is it another reduction?",
        ]
    lines += ["", "What holds in the end", "", *render_parts(task_columns(runs.tasks, total), width)]
    if not brief:
        lines += detail_lines(runs.tasks, width)
        lines += [line for share in runs.shares for line in _share_lines(share, width)]
    return "\n".join(lines)


def _run_columns(shares: tuple[Share, ...]) -> list[Column]:
    totals = [share.report.total for share in shares]
    return [
        Column("run", [str(share.number) for share in shares], is_text=True),
        Column("state", [share.report.state.value for share in shares], is_text=True),
        Column("quanta", [str(total.n_quanta) for total in totals]),
        Column("succeeded", [str(total.succeeded) for total in totals]),
        Column("skipped", [str(total.skipped) for total in totals]),
        Column("recovered", [str(share.recovered) for share in shares]),
        Column("failed", [str(total.failed) for total in totals]),
        Column("blocked", [str(total.blocked) for total in totals]),
        Column("not run", [str(total.not_run + total.running) for total in totals]),
    ]


def _share_lines(share: Share, width: int) -> Iterator[str]:
    """Tell what is still failed, where this run was the last to try it."""
    if not share.report.failures:
        return
    path = printable(str(share.report.run_dir.path))
    yield from ("", f"Still failed, last tried in run {share.number} ({path})")
    # What was tried again with success is in the counts.
    yield from trouble_lines(replace(share.report, retried=()), width)
