"""How a report is told in plain text; knows no files, and nothing of how the report came about."""

from __future__ import annotations

import shlex
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterator

from qgexec.config.units import duration_text, moment_text, size_text
from qgexec.events import COLLECTING, RunStarted
from qgexec.plaintext import printable
from qgexec.reports.failures import AttemptRecord, FailureGroup, TroubledQuantum
from qgexec.reports.fold import TaskReport
from qgexec.reports.report import RunReport, RunState
from qgexec.reports.table import Column, fit, render, render_parts, wrapped
from qgexec.reports.tasktables import detail_lines, task_columns
from qgexec.scheduling.policy import INVALID_QUANTUM_EXIT_CODE, Cause
from qgexec.scheduling.states import State

__all__ = ["format_report", "format_status", "trouble_lines"]

_SHOWN_PER_CAUSE = 10
_SHOWN_CAUSES = 20
_SHOWN_RUNNING = 5

_WORTH_SAYING_S = 60.0
"""A run that had no driver for longer than this is told of with the whole of its time."""

_HEAD = 15
"""Where what the lines of the head say begins."""


def format_report(report: RunReport, *, width: int = 100, brief: bool = False) -> str:
    """Return a report as plain text.

    Parameters
    ----------
    report
        What to say.
    width
        Of the terminal, characters; only tracebacks and paths may be wider.
    brief
        Counts alone.
    """
    lines = [*_head(report, width), "", *render_parts(task_columns(report.tasks, report.total), width)]
    if brief:
        return "\n".join(lines)
    lines += detail_lines(report.tasks, width)
    if report.state is RunState.DRIVER_GONE:
        lines += _running_lines(report, width, time.time())
    return "\n".join([*lines, *trouble_lines(report, width)])


def trouble_lines(report: RunReport, width: int) -> Iterator[str]:
    """Tell what attempts died of that were not the last, and what quanta failed of."""
    yield from _retry_lines(report, width)
    yield from _failure_lines(report, width)


def format_status(report: RunReport, *, width: int = 100, now: float | None = None) -> str:
    """Return in a few lines of plain text how far a run is.

    Parameters
    ----------
    report
        What to say.
    width
        Of the terminal, characters.
    now
        UNIX seconds; by default the clock's.
    """
    total = report.total
    now = time.time() if now is None else now
    progress = wrapped(f"Progress       {_progress(total)}", width, hanging=_HEAD)
    lines = [*_head(report, width), *progress]
    if report.last_event_at is not None:
        ago = max(0.0, now - report.last_event_at)
        lines.append(f"Last event     {duration_text(ago)} ago")
    lines += ["", *render_parts(task_columns(report.tasks, report.total), width)]
    return "\n".join([*lines, *_running_lines(report, width, now)])


def _progress(total: TaskReport) -> str:
    percent = 100 * total.done // total.n_quanta if total.n_quanta else 100
    words = [f"{total.done} of {total.n_quanta} quanta succeeded ({percent} %)"]
    words += [
        f"{number} {word}"
        for number, word in (
            (total.skipped, "of them skipped"),
            (total.failed, "failed"),
            (total.blocked, "blocked"),
            (total.running, "running"),
            (total.retried, "retried"),
        )
        if number
    ]
    return ", ".join(words)


def _head(report: RunReport, width: int) -> list[str]:
    context, driver = report.settings.context, report.driver
    state = report.state.value
    if report.state is RunState.DRIVER_GONE:
        state += "; go on with qgexec resume"
    if report.stop_reason is not None:
        state += f" ({report.stop_reason.value})"
    lines = [
        f"Run directory  {report.run_dir.path}",
        f"Output RUN     {context.output_run}",
        f"State          {state}",
    ]
    if driver is not None:
        lines += [
            f"Model          {printable(_model(report.settings.model, driver))}",
            f"Began          {moment_text(report.settings.created_at)}",
        ]
    if (submitted := report.submitted) is not None:
        ids = "; ".join(f"{key} {_listed(value)}" for key, value in (submitted.ticket or {}).items())
        where = f"{submitted.model}, {submitted.n_jobs} jobs as {submitted.name}{f' ({ids})' if ids else ''}"
        lines += wrapped(f"Submitted to   {printable(where)}", width, hanging=_HEAD)
    useful, wasted = duration_text(report.total.useful_cpu_s), duration_text(report.total.wasted_cpu_s)
    return [
        *lines,
        *wrapped(f"Time           {_time(report)}", width, hanging=_HEAD),
        f"CPU time       {useful} useful, {wasted} wasted",
    ]


