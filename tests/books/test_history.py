"""`qgexec.books.history`: what a journal tells whoever goes on with its run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.books.codec import encode
from qgexec.books.history import History, writer_of
from qgexec.books.journal import Journal, Writer, journal_file
from qgexec.errors import JournalError, RunHeldError
from qgexec.events import (
    AttemptFailed,
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    Birth,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.quantum import Outcome, OutcomeStatus, SegmentRef
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import State
from qgexec.testing import make_plan
from tests.kit.runs.damage import flip_digit

_DRIVER = RunStarted(1.0, "host", 10, 0.5, "pool", 3)


def _ok(index: int, at: float, *, attempt: int = 1, detail: SegmentRef | None = None) -> AttemptSucceeded:
    outcome = Outcome(index, attempt, OutcomeStatus.SUCCEEDED, at - 1, at, detail=detail)
    return AttemptSucceeded(at, outcome)


def _bad(index: int, at: float, *, retried: bool = False) -> AttemptFailed:
    detail = SegmentRef("0001-w.jsonl", 900 + index, 5)
    outcome = Outcome(index, 1, OutcomeStatus.FAILED, at - 1, at, detail=detail)
    return AttemptFailed(at, outcome, retried=retried)


def _ref(number: int) -> SegmentRef:
    return SegmentRef("0001-w.jsonl", number, 5)


def _history(*events: Event, plan: str = "a b c -> d") -> History:
    history = History(make_plan(plan), Policy())
    for event in events:
        history.apply(event)
    return history


def _written(folder: Path, *files: tuple[Writer | None, list[Event]]) -> Path:
    journal = folder / "journal"
    journal.mkdir()
    for epoch, (writer, events) in enumerate(files):
        with Journal.create(journal, after=epoch, writer=writer) as file:
            for event in events:
                file.append(event)
    return journal


def test_what_awaits_ingest() -> None:
    """Details of quanta that ended for good are kept until they are ingested, of retried attempts never."""
    history = _history(
        *(AttemptStarted(1.0, index, 1) for index in range(3)),
        _ok(0, 2.0, detail=_ref(1)),
        _ok(1, 2.0, detail=_ref(2)),
        _bad(2, 2.0, retried=True),
        OutputsIngested(3.0, (0,), 1),
    )
    assert history.awaiting_ingest == {1: _ref(2)}


def test_what_was_left_behind() -> None:
    """What an attempt left that no other has followed yet is to be removed, unless it ended for good."""
    history = _history(
        *(AttemptStarted(1.0, index, 1) for index in range(3)),
        _bad(0, 2.0, retried=True),
        AttemptReturned(2.0, 1, 1),
        _bad(2, 2.0),
    )
    assert history.left_behind == {0, 1}
    history.apply(AttemptStarted(3.0, 0, 2))
    assert history.left_behind == {1}


def test_reopening_keeps_what_a_failure_left() -> None:
    """What a failed quantum left is ingested although it is to be run again: it may never be."""
    history = _history(
        AttemptStarted(1.0, 0, 1),
        AttemptStarted(1.0, 1, 1),
        _bad(0, 2.0),
        _ok(1, 2.0, detail=_ref(2)),
    )
    history.apply(RunReopened(3.0))
    assert history.awaiting_ingest.keys() == {0, 1}
    assert history.scheduler.state(0) is State.READY


def test_revoked_success_is_not_ingested() -> None:
    """A success whose outputs were lost is not taken into the registry."""
    history = _history(AttemptStarted(1.0, 0, 1), _ok(0, 2.0, detail=_ref(2)), RunReopened(3.0, (0,)))
    assert not history.awaiting_ingest
    assert history.scheduler.state(0) is State.READY


def test_attempts_in_the_air() -> None:
    """An attempt is in the air from its start to any end of it."""
    history = _history(
        *(AttemptStarted(1.0, index, 1) for index in range(3)), _ok(0, 2.0), AttemptReturned(2.0, 1, 1)
    )
    assert history.in_the_air == {2: AttemptStarted(1.0, 2, 1)}


def test_workers_of_the_last_driver_only() -> None:
    """Workers are known until their end is; those of a driver are gone before the next begins."""
    first, second = (WorkerStarted(1.0, number, "host", number, 0.5) for number in (1, 2))
    history = _history(_DRIVER, first, second, WorkerEnded(2.0, 1, 0))
    assert list(history.workers.values()) == [second]
    history.apply(_DRIVER)
    assert not history.workers


def test_recent_successes() -> None:
    """Only successes of the last minutes before the last event are in doubt after a power cut."""
    history = _history(
        *(AttemptStarted(1.0, index, 1) for index in range(3)),
        _ok(0, 10.0, detail=_ref(1)),
        _ok(1, 1000.0, detail=_ref(2)),
        _bad(2, 1001.0),
        RunReopened(1002.0),
        AttemptStarted(1002.0, 2, 2),
    )
    assert list(history.recent_successes()) == [(1, _ref(2))]


@pytest.mark.parametrize(
    ("events", "is_open"),
    [([_DRIVER], True), ([_DRIVER, RunEnded(2.0, EndReason.STOPPED)], False)],
)
def test_who_holds_it(tmp_path: Path, events: list[Event], is_open: bool) -> None:
    """A driver holds the run from its first word to its last."""
    journal = _written(tmp_path, (writer_of(_DRIVER), events))
    history = History.read(journal, make_plan("a b c"), Policy())
    assert (history.epoch, history.writer, history.is_open) == (1, writer_of(_DRIVER), is_open)


def test_a_claim_without_a_word(tmp_path: Path) -> None:
    """Whoever created the last file holds the run although it has not said anything yet."""
    later = Writer("host", 11, 0.6)
    journal = _written(
        tmp_path, (writer_of(_DRIVER), [_DRIVER, RunEnded(2.0, EndReason.STOPPED)]), (later, [])
    )
    history = History.read(journal, make_plan("a b c"), Policy())
    assert (history.epoch, history.writer, history.is_open) == (2, later, True)


def test_a_claim_that_was_torn(tmp_path: Path) -> None:
    """A last file without a whole header has an unknown writer, and counts as held."""
    journal = _written(tmp_path, (writer_of(_DRIVER), [_DRIVER, RunEnded(2.0, EndReason.STOPPED)]))
    journal_file(journal, 2).write_bytes(b'{"format":"qgexec-jo')
    history = History.read(journal, make_plan("a b c"), Policy())
    assert (history.epoch, history.writer, history.is_open) == (2, None, True)


def test_another_plan(tmp_path: Path) -> None:
    """A journal that does not fit the plan says so, and what to do."""
    journal = _written(tmp_path, (None, [_DRIVER, AttemptStarted(1.0, 2, 1)]))
    with pytest.raises(JournalError, match="does not fit its plan"):
        History.read(journal, make_plan("a"), Policy())


def test_only_one_can_follow(tmp_path: Path) -> None:
    """Of two that know the same journal, one gets its next file; nothing of the other's is left."""
    journal = _written(tmp_path, (None, [_DRIVER]))
    with Journal.create(journal, after=1) as first:
        with pytest.raises(RunHeldError, match="in hand a moment ago"):
            Journal.create(journal, after=1)
        first.check_held()
    assert [path.name for path in sorted(journal.iterdir())] == ["0001.jsonl", "0002.jsonl"]


