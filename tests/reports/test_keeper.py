"""`qgexec.reports.keeper`: snapshots of a run while a driver is at it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qgexec.events import Event
from qgexec.reports import keeper
from qgexec.reports.keeper import keep, keeping_snapshots
from tests.kit.runs.handbooks import HandBooks, started, succeeded

_DEADLINE_S = 90.0
"""Longest wait for something that must happen: reached only where it does not."""


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run that has begun."""
    books = HandBooks(tmp_path / "run")
    books.write(*started(0))
    return books


def n_lines(snapshot: Path) -> int:
    """Return how many lines of the journal a snapshot covers; 0 if there is none."""
    if not snapshot.exists():
        return 0
    with np.load(snapshot) as file:
        header = json.loads(file["header"].tobytes())
    return sum(lines for _, _, lines, _ in header["files"])


def children() -> set[str]:
    """Return the process IDs of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_process_of_its_own_makes_them(books: HandBooks) -> None:
    """It reads what is there, makes a snapshot, and is gone when the driver lets go of it."""
    before = children()
    with keeping_snapshots(books.run_dir, 5, worth=5, lines_between=1, end_s=_DEADLINE_S):
        assert len(children()) == len(before) + 1
    assert books.run_dir.snapshot_file.exists()
    assert children() == before


def test_small_runs_have_none(books: HandBooks) -> None:
    """Their journals are read in no time."""
    before = children()
    with keeping_snapshots(books.run_dir, 5, worth=6, lines_between=1):
        assert children() == before
    assert not books.run_dir.snapshot_file.exists()


def test_one_each_time_that_enough_has_come(books: HandBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again and again, and stops when standard input closes."""
    covered: list[int] = []
    more: list[list[Event] | None] = [started(1), [succeeded(0), succeeded(1)], started(2), None]

    def waits(*_: object) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        covered.append(n_lines(books.run_dir.snapshot_file))
        events = more.pop(0)
        if events is None:
            return [0], [], []
        books.write(*events)
        return [], [], []

    monkeypatch.setattr(select, "select", waits)
    keep(books.run_dir.path, os.getppid(), lines_between=3)
    assert covered == [0, 3, 3, 6]


def test_it_ends_with_its_driver(books: HandBooks) -> None:
    """A driver that is killed takes it along, though nobody closes what it listens to."""
    listening, told = os.pipe()
    driver = os.fork()
    if driver == 0:
        with keeping_snapshots(books.run_dir, 5, worth=5, lines_between=1):
            os.write(told, " ".join(children()).encode())
            signal.pause()
    (child,) = os.read(listening, 100).split()
    descriptor = os.pidfd_open(int(child))
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    ready, _, _ = select.select([descriptor], [], [], _DEADLINE_S)
    assert ready
    for each in (descriptor, listening, told):
        os.close(each)


def test_one_whose_driver_is_gone_reads_nothing(books: HandBooks) -> None:
    """Another process is its parent by then."""
    keep(books.run_dir.path, driver=-1, lines_between=1)
    assert not books.run_dir.snapshot_file.exists()


def test_books_that_cannot_be_read_are_the_drivers_affair(books: HandBooks) -> None:
    """The driver says what is wrong with them."""
    books.run_dir.plan_file.unlink()
    pid = os.fork()
    if pid == 0:
        keeper.main([str(books.run_dir.path), str(os.getppid()), "1"])
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
