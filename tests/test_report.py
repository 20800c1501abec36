"""Tests of `qgexec.report`: real run directories, written by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qgexec.errors import JournalError, RunDirError
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
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
)
from qgexec.journal import Journal, SegmentWriter, segment_path
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, RunContext
from qgexec.report import RunReport, RunState, driver_is_alive, format_report, format_status, read_report
from qgexec.rundir import RunDir, RunSettings
from qgexec.testing import make_plan

PLAN = make_plan("isr:1 isr:2 isr:3 isr:4 isr:5; isr:1 -> calibrate:1; isr:2 -> calibrate:2 -> coadd")
BEGAN = RunStarted(1760000000.0, "node1", 42, 1759999999.0, "pool", len(PLAN))
TRACEBACK = 'Traceback (most recent call last):\n  File "isr.py", line 7\nValueError: \x1b[31mno stars'


def outcome(index: int, status: OutcomeStatus, **kwargs: object) -> Outcome:
    at = BEGAN.at
    return Outcome(index, 1, status, at + 1, at + 3, 1.5, 250_000_000, "node1", 50, **kwargs)  # type: ignore[arg-type]


def succeeded(index: int, **kwargs: object) -> AttemptSucceeded:
    return AttemptSucceeded(BEGAN.at + 3, outcome(index, OutcomeStatus.SUCCEEDED, **kwargs))


def started(*indices: int) -> list[Event]:
    return [AttemptStarted(BEGAN.at + 1, index, 1) for index in indices]


class Books:
    """A run directory with a journal that grows as the test says."""

    def __init__(self, path: Path) -> None:
        self.run_dir = RunDir.create(path)
        self.run_dir.save_plan(PLAN)
        context = RunContext(str(path), "/repo", "/graph.qg", "u/me/run", "u/me", ("raw",))
        self.run_dir.write_settings(RunSettings(context, "pool", labels=PLAN.labels))
        self.journal = Journal.create(self.run_dir.journal)
        self.segment = SegmentWriter(segment_path(self.run_dir.segments, 1, "worker-0001"))

    def write(self, *events: Event) -> None:
        for event in events:
            self.journal.append(event)

    def failed(self, index: int, message: str = "no stars", where: str = "isr.py:7 run") -> AttemptFailed:
        error = ExceptionSummary("builtins.ValueError", message, where)
        detail = self.segment.append({"traceback": TRACEBACK})
        return AttemptFailed(
            BEGAN.at + 4, outcome(index, OutcomeStatus.FAILED, exception=error, detail=detail)
        )

    def read(self, *, is_alive: bool | None = False) -> RunReport:
        return read_report(self.run_dir.path, is_alive=lambda _: is_alive)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """A run directory whose journal is empty."""
    return Books(tmp_path / "run")


@pytest.fixture
def mixed(books: Books) -> Books:
    """A run in which everything happened, ended by the user."""
    books.write(
        BEGAN,
        *started(0, 1, 2, 3, 4),
        succeeded(0, caveats=5),
        books.failed(1),
        books.failed(2),
        AttemptLost(BEGAN.at + 5, 3, 1, "worker 2 was killed by signal 9 (SIGKILL)", -9, 2),
        AttemptTimedOut(BEGAN.at + 6, 4, 1, 5.0, 1),
        OutputsIngested(BEGAN.at + 7, (0, 1), 5),
        StopRequested(BEGAN.at + 8, StopReason.INTERRUPTED),
        RunEnded(BEGAN.at + 9, EndReason.STOPPED),
    )
    books.run_dir.attempt_log(3, 1).write_text("last words")
    return books


def test_a_report_counts_everything(mixed: Books) -> None:
    """Each quantum is in one column, and each task in one row."""
    report = mixed.read()
    isr, calibrate, coadd = report.tasks
    assert (isr.n_quanta, isr.succeeded, isr.failed, isr.ingested) == (5, 1, 4, 2)
    assert (calibrate.n_quanta, calibrate.blocked, calibrate.not_run) == (2, 1, 1)
    assert (coadd.n_quanta, coadd.blocked) == (1, 1)
    assert (report.total.n_quanta, report.total.done, report.total.not_run) == (8, 7, 1)
    assert report.state is RunState.STOPPED
    assert report.stop_reason is StopReason.INTERRUPTED
    assert report.wall_s == 9.0
    assert not report.all_succeeded


def test_tracebacks_are_read_when_asked_for(mixed: Books) -> None:
    """From the segment; where that is damaged, a sentence says so and the report is there all the same."""
    report = mixed.read()
    raised, _, lost, _ = report.failures
    assert report.traceback(raised) == TRACEBACK
    assert report.traceback(lost) == ""
    segment_path(mixed.run_dir.segments, 1, "worker-0001").unlink()
    assert "the traceback cannot be read" in report.traceback(raised)
    assert "the traceback cannot be read" in format_report(report)


def test_the_log_of_a_lost_attempt_is_named_where_there_is_one(mixed: Books) -> None:
    """Its path is in the report."""
    logs = [failure.log for failure in mixed.read().failures]
    assert logs == [None, None, mixed.run_dir.logs / "3.1.log", None]


def test_the_report_is_json(mixed: Books) -> None:
    """With a format and version, and every failure in full."""
    report = json.loads(json.dumps(mixed.read().to_json(), allow_nan=False))
    assert (report["format"], report["version"]) == ("qgexec-report", 1)
    assert (report["state"], report["stop_reason"]) == ("stopped", "interrupted")
    assert report["settings"]["context"]["output_run"] == "u/me/run"
    assert report["tasks"][0]["caveats"] == {"ANY_OUTPUTS_MISSING": 1, "NO_WORK": 1}
    raised = report["failures"][0]
    assert raised["traceback"] == TRACEBACK
    assert raised["quantum_id"] == str(PLAN.quantum_id(1))
    assert raised["data_id"] == {"detector": 2}
    assert [failure["kind"] for failure in report["failures"]] == ["raised", "raised", "lost", "timed out"]
    assert set(report["total"]) == set(report["tasks"][0])


def test_every_key_of_the_json_is_documented(mixed: Books) -> None:
    """In the docstring, by its name."""
    documented = RunReport.to_json.__doc__ or ""
    assert [key for key in mixed.read().to_json() if f"``{key}``" not in documented] == []


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_text_fits_the_terminal(mixed: Books, width: int) -> None:
    """All lines but paths, tracebacks and what is in the head."""
    text = format_report(mixed.read(), width=width)
    lines = text.split("\n\n", 1)[1].splitlines()
    free = ("     ", "   Traceback")
    assert [line for line in lines if len(line) > width and not line.startswith(free)] == []


def test_the_text_says_what_failed_and_why(mixed: Books) -> None:
    """Failures that look the same are one cause with one traceback; escape sequences are not obeyed."""
    text = format_report(mixed.read(), width=100)
    assert "Failures: 4 quanta, 3 causes" in text
    assert "1. 2 x builtins.ValueError at isr.py:7 run" in text
    assert "quantum 1, attempt 1, blocks 2: isr{detector: 2}" in text
    assert text.count("Traceback (most recent call last)") == 1
    assert "worker 2 was killed by signal 9 (SIGKILL)" in text
    assert f"log: {mixed.run_dir.logs}/3.1.log" in text
    assert "ran over its time limit of 5 s" in text
    assert "NO_WORK" in text
    assert "\x1b" not in text


def test_failures_in_different_places_are_different_causes(books: Books) -> None:
    """The most frequent comes first."""
    books.write(BEGAN, *started(0, 1, 2), books.failed(0, where="b.py:2 f"), books.failed(1), books.failed(2))
    text = format_report(books.read())
    assert text.index("1. 2 x builtins.ValueError at isr.py:7 run") < text.index(
        "2. 1 x builtins.ValueError at b.py:2 f"
    )


def test_columns_without_anything_to_say_are_left_out(books: Books) -> None:
    """A run without trouble has a small table."""
    books.write(BEGAN, *started(*range(5)), *map(succeeded, range(5)))
    books.write(*started(5, 6), succeeded(5), succeeded(6), *started(7), succeeded(7))
    books.write(RunEnded(BEGAN.at + 9, EndReason.COMPLETED))
    report = books.read()
    assert report.all_succeeded
    assert report.state is RunState.COMPLETED
    header = next(line for line in format_report(report).splitlines() if line.startswith("task"))
    assert header.split() == ["task", "quanta", "succeeded", "failed", "time", "CPU", "memory"]


def test_status_is_short(mixed: Books) -> None:
    """How far it is, and when it was last heard of."""
    text = format_status(mixed.read(), width=80, now=BEGAN.at + 9 + 120)
    assert "7 of 8 quanta done (87 %), 4 failed, 2 blocked" in text
    assert "Last event     2.0 min ago" in text
    assert "stopped (interrupted)" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("is_alive", "state"),
    [(True, RunState.RUNNING), (False, RunState.DRIVER_GONE), (None, RunState.PERHAPS_RUNNING)],
)
def test_a_driver_that_has_not_closed_its_books_is_looked_for(
    books: Books, is_alive: bool | None, state: RunState
) -> None:
    """It runs, is gone, or is out of sight."""
    books.write(BEGAN, *started(0, 1))
    report = books.read(is_alive=is_alive)
    assert report.state is state
    assert report.total.running == 2
    assert state.value in format_status(report)


def test_a_run_without_a_driver_has_not_started(books: Books) -> None:
    """Its journal is empty, and its report has all quanta."""
    report = books.read()
    assert report.state is RunState.NOT_STARTED
    assert (report.total.not_run, report.last_event_at, report.wall_s) == (8, None, 0.0)
    assert "0 of 8 quanta done (0 %)" in format_status(report)
    assert "not started" in format_report(report)


def test_a_broken_run_says_so(books: Books) -> None:
    """The driver closed its books, though not as it should."""
    books.write(BEGAN, RunEnded(BEGAN.at + 1, EndReason.BROKEN))
    assert books.read().state is RunState.BROKEN


def test_a_report_is_made_while_the_journal_is_written(books: Books) -> None:
    """Half a line at the end does not count yet."""
    books.write(BEGAN, *started(0), succeeded(0))
    with books.journal.path.open("ab") as file:
        file.write(b'{"e":"start","t":17600')
    assert books.read(is_alive=True).total.succeeded == 1


def test_a_journal_of_another_plan_is_refused(books: Books) -> None:
    """It names what does not fit."""
    books.write(BEGAN, AttemptStarted(BEGAN.at, 99, 1))
    with pytest.raises(JournalError, match=r"does not fit its plan: .*no quantum 99"):
        books.read()


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    """As every command does."""
    with pytest.raises(RunDirError, match="is not a run directory"):
        read_report(tmp_path)


def test_this_process_is_alive() -> None:
    """A driver on this host is found by its number, and by its beginning before its first word."""
    here = RunStarted(time.time(), socket.gethostname(), os.getpid(), 0.0, "pool", 1)
    assert driver_is_alive(here) is True


def _replaced(**changes: object) -> RunStarted:
    values = {"at": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **changes}
    return RunStarted(pid_started_at=0.0, model="pool", n_quanta=1, **values)  # type: ignore[arg-type]


def test_a_process_that_is_gone_is_not_alive() -> None:
    """Its number is free."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    assert driver_is_alive(_replaced(pid=child.pid)) is False


def test_a_later_process_with_the_same_number_is_another() -> None:
    """It began after the driver had spoken."""
    assert driver_is_alive(_replaced(at=1000.0)) is False


def test_a_process_on_another_host_is_out_of_sight() -> None:
    """Nobody here can tell."""
    assert driver_is_alive(_replaced(host="elsewhere.example.org")) is None


def test_a_report_needs_no_stack() -> None:
    """`status` and `report` start fast: importing the module loads nothing of lsst, click or rich."""
    code = "import sys, qgexec.report; print([m for m in ('lsst', 'click', 'rich') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"