def test_overridden(tmp_path: Path) -> None:
    """A writer that was overridden by force finds out."""
    journal = _written(tmp_path, (None, [_DRIVER]))
    first = Journal.create(journal, after=1)
    second = Journal.create(journal, after=2)
    with first, second, pytest.raises(RunHeldError, match="has taken over"):
        first.check_held()


def test_two_readings_of_one_start(tmp_path: Path) -> None:
    """A driver that closed its books has closed them, also where its start was read a little differently."""
    header = Writer(_DRIVER.host, _DRIVER.pid, _DRIVER.pid_started_at + 1.0)
    journal = _written(tmp_path, (header, [_DRIVER, RunEnded(2.0, EndReason.STOPPED)]))
    assert not History.read(journal, make_plan("a b c"), Policy()).is_open


# --- damaged lines --------------------------------------------------------------------------------------


def _two_drivers(folder: Path) -> tuple[Path, list[Event]]:
    """Write a run that was interrupted, and gone on with; return its journal and what is in it."""
    born = Birth("boot", "pid:[1]", 7)
    first: list[Event] = [
        replace(_DRIVER, birth=born),
        WorkerStarted(1.0, 1, "host", 12, 0.75, born),
        *(AttemptStarted(1.5, index, 1) for index in range(3)),
        _ok(0, 2.0, detail=_ref(1)),
        _bad(1, 2.0, retried=True),
        AttemptStarted(2.5, 1, 2),
        _bad(2, 3.0),
        AttemptReturned(3.5, 1, 2),
        OutputsIngested(3.75, (0,), 1),
        RunEnded(4.0, EndReason.STOPPED),
    ]
    second: list[Event] = [
        RunStarted(5.0, "host", 20, 4.5, "pool", 3, born),
        RunReopened(5.0),
        AttemptStarted(5.5, 1, 3),
        AttemptStarted(5.5, 2, 2),
        _ok(2, 6.0, attempt=2, detail=_ref(3)),
        _ok(1, 6.0, attempt=3, detail=_ref(2)),
        AttemptStarted(7.0, 3, 1),
        _ok(3, 8.0, detail=_ref(4)),
        RunEnded(9.0, EndReason.COMPLETED),
    ]
    writers = (Writer("host", 10, 0.5, born), Writer("host", 20, 4.5, born))
    journal = _written(folder, *zip(writers, (first, second), strict=True))
    return journal, [*first, *second]