def _time(report: RunReport) -> str:
    """Say how long a run took, and how much of that it had a driver: in the hands of a batch system none."""
    with_driver, inside = duration_text(report.wall_s), duration_text(report.total.quantum_s)
    elapsed_s = (report.last_event_at or 0.0) - report.settings.created_at
    if elapsed_s - report.wall_s < _WORTH_SAYING_S:
        return f"{with_driver} wall, {inside} in quanta"
    return f"{duration_text(elapsed_s)} since it began, {with_driver} of it with a driver; {inside} in quanta"


def _model(model: str, driver: RunStarted) -> str:
    """Say what executes a run, or did, and which process has, or had, it in hand."""
    process = f"process {driver.pid} on {driver.host}"
    if driver.model == COLLECTING:
        return f"{model}; collected by {process}"
    return f"{driver.model}, {process}"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _running_lines(report: RunReport, width: int, now: float) -> Iterator[str]:
    """Name the quanta that run, or did when the driver went away."""
    if not report.running:
        return
    is_over = report.state is RunState.DRIVER_GONE
    yield from ("", "Ran when the driver went away" if is_over else "Running, the longest first", "")
    for quantum in report.running[:_SHOWN_RUNNING]:
        at = quantum.started_at
        since = f"since {moment_text(at)}" if is_over else f"for {duration_text(max(0.0, now - at))}"
        name = f"quantum {quantum.index}, attempt {quantum.attempt}, {since}: {printable(str(quantum))}"
        yield from _wrapped(name, width, hanging=2)
    if len(report.running) > _SHOWN_RUNNING:
        yield f"   and {len(report.running) - _SHOWN_RUNNING} more"


def _retry_lines(report: RunReport, width: int) -> Iterator[str]:
    """Say how many quanta needed more than one attempt, and what the earlier ones died of."""
    attempts: Counter[tuple[str, str]] = Counter()
    quanta: Counter[tuple[str, str]] = Counter()
    for quantum in (*report.retried, *report.failures):
        earlier = quantum.bad[:-1] if quantum.state is State.FAILED else quantum.bad
        died_of = [(quantum.task_label, _kind_in_words(attempt)) for attempt in earlier]
        attempts.update(died_of)
        quanta.update(set(died_of))
    if not attempts:
        return
    n_saved = sum(quantum.state in (State.SUCCEEDED, State.SKIPPED) for quantum in report.retried)
    saved = _counted(n_saved, "quantum", "quanta")
    yield ""
    yield fit(
        f"Retries: {attempts.total()}; {saved} succeeded only after one. Earlier attempts died of", width
    )
    yield ""
    keys = sorted(attempts, key=lambda key: -attempts[key])
    yield from render(
        [
            Column("task", [printable(label) for label, _ in keys], is_text=True),
            Column("cause", [printable(kind) for _, kind in keys], is_text=True),
            Column("attempts", [str(attempts[key]) for key in keys]),
            Column("quanta", [str(quanta[key]) for key in keys]),
        ],
        width,
    )


_BY_SIGNAL = (Cause.SIGNALLED.value, Cause.LOST.value)


def _kind_in_words(attempt: AttemptRecord) -> str:
    if attempt.exception_type:
        return attempt.exception_type
    code = attempt.exit_code
    if attempt.ended in _BY_SIGNAL and code is not None and code < 0:
        known = -code in signal.valid_signals()
        return f"{attempt.ended} ({signal.Signals(-code).name if known else -code})"
    if attempt.ended == Cause.EXITED.value:
        return f"{attempt.ended} ({code})"
    return attempt.ended


