"""Tests of `qgexec.reports.attemptlog`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.errors import UsageError
from qgexec.events import AttemptLost, AttemptReturned
from qgexec.reports.attemptlog import AttemptLog, find_log
from qgexec.reports.snapshot import read_fold
from tests.kit.runs.handbooks import BEGAN, PLAN, HandBooks, started, succeeded


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """Quantum 0 succeeded after a loss, 1 failed, 2 runs, 3 was taken back, and the rest has not begun."""
    books = HandBooks(tmp_path / "run")
    books.write(
        BEGAN,
        *started(0, 1, 2, 3),
        AttemptLost(BEGAN.at + 2, 0, 1, "worker 1 was killed", -9, 1, retried=True),
        *started(0, attempt=2),
        succeeded(0, 2),
        books.failed(1),
        AttemptReturned(BEGAN.at + 5, 3, 1),
    )
    return books


def find(books: HandBooks, index: int, attempt: int | None = None) -> AttemptLog:
    fold = read_fold(books.run_dir.journal, PLAN, books.run_dir.snapshot_file)
    return find_log(books.run_dir, PLAN, fold, index, attempt)


def test_kept_log(books: HandBooks) -> None:
    """That of an attempt that was lost is a file, with the stack beside it where there is one."""
    path, stack = books.run_dir.attempt_log(0, 1), books.run_dir.attempt_stack(0, 1)
    path.touch()
    assert find(books, 0, 1) == AttemptLog(0, 1, path, None)
    stack.touch()
    assert find(books, 0, 1) == AttemptLog(0, 1, path, stack)


def test_log_dataset(books: HandBooks) -> None:
    """The last attempt's, where it came to its own end and no file was kept."""
    assert find(books, 0) == AttemptLog(0, 2, None, None)
    assert find(books, 1) == AttemptLog(1, 1, None, None)


def test_log_that_is_being_written(books: HandBooks) -> None:
    """It is found by its first line."""
    for name, title in (("worker-0001", f"isr quantum {PLAN.quantum_id(0)} attempt 1"), ("driver", "")):
        (books.run_dir.logs / f"{name}.log").write_text(title)
    path = books.run_dir.logs / "worker-0002.log"
    path.write_text(f"isr quantum {PLAN.quantum_id(2)} attempt 1\nand so on\n")
    assert find(books, 2) == AttemptLog(2, 1, path, None)


@pytest.mark.parametrize(
    ("index", "attempt", "said", "advice"),
    [
        (0, 1, "no log of attempt 1 is there", "none yet"),
        (0, 3, "has no attempt 3", "2 attempts"),
        (0, 0, "has no attempt 0", "2 attempts"),
        (1, 2, "has no attempt 2", "one attempt"),
        (2, None, "no log of attempt 1 is there", "none yet"),
        (3, None, "no log of attempt 1 is there", "taken back"),
        (4, None, "has not been started", "prerequisites"),
        (6, None, "has not been started", "blocked by the failure of quantum 1 (isr{detector: 2})"),
        (7, None, "has not been started", "blocked by the failure of quantum 1 (isr{detector: 2})"),
    ],
)
def test_no_log(books: HandBooks, index: int, attempt: int | None, said: str, advice: str) -> None:
    """The error says why."""
    with pytest.raises(UsageError) as caught:
        find(books, index, attempt)
    assert said in caught.value.message
    assert advice in caught.value.hint
