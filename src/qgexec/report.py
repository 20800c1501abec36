"""What became of a run: the journal's events once more through the scheduler, so that both cannot disagree.

It reads the run directory alone, also while the run goes on; it needs
neither the graph nor the stack.
"""

from __future__ import annotations

import socket
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from qgexec.errors import IllegalEventError, JournalError
from qgexec.events import EndReason, RunStarted, StopReason
from qgexec.fold import Failure, FailureKind, Fold, TaskReport, total_of
from qgexec.journal import read_detail, read_events
from qgexec.processes import process_started_at
from qgexec.rundir import RunDir, RunSettings
from qgexec.table import Column, fit, printable, render

__all__ = [
    "REPORT_VERSION",
    "RunReport",
    "RunState",
    "driver_is_alive",
    "format_report",
    "format_status",
    "read_report",
]

REPORT_VERSION = 1
"""Version of `RunReport.to_json`. 1: the first."""


class RunState(Enum):
    """Whether a run goes on."""

    NOT_STARTED = "not started"
    """No driver has taken it in hand."""

    RUNNING = "running"
    """Its driver is alive on this host."""

    PERHAPS_RUNNING = "perhaps running"
    """Its driver is on another host and has not closed its books: it runs, or it is gone."""

    DRIVER_GONE = "driver gone"
    """Its driver died without closing its books."""

    COMPLETED = "completed"
    """Nothing is left that could run."""

    STOPPED = "stopped"
    """It was told to stop; quanta that could run are left."""

    BROKEN = "broken"
    """The execution model, the registry or the disk failed under it."""


_ENDED_STATES = {
    EndReason.COMPLETED: RunState.COMPLETED,
    EndReason.STOPPED: RunState.STOPPED,
    EndReason.BROKEN: RunState.BROKEN,
}


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run, up to the last event in its journal."""

    run_dir: RunDir
    settings: RunSettings
    state: RunState
    stop_reason: StopReason | None
    """Why the last driver was told to stop, if it was."""
    driver: RunStarted | None
    """The last driver."""
    last_event_at: float | None
    """UNIX seconds."""
    wall_s: float
    """Time in which a driver had the run in hand, up to its last event; added up over all drivers."""
    tasks: tuple[TaskReport, ...]
    """In the order of the plan's labels."""
    total: TaskReport
    """All tasks together."""
    failures: tuple[Failure, ...]
    """In the order of their indices."""

    @property
    def all_succeeded(self) -> bool:
        """Whether every quantum succeeded, or was skipped as done before."""
        return self.total.succeeded + self.total.skipped == self.total.n_quanta

    def traceback(self, failure: Failure) -> str:
        """Read the traceback of a failure; empty where there is none, a sentence where it cannot be read."""
        if failure.detail is None:
            return ""
        try:
            return str(read_detail(self.run_dir.segments, failure.detail).get("traceback", ""))
        except JournalError as err:
            return f"(the traceback cannot be read: {err.message})"

    def to_json(self) -> dict[str, Any]:
        """Return the report as what `json.dumps` takes.

        Returns
        -------
        report
            - ``format`` ("qgexec-report"), ``version`` (`REPORT_VERSION`);
            - ``run_dir``, ``settings`` (as in ``run.json``);
            - ``state`` (value of `RunState`), ``stop_reason`` (value of `StopReason` or null),
              ``all_succeeded``, ``last_event_at``, ``wall_s``;
            - ``driver``: null, or ``at``, ``host``, ``pid``, ``pid_started_at``, ``model``, ``n_quanta``;
            - ``tasks`` (a list) and ``total``: the attributes of `TaskReport`;
            - ``failures``: a list of the attributes of `Failure` (``kind`` by value, ``quantum_id`` and
              ``log`` as text, without ``detail``), and ``traceback``.

            Times are UNIX seconds.
        """
        return {
            "format": "qgexec-report",
            "version": REPORT_VERSION,
            "run_dir": str(self.run_dir.path),
            "settings": self.settings.to_json(),
            "state": self.state.value,
            "stop_reason": self.stop_reason and self.stop_reason.value,
            "all_succeeded": self.all_succeeded,
            "last_event_at": self.last_event_at,
            "wall_s": self.wall_s,
            "driver": self.driver and asdict(self.driver),
            "tasks": [asdict(task) for task in self.tasks],
            "total": asdict(self.total),
            "failures": [self._failure_to_json(failure) for failure in self.failures],
        }

    def _failure_to_json(self, failure: Failure) -> dict[str, Any]:
        values = asdict(failure)
        del values["detail"]
        return values | {
            "kind": failure.kind.value,
            "quantum_id": str(failure.quantum_id),
            "log": failure.log and str(failure.log),
            "traceback": self.traceback(failure),
        }