def _failure_lines(report: RunReport, width: int) -> Iterator[str]:
    groups = report.causes()
    if not groups:
        return
    failed = _counted(len(report.failures), "quantum", "quanta")
    n_blocked = sum(group.n_blocked for group in groups)
    blocked = f"; {_counted(n_blocked, 'quantum', 'quanta')} blocked" if n_blocked else ""
    yield from ("", fit(f"Failures: {failed}, {_counted(len(groups), 'cause', 'causes')}{blocked}", width))
    for number, group in enumerate(groups[:_SHOWN_CAUSES], start=1):
        yield ""
        yield from _group_lines(report, number, group, width)
    if left := groups[_SHOWN_CAUSES:]:
        n_left = sum(len(group.quanta) for group in left)
        more = (
            f"{_counted(len(left), 'more cause', 'more causes')} of {_counted(n_left, 'quantum', 'quanta')}"
        )
        yield from ("", fit(f"And {more}; qgexec report --json lists all", width))


def _group_lines(report: RunReport, number: int, group: FailureGroup, width: int) -> Iterator[str]:
    example = group.example
    last = example.last
    blocked = f", blocks {group.n_blocked}," if group.n_blocked else ""
    place = f" at {last.where}" if last.where else ""
    title = f"{number}. {len(group.quanta)} x {_kind_in_words(last)}{blocked}{place}".rstrip(",")
    yield from wrapped(printable(title), width, hanging=5)
    for line in printable(last.message).splitlines():
        yield from _wrapped(line, width)
    if traceback := report.traceback(last):
        what = "Traceback" if last.detail is not None else "Stacks"
        yield f"   {what} of quantum {example.index}, attempt {last.number}:"
        yield from textwrap.indent(printable(traceback.rstrip()), "     ").splitlines()
    for quantum in group.quanta[:_SHOWN_PER_CAUSE]:
        yield from _quantum_lines(quantum, width)
    if len(group.quanta) > _SHOWN_PER_CAUSE:
        left = len(group.quanta) - _SHOWN_PER_CAUSE
        yield fit(f"   and {left} more; qgexec report --json lists all", width)
    yield from _next_step(report, group, width)


def _next_step(report: RunReport, group: FailureGroup, width: int) -> Iterator[str]:
    """Say what one does about such failures."""
    last, label, command = group.example.last, group.example.task_label, ""
    if last.exit_code == INVALID_QUANTUM_EXIT_CODE and last.ended == Cause.RAISED.value:
        what = "the graph or the configuration is wrong; make a new graph"
    else:
        match Cause(last.ended):
            case Cause.RAISED:
                what, command = "run it again, here, under pdb", "debug"
            case Cause.OUT_OF_MEMORY:
                what = (
                    f"qgexec resume --resources FILE, with more requestMemory for {label} "
                    "(and more requestMemoryMax or --memory-limit, where it had reached that)"
                )
            case Cause.TIMED_OUT:
                what = f"qgexec resume --resources FILE, with a longer requestWalltime for {label}"
            case Cause.EXITED | Cause.SIGNALLED:
                what, command = "read its log", "log"
            case Cause.LOST:
                what = "qgexec resume; as far as is known it was not the task's doing"
    yield from _wrapped(f"Next: {what}", width, hanging=2)
    if command:
        where = [str(report.run_dir.path), str(group.example.index)]
        yield f"     {shlex.join(['qgexec', command, *where])}"


def _quantum_lines(quantum: TroubledQuantum, width: int) -> Iterator[str]:
    last = quantum.last
    blocked = f", blocks {quantum.n_blocked}" if quantum.n_blocked else ""
    name = f"quantum {quantum.index}, attempt {last.number}{blocked}: {printable(str(quantum))}"
    yield from _wrapped(name, width, hanging=2)
    if last.log is not None:
        yield f"     log: {last.log}"
    elif last.detail is not None:
        yield f"     log: dataset {quantum.task_label}_log of this data ID, in the output RUN"
    for attempt in quantum.bad[:-1]:
        memory = f", {size_text(attempt.peak_rss_bytes)}" if attempt.peak_rss_bytes else ""
        yield fit(f"     earlier: attempt {attempt.number}, {_kind_in_words(attempt)}{memory}", width)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _wrapped(text: str, width: int, *, hanging: int = 0) -> list[str]:
    indent = " " * 3
    return textwrap.wrap(
        text, max(20, width), initial_indent=indent, subsequent_indent=indent + " " * hanging
    )
