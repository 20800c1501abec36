"""How the numbers of tasks are set in tables, whatever report they are part of; knows no reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qgexec.config.units import duration_text, size_text
from qgexec.plaintext import printable
from qgexec.reports.fold import TaskReport
from qgexec.reports.measured import Spread
from qgexec.reports.table import Column, render, render_parts, wrapped

__all__ = ["caveat_lines", "detail_lines", "task_columns", "use_lines"]


def task_columns(tasks: Sequence[TaskReport], total: TaskReport) -> list[Column]:
    """Return the columns that count quanta, a row for each task and one for all."""
    rows = [*tasks, total]
    counts = [
        Column(title, [str(getattr(row, name)) for row in rows])
        for title, name in (
            ("quanta", "n_quanta"),
            ("succeeded", "succeeded"),
            ("skipped", "skipped"),
            ("recovered", "recovered"),
            ("failed", "failed"),
            ("blocked", "blocked"),
            ("unknown", "unknown"),
            ("wonky", "wonky"),
            ("retried", "retried"),
            ("running", "running"),
            ("not run", "not_run"),
            ("ingested", "ingested"),
        )
        # What every run is about is there always; the others only where they have something to say.
        if name in {"n_quanta", "succeeded", "failed"} or getattr(total, name)
    ]
    return [
        Column("task", [printable(row.label) for row in rows], is_text=True),
        *counts,
    ]


def detail_lines(tasks: Sequence[TaskReport], width: int) -> Iterator[str]:
    """Set all that a run knows of its tasks besides counts of quanta."""
    yield from use_lines(tasks, width)
    yield from caveat_lines(tasks, width)
    yield from _replaced_lines(tasks, width)


def use_lines(tasks: Sequence[TaskReport], width: int) -> Iterator[str]:
    """Set what the quanta of each task took: memory against what they ask for, wall time and CPU time."""
    rows = [task for task in tasks if task.memory or task.wall or task.useful_cpu_s or task.wasted_cpu_s]
    if not rows:
        return
    labels = Column("task", [printable(row.label) for row in rows], is_text=True)
    memory = [row.memory for row in rows]
    if any(memory):
        yield from ("", "Peak memory of a quantum", "")
        yield from render_parts(
            [
                labels,
                *_spread_columns(memory, size_text),
                *_request_columns(rows),
            ],
            width,
        )
    yield from ("", "Wall time of a quantum; CPU time of all", "")
    yield from render_parts(
        [
            labels,
            *_spread_columns([row.wall for row in rows], duration_text),
            Column("useful", [duration_text(row.useful_cpu_s) for row in rows]),
            Column("wasted", [duration_text(row.wasted_cpu_s) for row in rows]),
        ],
        width,
    )


def _spread_columns(spreads: Sequence[Spread | None], text: Callable[[float], str]) -> list[Column]:
    return [
        Column(title, [text(getattr(spread, name)) if spread else "-" for spread in spreads])
        for title, name in (("50 %", "p50"), ("95 %", "p95"), ("max", "max"))
    ]


def _request_columns(rows: Sequence[TaskReport]) -> list[Column]:
    if not any(row.requested_memory_bytes for row in rows):
        return []
    return [
        Column("requested", [size_text(row.requested_memory_bytes) for row in rows]),
        Column("max of it", [_share(row.peak_rss_bytes, row.requested_memory_bytes) for row in rows]),
    ]


def _share(part: int | None, whole: int | None) -> str:
    return "-" if part is None or not whole else f"{100 * part / whole:.0f} %"


def caveat_lines(tasks: Sequence[TaskReport], width: int) -> Iterator[str]:
    """Set how many quanta of each task succeeded with which caveat."""
    found = [(task.label, name, str(n)) for task in tasks for name, n in sorted(task.caveats.items())]
    if not found:
        return
    labels, names, numbers = zip(*found, strict=True)
    yield from ("", "Succeeded with caveats", "")
    yield from render(
        [
            Column("task", labels, is_text=True),
            Column("caveat", names, is_text=True),
            Column("quanta", numbers),
        ],
        width,
    )


def _replaced_lines(tasks: Sequence[TaskReport], width: int) -> Iterator[str]:
    """Say which workers others took the place of, and what the quanta of which task had left in them."""
    found = [(task.label, left, n) for task in tasks for left, n in sorted(task.workers_replaced.items())]
    if found:
        yield ""
    for label, left, n in found:
        times, what = "once" if n == 1 else f"{n} times", printable(f"{label} leaves {left}")
        yield from wrapped(f"Worker replaced {times}: {what}", width, hanging=2)