def driver_is_alive(driver: RunStarted) -> bool | None:
    """Return whether a driver is still there; `None` where only its own host could tell."""
    if driver.host != socket.gethostname():
        return None
    started_at = process_started_at(driver.pid)
    # One that began after the driver's first word has its number by chance; readings differ by up to 2 s.
    return started_at is not None and started_at <= driver.at + 2.0


def read_report(
    run_dir: Path, *, is_alive: Callable[[RunStarted], bool | None] = driver_is_alive
) -> RunReport:
    """Read what became of a run so far.

    Parameters
    ----------
    run_dir
        The run directory.
    is_alive
        Tells whether a driver that has not closed its books is still there.

    Raises
    ------
    qgexec.errors.RunDirError
        It is no run directory, cannot be read, or is damaged.
    """
    found = RunDir.open(run_dir)
    settings = found.read_settings()
    fold = Fold(found.load_plan())
    try:
        for event in read_events(found.journal):
            fold.apply(event)
    except IllegalEventError as err:
        raise JournalError(
            f"the journal in {found.path} does not fit its plan: {err.message}",
            hint="Bring journal/ and plan.npz back from the same copy.",
        ) from err
    tasks = fold.tasks()
    return RunReport(
        run_dir=found,
        settings=settings,
        state=_state(fold, is_alive),
        stop_reason=fold.stop_reason,
        driver=fold.driver,
        last_event_at=fold.last_event_at,
        wall_s=fold.wall_s,
        tasks=tasks,
        total=total_of(tasks),
        failures=fold.failures(lambda index, attempt: _existing(found.attempt_log(index, attempt))),
    )


def _state(fold: Fold, is_alive: Callable[[RunStarted], bool | None]) -> RunState:
    if fold.driver is None:
        return RunState.NOT_STARTED
    if fold.end is not None:
        return _ENDED_STATES[fold.end]
    match is_alive(fold.driver):
        case True:
            return RunState.RUNNING
        case False:
            return RunState.DRIVER_GONE
        case None:
            return RunState.PERHAPS_RUNNING


def _existing(path: Path) -> Path | None:
    try:
        path.lstat()
    except OSError:
        return None
    return path


_SHOWN_PER_CAUSE = 10


def format_report(report: RunReport, *, width: int = 100) -> str:
    """Return a report as plain text.

    Parameters
    ----------
    report
        What to say.
    width
        Of the terminal, characters; only tracebacks and paths may be wider.
    """
    lines = [*_head(report), "", *render(_task_columns(report), width)]
    lines += _caveat_lines(report, width)
    lines += _failure_lines(report, width)
    return "\n".join(lines)


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
    percent = 100 * total.done // total.n_quanta if total.n_quanta else 100
    words = [f"{total.done} of {total.n_quanta} quanta done ({percent} %)"]
    words += [
        f"{number} {word}"
        for number, word in (
            (total.failed, "failed"),
            (total.blocked, "blocked"),
            (total.running, "running"),
        )
        if number
    ]
    lines = [*_head(report), f"Progress       {', '.join(words)}"]
    if report.last_event_at is not None:
        ago = max(0.0, (time.time() if now is None else now) - report.last_event_at)
        lines.append(f"Last event     {_duration(ago)} ago")
    return "\n".join([*lines, "", *render(_task_columns(report)[:-3], width)])


