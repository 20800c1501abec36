"""Tests of `qgexec.reports.text`."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qgexec.books.journal import segment_path
from qgexec.events import COLLECTING, AttemptLost, AttemptStarted, EndReason, RunEnded
from qgexec.reports.report import RunReport, Submission
from qgexec.reports.text import format_report, format_status
from tests.kit.runs.handbooks import BEGAN, HandBooks, started, succeeded, write_mixed


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run directory whose journal is empty."""
    return HandBooks(tmp_path / "run")


@pytest.fixture
def mixed(books: HandBooks) -> RunReport:
    """The report of a run in which everything happened."""
    write_mixed(books)
    return books.read()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_text_fits_the_terminal(mixed: RunReport, width: int) -> None:
    """All lines but paths, tracebacks and what is in the head."""
    lines = format_report(mixed, width=width).split("\n\n", 1)[1].splitlines()
    free = ("     ", "   Traceback", "   Stacks")
    assert [line for line in lines if len(line) > width and not line.startswith(free)] == []


def test_what_was_submitted_fits_the_terminal(mixed: RunReport) -> None:
    """The batch system's numbers are told as a user types them."""
    ticket = {"arrays": [*range(100, 140)], "closing": 140}
    found = replace(mixed, submitted=Submission("slurm", 1, "qgexec-1c42e7b0d9aa-1", 4000, ticket))
    text = format_report(found, width=80)
    first, rest = text[text.index("Submitted to") :].split("\n", 1)
    assert first.startswith("Submitted to   slurm, 4000 jobs as qgexec-1c42e7b0d9aa-1 (arrays 100, 101")
    assert len(first) <= 80
    assert "139; closing 140)" in " ".join(rest.split())
    assert rest.startswith(" " * 15)


def test_a_run_that_mostly_had_no_driver(mixed: RunReport) -> None:
    """It began when it was made, whenever its last driver came; a batch system's time counts."""
    assert mixed.last_event_at is not None
    assert mixed.driver is not None
    made = mixed.last_event_at - 7200
    found = replace(
        mixed,
        wall_s=90.0,
        settings=replace(mixed.settings, created_at=made),
        driver=replace(mixed.driver, at=mixed.last_event_at - 10),
    )
    lines = format_status(found, width=100).splitlines()
    assert f"Began          {datetime.fromtimestamp(made, UTC):%Y-%m-%d %H:%M:%S} UTC" in lines
    (line,) = (line for line in lines if line.startswith("Time "))
    assert line.startswith("Time           2.0 h since it began, 1.5 min of it with a driver; ")
    driven = replace(found, wall_s=7190.0)
    assert "Time           2.0 h wall, " in format_status(driven, width=100)


def test_a_run_that_was_collected(mixed: RunReport) -> None:
    """What had executed it stays its model."""
    assert mixed.driver is not None
    found = replace(mixed, driver=replace(mixed.driver, model=COLLECTING))
    assert f"Model          {mixed.settings.model}; collected by process" in format_status(found)


def test_the_text_says_what_failed_and_why(mixed: RunReport) -> None:
    """Failures that look the same are one cause with one traceback; escape sequences are not obeyed."""
    text = format_report(mixed, width=100)
    assert "Failures: 4 quanta, 3 causes; 2 quanta blocked" in text
    assert "1. 2 x builtins.ValueError, blocks 2, at isr.py:7 run" in text
    assert "quantum 1, attempt 1, blocks 2: isr{detector: 2}" in text
    assert text.count("Traceback (most recent call last)") == 1
    assert "worker 2 was killed by signal 9 (SIGKILL)" in text
    assert f"log: {mixed.run_dir.logs}/3.2.log" in text
    assert "earlier: attempt 1, out of memory, 5.1 GB" in text
    assert "ran over its time limit of 5 s" in text
    assert "Stacks of quantum 4, attempt 1:" in text
    assert "stuck.py, line 3" in text
    assert "NO_WORK" in text
    assert "\nWorker replaced 2 times: isr leaves a thread 'poller'\n" in text
    assert "\nWorker replaced once: calibrate leaves an exit handler (save)\n" in text
    assert "\x1b" not in text


