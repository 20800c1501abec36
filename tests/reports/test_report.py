"""Tests of `qgexec.reports.report`: real run directories, written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qgexec.books.journal import segment_path
from qgexec.errors import JournalError, RunDirError
from qgexec.events import AttemptStarted, EndReason, RunEnded, StopReason
from qgexec.reports.report import RunReport, RunState, read_report
from tests.kit.runs.handbooks import BEGAN, PLAN, TRACEBACK, HandBooks, started, succeeded, write_mixed


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run directory whose journal is empty."""
    return HandBooks(tmp_path / "run")


@pytest.fixture
def mixed(books: HandBooks) -> HandBooks:
    """A run in which everything happened."""
    write_mixed(books)
    return books


def test_a_report_counts_everything(mixed: HandBooks) -> None:
    """Each quantum is in one column, and each task in one row."""
    report = mixed.read()
    isr, calibrate, coadd = report.tasks
    assert (isr.n_quanta, isr.succeeded, isr.failed, isr.ingested, isr.retried) == (5, 1, 4, 2, 2)
    assert (calibrate.n_quanta, calibrate.blocked, calibrate.not_run) == (2, 1, 1)
    assert (coadd.n_quanta, coadd.blocked) == (1, 1)
    total = report.total
    assert (total.n_quanta, total.ended, total.done, total.not_run) == (8, 7, 1, 1)
    assert report.state is RunState.STOPPED
    assert report.stop_reason is StopReason.INTERRUPTED
    assert report.wall_s == 9.0
    assert not report.all_succeeded
    assert [quantum.index for quantum in report.failures] == [1, 2, 3, 4]
    assert [(quantum.index, quantum.last.ended) for quantum in report.retried] == [(0, "lost")]


def test_tracebacks_are_read_when_asked_for(mixed: HandBooks) -> None:
    """From the segment; where that is damaged, a sentence says so and the report is there all the same."""
    report = mixed.read()
    raised, _, lost, _ = (failure.last for failure in report.failures)
    assert report.traceback(raised) == TRACEBACK
    assert report.traceback(lost) == ""
    segment_path(mixed.run_dir.segments, 1, "worker-0001").unlink()
    assert "the traceback cannot be read" in report.traceback(raised)


def test_stacks_stand_for_the_traceback_of_what_was_ended(mixed: HandBooks) -> None:
    """Read from the file that was kept."""
    report = mixed.read()
    late = report.failures[-1].last
    assert report.traceback(late).endswith("stuck.py, line 3")
    mixed.run_dir.attempt_stack(4, 1).unlink()
    assert "the stack cannot be read" in report.traceback(late)


def test_the_log_of_a_lost_attempt_is_named_where_there_is_one(mixed: HandBooks) -> None:
    """Its path is in the report."""
    logs = [failure.last.log for failure in mixed.read().failures]
    assert logs == [None, None, mixed.run_dir.logs / "3.2.log", None]


def test_the_report_is_json(mixed: HandBooks) -> None:
    """With a format and version, every failure in full, and every attempt of it."""
    report = json.loads(json.dumps(mixed.read().to_json(), allow_nan=False))
    assert (report["format"], report["version"]) == ("qgexec-report", 4)
    assert (report["state"], report["stop_reason"]) == ("stopped", "interrupted")
    assert report["settings"]["context"]["output_run"] == "u/me/run"
    assert report["tasks"][0]["caveats"] == {"ANY_OUTPUTS_MISSING": 1, "NO_WORK": 1}
    assert report["total"]["workers_replaced"] == {"a thread 'poller'": 2, "an exit handler (save)": 1}
    raised, _, lost, late = report["failures"]
    assert raised["attempts"][0]["traceback"] == TRACEBACK
    assert raised["quantum_id"] == str(PLAN.quantum_id(1))
    assert (raised["data_id"], raised["state"], raised["n_blocked"]) == ({"detector": 2}, "failed", 2)
    assert [attempt["ended"] for attempt in lost["attempts"]] == ["out of memory", "lost"]
    assert lost["attempts"][0]["limit_bytes"] == 4_000_000_000
    assert lost["attempts"][1]["log"] == str(mixed.run_dir.logs / "3.2.log")
    assert "stuck.py" in late["attempts"][0]["traceback"]
    assert [attempt["ended"] for attempt in report["retried"][0]["attempts"]] == ["lost", "succeeded"]
    assert [(cause["n_quanta"], cause["n_blocked"], cause["quanta"]) for cause in report["causes"]] == [
        (2, 2, [1, 2]),
        (1, 0, [3]),
        (1, 0, [4]),
    ]
    assert set(report["total"]) == set(report["tasks"][0])


def test_every_key_of_the_json_is_documented(mixed: HandBooks) -> None:
    """In the docstring, by its name."""
    documented = RunReport.to_json.__doc__ or ""
    report = mixed.read().to_json()
    keys = [*report, *report["causes"][0]]
    assert [key for key in keys if f"``{key}``" not in documented] == []


@pytest.mark.parametrize(
    ("is_alive", "state"),
    [(True, RunState.RUNNING), (False, RunState.DRIVER_GONE), (None, RunState.PERHAPS_RUNNING)],
)
def test_a_driver_that_has_not_closed_its_books_is_looked_for(
    books: HandBooks, is_alive: bool | None, state: RunState
) -> None:
    """It runs, is gone, or is out of sight."""
    books.write(BEGAN, *started(0, 1))
    report = books.read(is_alive=is_alive)
    assert report.state is state
    assert report.total.running == 2


def test_a_run_without_a_driver_has_not_started(books: HandBooks) -> None:
    """Its journal is empty, and its report has all quanta."""
    report = books.read()
    assert report.state is RunState.NOT_STARTED
    assert (report.total.not_run, report.last_event_at, report.wall_s) == (8, None, 0.0)


def test_a_broken_run_says_so(books: HandBooks) -> None:
    """The driver closed its books, though not as it should."""
    books.write(BEGAN, RunEnded(BEGAN.at + 1, EndReason.BROKEN))
    assert books.read().state is RunState.BROKEN


def test_a_report_is_made_while_the_journal_is_written(books: HandBooks) -> None:
    """Half a line at the end does not count yet."""
    books.write(BEGAN, *started(0), succeeded(0))
    with books.journal.path.open("ab") as file:
        file.write(b'{"e":"start","t":17600')
    assert books.read(is_alive=True).total.succeeded == 1


def test_a_journal_of_another_plan_is_refused(books: HandBooks) -> None:
    """It names what does not fit."""
    books.write(BEGAN, AttemptStarted(BEGAN.at, 99, 1))
    with pytest.raises(JournalError, match=r"does not fit its plan: .*no quantum 99"):
        books.read()


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    """As every command does."""
    with pytest.raises(RunDirError, match="is not a run directory"):
        read_report(tmp_path)


def test_a_report_needs_no_stack() -> None:
    """`status` and `report` start fast: importing the module loads nothing of lsst, click or rich."""
    code = (
        "import sys, qgexec.reports.text; print([m for m in ('lsst', 'click', 'rich') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"