def _head(report: RunReport) -> list[str]:
    context, driver = report.settings.context, report.driver
    state = report.state.value
    if report.stop_reason is not None:
        state += f" ({report.stop_reason.value})"
    lines = [
        f"Run directory  {report.run_dir.path}",
        f"Output RUN     {context.output_run}",
        f"State          {state}",
    ]
    if driver is not None:
        lines += [
            f"Model          {printable(f'{driver.model}, process {driver.pid} on {driver.host}')}",
            f"Began          {datetime.fromtimestamp(driver.at, UTC):%Y-%m-%d %H:%M:%S} UTC",
        ]
    wall, inside = _duration(report.wall_s), _duration(report.total.quantum_s)
    return [*lines, f"Time           {wall} wall, {inside} in quanta"]


def _task_columns(report: RunReport) -> list[Column]:
    rows = [*report.tasks, report.total]
    counts = [
        Column(title, [str(getattr(row, name)) for row in rows])
        for title, name in (
            ("quanta", "n_quanta"),
            ("succeeded", "succeeded"),
            ("skipped", "skipped"),
            ("failed", "failed"),
            ("blocked", "blocked"),
            ("running", "running"),
            ("not run", "not_run"),
            ("ingested", "ingested"),
        )
        # What every run is about is there always; the others only where they have something to say.
        if name in {"n_quanta", "succeeded", "failed"} or getattr(report.total, name)
    ]
    return [
        Column("task", [printable(row.label) for row in rows], is_text=True),
        *counts,
        Column("time", [_duration(row.quantum_s) for row in rows]),
        Column("CPU", [_duration(row.cpu_s) for row in rows]),
        Column("memory", [_size(row.peak_rss_bytes) for row in rows]),
    ]


def _caveat_lines(report: RunReport, width: int) -> Iterator[str]:
    found = [(task.label, name, str(n)) for task in report.tasks for name, n in sorted(task.caveats.items())]
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


def _failure_lines(report: RunReport, width: int) -> Iterator[str]:
    causes: defaultdict[tuple[object, ...], list[Failure]] = defaultdict(list)
    for failure in report.failures:
        causes[failure.cause].append(failure)
    if not causes:
        return
    n_quanta, n_causes = len(report.failures), len(causes)
    yield from (
        "",
        f"Failures: {_counted(n_quanta, 'quantum', 'quanta')}, {_counted(n_causes, 'cause', 'causes')}",
    )
    # The most frequent first; among equals the one met first.
    for number, failures in enumerate(sorted(causes.values(), key=len, reverse=True), start=1):
        yield ""
        yield from _cause_lines(report, number, failures, width)


def _cause_lines(report: RunReport, number: int, failures: Sequence[Failure], width: int) -> Iterator[str]:
    first = failures[0]
    what = first.exception_type or first.kind.value
    place = f" at {first.where}" if first.where else ""
    yield fit(printable(f"{number}. {len(failures)} x {what}{place}"), width)
    for line in printable(first.message).splitlines():
        yield from _wrapped(line, width)
    if traceback := report.traceback(first):
        yield f"   Traceback of quantum {first.index}:"
        yield from textwrap.indent(printable(traceback.rstrip()), "     ").splitlines()
    for failure in failures[:_SHOWN_PER_CAUSE]:
        blocked = f", blocks {failure.n_blocked}" if failure.n_blocked else ""
        name = f"quantum {failure.index}, attempt {failure.attempt}{blocked}: {printable(str(failure))}"
        yield from _wrapped(name, width, hanging=2)
        if failure.log is not None:
            yield f"     log: {failure.log}"
        elif failure.kind is FailureKind.RAISED:
            yield f"     log: dataset {failure.task_label}_log of this data ID, in the output RUN"
    if len(failures) > _SHOWN_PER_CAUSE:
        yield fit(f"   and {len(failures) - _SHOWN_PER_CAUSE} more; qgexec report --json lists all", width)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _wrapped(text: str, width: int, *, hanging: int = 0) -> list[str]:
    indent = " " * 3
    return textwrap.wrap(
        text, max(20, width), initial_indent=indent, subsequent_indent=indent + " " * hanging
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 60 else f"{hours:.1f} h"


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"