@pytest.mark.parametrize(
    ("file", "number"), [(1, number) for number in range(1, 14)] + [(2, number) for number in range(1, 11)]
)
def test_whichever_line_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: int, number: int
) -> None:
    """It is named, the run can be read, and no more is in doubt than the quantum that it was about."""
    journal, events = _two_drivers(tmp_path)
    path = journal_file(journal, file)
    flip_digit(path, number)
    history = History.read(journal, make_plan("a b c -> d"), Policy())
    assert f"{path}:{number}: damaged line" in caplog.text
    gone = None if number == 1 else events[number - 2 + (12 if file == 2 else 0)]
    in_doubt = {gone.index} if isinstance(gone, AttemptSucceeded) else set()
    assert history.in_the_air.keys() == in_doubt
    states = [history.scheduler.state(index) for index in range(4)]
    assert states == [State.RUNNING if index in in_doubt else State.SUCCEEDED for index in range(4)]
    assert history.awaiting_ingest.keys() >= {1, 2, 3} - in_doubt
    assert history.is_open == ((file, number) in {(2, 2), (2, 10)})


def test_a_worker_whose_line_is_damaged(tmp_path: Path) -> None:
    """It is waited for as far as the line can be read: if that is wrong, there is no such process."""
    born = Birth("boot", "pid:[1]", 7)
    journal = _written(tmp_path, (None, [_DRIVER, WorkerStarted(1.0, 1, "host", 12, 0.75, born)]))
    path = journal_file(journal, 1)
    path.write_bytes(path.read_bytes().replace(b'"w":1', b'"w":3'))
    history = History.read(journal, make_plan("a b c"), Policy())
    assert [worker.pid for worker in history.workers.values()] == [12]


def test_how_far_it_was_read(tmp_path: Path) -> None:
    """The next writer's file says so, and later lines are nothing."""
    journal, _ = _two_drivers(tmp_path)
    history = History.read(journal, make_plan("a b c -> d"), Policy())
    Journal.create(journal, after=2, read=history.positions).close()
    with journal_file(journal, 2).open("ab") as file:
        file.write(encode(RunReopened(10.0, (0, 1, 2, 3))))
    again = History.read(journal, make_plan("a b c -> d"), Policy())
    assert again.scheduler.counts() == history.scheduler.counts()
