"""Tests of `qgexec.reports.failures`."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSucceeded,
    AttemptTimedOut,
    FailureEvent,
)
from qgexec.quantum import DataIdValue, ExceptionSummary, Outcome, OutcomeStatus, SegmentRef
from qgexec.reports.failures import (
    AttemptRecord,
    TroubledQuantum,
    attempt_record,
    group_failures,
    normalise,
    reason_of,
)
from qgexec.scheduling.states import State

DETAIL = SegmentRef("0001-driver.jsonl", 50, 60)


class Everything:
    """All files were kept."""

    def log(self, index: int, attempt: int) -> Path | None:
        return Path(f"{index}.{attempt}.log")

    def stack(self, index: int, attempt: int) -> Path | None:
        return Path(f"{index}.{attempt}.stack")


def outcome(status: OutcomeStatus, error: ExceptionSummary | None = None) -> Outcome:
    return Outcome(7, 2, status, 100.0, 103.0, 1.5, 1000, "node1", 50, exception=error, detail=DETAIL)


def record(event: FailureEvent | AttemptSucceeded | AttemptReturned) -> AttemptRecord:
    return attempt_record(event, Everything())


class TestRecords:
    """What is known of one attempt."""

    def test_raised(self) -> None:
        """Type, message, place, exit code, resources, and where its traceback and log are."""
        error = ExceptionSummary("builtins.ValueError", "no stars", "isr.py:1 run", 20)
        found = record(AttemptFailed(104.0, outcome(OutcomeStatus.FAILED, error)))
        assert (found.number, found.at, found.ended, found.ended_badly) == (2, 104.0, "raised", True)
        assert (found.exception_type, found.message, found.where, found.exit_code) == (
            "builtins.ValueError",
            "no stars",
            "isr.py:1 run",
            20,
        )
        assert (found.wall_s, found.cpu_s, found.peak_rss_bytes, found.host) == (3.0, 1.5, 1000, "node1")
        assert (found.detail, found.log, found.stack) == (DETAIL, Path("7.2.log"), Path("7.2.stack"))

    def test_raised_nothing(self) -> None:
        """A client's executor may fail without saying of what."""
        found = record(AttemptFailed(104.0, outcome(OutcomeStatus.FAILED)))
        assert (found.exception_type, found.message) == (None, "it failed without an exception")

    @pytest.mark.parametrize(
        ("exit_code", "ended"), [(-9, "lost"), (None, "lost"), (-11, "signalled"), (9, "exited")]
    )
    def test_lost(self, exit_code: int | None, ended: str) -> None:
        """The exit status tells infrastructure from what the task did to itself."""
        found = record(AttemptLost(104.0, 7, 2, "worker 3 died", exit_code, 3, 5000))
        assert (found.ended, found.exit_code, found.worker) == (ended, exit_code, 3)
        assert (found.message, found.peak_rss_bytes, found.wall_s) == ("worker 3 died", 5000, None)

    def test_timed_out(self) -> None:
        """Its stack is there."""
        found = record(AttemptTimedOut(104.0, 7, 2, 4.5, 3))
        assert (found.ended, found.message) == ("timed out", "ran over its time limit of 4.5 s")
        assert found.stack == Path("7.2.stack")

    def test_out_of_memory(self) -> None:
        """What it used, and of how much."""
        found = record(AttemptOutOfMemory(104.0, 7, 2, 5_100_000_000, 4_000_000_000, worker=3))
        assert (found.ended, found.message) == ("out of memory", "out of memory: used 5.1 GB of 4.0 GB")
        assert (found.peak_rss_bytes, found.limit_bytes) == (5_100_000_000, 4_000_000_000)

    def test_ended_well(self) -> None:
        """Nothing is said of why."""
        found = record(AttemptSucceeded(104.0, outcome(OutcomeStatus.SUCCEEDED)))
        assert (found.ended, found.ended_badly, found.message) == ("succeeded", False, "")
        taken_back = record(AttemptReturned(104.0, 7, 2))
        assert (taken_back.ended, taken_back.ended_badly, taken_back.wall_s) == ("returned", False, None)


