"""Run directories written by hand, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

from qgexec.books.journal import Journal, SegmentWriter, segment_path
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerEnded,
)
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, RunContext
from qgexec.reports.report import RunReport, read_report
from qgexec.testing import make_plan

PLAN = make_plan("isr:1 isr:2 isr:3 isr:4 isr:5; isr:1 -> calibrate:1; isr:2 -> calibrate:2 -> coadd")
BEGAN = RunStarted(1760000000.0, "node1", 42, 1759999999.0, "pool", len(PLAN))
TRACEBACK = 'Traceback (most recent call last):\n  File "isr.py", line 7\nValueError: \x1b[31mno stars'


def outcome(index: int, status: OutcomeStatus, attempt: int = 1, **kwargs: object) -> Outcome:
    """Return an outcome of 2 s."""
    at = BEGAN.at
    return Outcome(index, attempt, status, at + 1, at + 3, 1.5, 250_000_000, "node1", 50, **kwargs)  # type: ignore[arg-type]


def succeeded(index: int, attempt: int = 1, **kwargs: object) -> AttemptSucceeded:
    """Return a success."""
    return AttemptSucceeded(BEGAN.at + 3, outcome(index, OutcomeStatus.SUCCEEDED, attempt, **kwargs))


def started(*indices: int, attempt: int = 1) -> list[Event]:
    """Return the starts of attempts."""
    return [AttemptStarted(BEGAN.at + 1, index, attempt) for index in indices]


class HandBooks:
    """A run directory with a journal that grows as the test says."""

    def __init__(self, path: Path) -> None:
        self.run_dir = RunDir.create(path)
        self.run_dir.save_plan(PLAN)
        context = RunContext(str(path), "/repo", "/graph.qg", "u/me/run", "u/me", ("raw",))
        self.run_dir.write_settings(RunSettings(context, "pool", labels=PLAN.labels))
        self.journal = Journal.create(self.run_dir.journal)
        self.segment = SegmentWriter(segment_path(self.run_dir.segments, 1, "worker-0001"))

    def write(self, *events: Event) -> None:
        """Append to the journal."""
        for event in events:
            self.journal.append(event)

    def failed(
        self,
        index: int,
        message: str = "no stars",
        where: str = "isr.py:7 run",
        *,
        attempt: int = 1,
        retried: bool = False,
    ) -> AttemptFailed:
        """Return a failure whose traceback is in the segment."""
        error = ExceptionSummary("builtins.ValueError", message, where)
        detail = self.segment.append({"traceback": TRACEBACK})
        ended = outcome(index, OutcomeStatus.FAILED, attempt, exception=error, detail=detail)
        return AttemptFailed(BEGAN.at + 4, ended, retried=retried)

    def read(self, *, is_alive: bool | None = False) -> RunReport:
        """Read the report."""
        return read_report(self.run_dir.path, is_alive=lambda _: is_alive)


def write_mixed(books: HandBooks) -> None:
    """Write a run in which everything happened, ended by the user."""
    books.write(
        BEGAN,
        *started(0, 1, 2, 3, 4),
        AttemptLost(BEGAN.at + 2, 0, 1, "worker 1 was killed by signal 9 (SIGKILL)", -9, 1, retried=True),
        *started(0, attempt=2),
        succeeded(0, 2, caveats=5),
        books.failed(1),
        books.failed(2),
        AttemptOutOfMemory(BEGAN.at + 4, 3, 1, 5_100_000_000, 4_000_000_000, worker=2, retried=True),
        *started(3, attempt=2),
        AttemptLost(BEGAN.at + 5, 3, 2, "worker 2 was killed by signal 9 (SIGKILL)", -9, 2),
        AttemptTimedOut(BEGAN.at + 6, 4, 1, 5.0, 1),
        *(WorkerEnded(BEGAN.at + 6, n, 0, "isr", "a thread 'poller'") for n in (3, 4)),
        WorkerEnded(BEGAN.at + 6, 5, 0, "calibrate", "an exit handler (save)"),
        OutputsIngested(BEGAN.at + 7, (0, 1), 5),
        StopRequested(BEGAN.at + 8, StopReason.INTERRUPTED),
        RunEnded(BEGAN.at + 9, EndReason.STOPPED),
    )
    books.run_dir.attempt_log(3, 2).write_text("last words")
    books.run_dir.attempt_stack(4, 1).write_text(
        "Thread 0x01 (most recent call first):\n  stuck.py, line 3\n\nExtension modules: a, b\n"
    )