def test_the_text_says_what_was_retried(mixed: RunReport) -> None:
    """How many succeeded only after that, and what the earlier attempts died of."""
    lines = format_report(mixed, width=100).splitlines()
    place = lines.index("Retries: 2; 1 quantum succeeded only after one. Earlier attempts died of")
    assert [line.split() for line in lines[place + 2 : place + 5]] == [
        ["task", "cause", "attempts", "quanta"],
        ["isr", "lost", "(SIGKILL)", "1", "1"],
        ["isr", "out", "of", "memory", "1", "1"],
    ]
    header = next(line for line in lines if line.startswith("task"))
    assert "retried" in header


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (-11, "1. 1 x signalled (SIGSEGV), blocks 1"),
        (-99, "1. 1 x signalled (99), blocks 1"),
        (9, "1. 1 x exited (9), blocks 1"),
        (-9, "1. 1 x lost (SIGKILL), blocks 1"),
        (None, "1. 1 x lost, blocks 1"),
    ],
)
def test_how_a_worker_died(books: HandBooks, exit_code: int | None, said: str) -> None:
    """By the name of the signal where it has one."""
    books.write(BEGAN, *started(0), AttemptLost(BEGAN.at + 2, 0, 1, "worker 1 died", exit_code, 1))
    assert said in format_report(books.read()).splitlines()


def test_a_traceback_that_is_lost_does_not_cost_the_report(mixed: RunReport) -> None:
    """A sentence says so in its place."""
    segment_path(mixed.run_dir.segments, 1, "worker-0001").unlink()
    assert "the traceback cannot be read" in format_report(mixed)


def test_many_alike_are_cut_short(books: HandBooks) -> None:
    """Ten are named, the rest is counted."""
    books.write(BEGAN, *started(0, 1), books.failed(0, where="b.py:2 f"), books.failed(1))
    report = books.read()
    many = tuple(report.failures[:1] * 12)
    text = format_report(replace(report, failures=many))
    assert "1. 12 x builtins.ValueError, blocks 12, at b.py:2 f" in text
    assert "and 2 more" in text


def test_many_causes_are_cut_short(books: HandBooks) -> None:
    """Twenty are shown in full, the rest is counted."""
    books.write(BEGAN, *started(0), books.failed(0))
    report = books.read()
    (failure,) = report.failures
    causes = [replace(failure.attempts[0], where=f"isr.py:{line} run") for line in range(23)]
    many = tuple(replace(failure, attempts=(cause,)) for cause in causes)
    text = format_report(replace(report, failures=many))
    assert "20. 1 x" in text
    assert "21. 1 x" not in text
    assert text.splitlines()[-1] == "And 3 more causes of 3 quanta; qgexec report --json lists all"


def test_failures_in_different_places_are_different_causes(books: HandBooks) -> None:
    """The most frequent comes first."""
    books.write(BEGAN, *started(0, 1, 2), books.failed(0, where="b.py:2 f"), books.failed(1), books.failed(2))
    text = format_report(books.read())
    assert text.index("1. 2 x builtins.ValueError, blocks 2, at isr.py:7 run") < text.index(
        "2. 1 x builtins.ValueError, blocks 1, at b.py:2 f"
    )


def test_columns_without_anything_to_say_are_left_out(books: HandBooks) -> None:
    """A run without trouble has a small table."""
    books.write(BEGAN, *started(*range(5)), *map(succeeded, range(5)))
    books.write(*started(5, 6), succeeded(5), succeeded(6), *started(7), succeeded(7))
    books.write(RunEnded(BEGAN.at + 9, EndReason.COMPLETED))
    report = books.read()
    assert report.all_succeeded
    text = format_report(report)
    header = next(line for line in text.splitlines() if line.startswith("task"))
    assert header.split() == ["task", "quanta", "succeeded", "failed"]
    assert "Retries" not in text


def test_status_is_short(mixed: RunReport) -> None:
    """How far it is, and when it was last heard of."""
    text = format_status(mixed, width=80, now=BEGAN.at + 9 + 120)
    assert "1 of 8 quanta succeeded (12 %), 4 failed, 2 blocked, 2 retried" in text
    assert "Last event     2.0 min ago" in text
    assert "stopped (interrupted)" in text
    assert "Traceback" not in text


def test_a_run_that_has_not_started(books: HandBooks) -> None:
    """It says so, and that nothing is done."""
    assert "0 of 8 quanta succeeded (0 %)" in format_status(books.read())
    assert "not started" in format_report(books.read())