@pytest.mark.parametrize(
    ("used", "limit", "by_kernel", "said"),
    [
        (5_100_000_000, 4_000_000_000, False, "out of memory: used 5.1 GB of 4.0 GB"),
        (5_100_000_000, 8_000_000_000, True, "out of memory: used 5.1 GB of 8.0 GB, ended by the kernel"),
        (None, 8_000_000_000, True, "out of memory: there are 8.0 GB, ended by the kernel"),
        (None, None, True, "out of memory: how much it used is unknown, ended by the kernel"),
    ],
)
def test_out_of_memory_in_words(used: int | None, limit: int | None, by_kernel: bool, said: str) -> None:
    """With what is known of it."""
    assert reason_of(AttemptOutOfMemory(1.0, 0, 1, used, limit, by_kernel)) == said


@pytest.mark.parametrize(
    ("message", "normal"),
    [
        ("only 3 stars, need 5.5e-3", "only # stars, need #"),
        (
            "bad pixels in {instrument: 'LSSTCam', visit: 42}",
            "bad pixels in {instrument: '<instrument>', visit: #}",
        ),
        ("no flat for LSSTCam detector=12 band=r", "no flat for <instrument> detector=# band=<band>"),
        ("a radius r of 3", "a radius r of #"),
        ("<object at 0x7f3a>", "<object at #>"),
        ("dataset 019ddd2e-0000-7000-8000-00000000ab12 is gone", "dataset <id> is gone"),
        ("cannot read /repo/u/me/run/raw_42.fits: gone", "cannot read <path>: gone"),
        ("s3://bucket/raw/x.fits, 404", "<path>, #"),
        ("3 m/s and/or 5", "# m/s and/or #"),
        ("shapes (1, 2, 3) and [4 5]", "shapes (#) and [#]"),
        ("", ""),
    ],
)
def test_what_differs_is_taken_out(message: str, normal: str) -> None:
    """Numbers, data ID values, UUIDs, addresses and paths; words stay."""
    data_id: dict[str, DataIdValue] = {"instrument": "LSSTCam", "visit": 42, "detector": 12, "band": "r"}
    assert normalise(message, data_id) == normal


def test_cut_messages_agree() -> None:
    """A summary is cut where its numbers happen to end: what is behind that is not looked at."""
    long, longer = ("value " + "9" * n + " is wrong " * 60 for n in (3, 30))
    assert normalise(long[:500], {}) == normalise(longer[:500], {})


def troubled(index: int, ended: str, message: str, label: str = "isr", **kwargs: object) -> TroubledQuantum:
    attempt = AttemptRecord(1, 100.0, ended, message, **kwargs)  # type: ignore[arg-type]
    return TroubledQuantum(index, UUID(int=index), label, {"visit": index}, State.FAILED, (attempt,), index)


class TestGroups:
    """What looks like one and the same trouble."""

    def test_same_place_and_message(self) -> None:
        """Numbers in the message do not matter; the most frequent comes first, with what it blocks."""
        error = {"exception_type": "builtins.ValueError", "where": "isr.py:7 run"}
        groups = group_failures(
            [
                troubled(1, "raised", "no image of visit 1", **error),
                troubled(2, "raised", "only 2 stars", **error),
                troubled(3, "raised", "only 14 stars", label="other", **error),
            ]
        )
        assert [(g.message, [q.index for q in g.quanta]) for g in groups] == [
            ("only # stars", [2, 3]),
            ("no image of visit #", [1]),
        ]
        assert [group.n_blocked for group in groups] == [5, 1]

    def test_different_places(self) -> None:
        """The same words from two places are two causes."""
        error = {"exception_type": "builtins.ValueError"}
        failures = [troubled(i, "raised", "no", where=f"isr.py:{i} run", **error) for i in (1, 2)]
        assert len(group_failures(failures)) == 2

    @pytest.mark.parametrize(("ended", "n_groups"), [("timed out", 2), ("out of memory", 2), ("lost", 1)])
    def test_limits_are_a_tasks_own(self, ended: str, n_groups: int) -> None:
        """Over one's time or memory: by task. A lost worker has nothing to do with the task."""
        failures = [troubled(i, ended, f"it was {i}", label=label) for i, label in enumerate(("isr", "b"))]
        assert len(group_failures(failures)) == n_groups

    def test_signals_differ(self) -> None:
        """By their number, which is taken out of the message."""
        failures = [
            troubled(n, "signalled", f"worker 1 was killed by signal {n}", exit_code=-n) for n in (6, 11)
        ]
        assert len(group_failures(failures)) == 2

    def test_example_has_something_to_look_at(self) -> None:
        """A traceback, a stack or a log, if any of them has."""
        (group,) = group_failures(
            [troubled(1, "timed out", "late"), troubled(2, "timed out", "late", stack=Path("2.1.stack"))]
        )
        assert group.example.index == 2