def test_a_run_that_goes_on(books: HandBooks) -> None:
    """It says what runs, and for how long."""
    books.write(BEGAN, AttemptStarted(BEGAN.at + 2, 2, 1), *started(0, 1))
    text = format_status(books.read(is_alive=True), now=BEGAN.at + 122)
    assert "0 of 8 quanta succeeded (0 %), 3 running" in text
    assert text.splitlines()[-5:] == [
        "Running, the longest first",
        "",
        "   quantum 0, attempt 1, for 2.0 min: isr{detector: 1}",
        "   quantum 1, attempt 1, for 2.0 min: isr{detector: 2}",
        "   quantum 2, attempt 1, for 2.0 min: isr{detector: 3}",
    ]


def test_a_run_whose_driver_is_gone(books: HandBooks) -> None:
    """It says what ran then, since when, and how to go on; `report` says so, too."""
    books.write(BEGAN, *started(0))
    report = books.read(is_alive=False)
    for text in (format_status(report), format_report(report)):
        assert "driver gone; go on with qgexec resume" in text
        assert "Ran when the driver went away" in text
        assert "quantum 0, attempt 1, since 20" in text


def test_what_runs_is_cut_short(books: HandBooks) -> None:
    """Five are named, the rest is counted."""
    books.write(BEGAN, *started(0))
    report = books.read(is_alive=True)
    text = format_status(replace(report, running=report.running * 7))
    assert text.count("quantum 0, attempt 1, for ") == 5
    assert text.endswith("\n   and 2 more")


def test_what_quanta_took_is_set_against_what_they_ask_for(mixed: RunReport) -> None:
    """Memory with percentiles and the request, wall time, CPU time useful and wasted."""
    isr = replace(mixed.tasks[0], requested_memory_bytes=4_000_000_000)
    lines = format_report(replace(mixed, tasks=(isr, *mixed.tasks[1:])), width=80).splitlines()
    at = lines.index("Peak memory of a quantum")
    assert lines[at + 2].split() == ["task", "50", "%", "95", "%", "max", "requested", "max", "of", "it"]
    assert lines[at + 3].split() == ["isr", "250", "MB", "5.1", "GB", "5.1", "GB", "4.0", "GB", "128", "%"]
    at = lines.index("Wall time of a quantum; CPU time of all")
    assert lines[at + 2].split() == ["task", "50", "%", "95", "%", "max", "useful", "wasted"]
    # Two that raised (1.5 s each), and three that left no figure: 1 s, 3 s, 4 s and 5 s of wall time.
    assert lines[at + 3].split() == ["isr", "2.0", "s", "2.0", "s", "2.0", "s", "1.5", "s", "16.0", "s"]
    assert "CPU time       1.5 s useful, 16.0 s wasted" in lines


@pytest.mark.parametrize("width", [40, 80])
def test_no_count_is_left_out(mixed: RunReport, width: int) -> None:
    """What has no room goes to a second table."""
    text = format_report(mixed, width=width)
    for title in ("quanta", "succeeded", "failed", "blocked", "retried", "not run", "ingested"):
        assert re.search(rf"^task .*{title}", text, re.MULTILINE)


def test_the_next_step_is_named(mixed: RunReport, books: HandBooks) -> None:
    """Each cause has its own; commands are whole, to be typed as they stand."""
    text = format_report(mixed, width=100)
    assert f"     qgexec debug {books.run_dir.path} 1" in text.splitlines()
    assert "Next: qgexec resume; as far as is known it was not the task's doing" in text
    assert "with a longer requestWalltime for isr" in text


@pytest.mark.parametrize(
    ("ended", "exit_code", "said"),
    [
        ("raised", 21, "Next: the graph or the configuration is wrong; make a new graph"),
        ("raised", 20, "Next: run it again, here, under pdb"),
        ("exited", 3, "Next: read its log"),
        ("out of memory", None, "with more requestMemory for isr"),
    ],
)
def test_the_next_step_depends_on_the_cause(
    mixed: RunReport, ended: str, exit_code: int | None, said: str
) -> None:
    """What helps after one cause is no help after another."""
    failure = mixed.failures[0]
    last = replace(failure.last, ended=ended, exit_code=exit_code)
    report = replace(mixed, failures=(replace(failure, attempts=(last,)),))
    assert [line for line in format_report(report, width=200).splitlines() if said in line]
