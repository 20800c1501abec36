"""Tests of `qgexec.reports.snapshot`: what it says is what the journal says, or it is not used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qgexec.books.codec import encode
from qgexec.books.journal import Journal, Position, read_events
from qgexec.errors import JournalError
from qgexec.events import AttemptStarted, EndReason, Event, RunEnded, StopReason, StopRequested
from qgexec.reports import snapshot
from qgexec.reports.fold import Fold
from qgexec.reports.snapshot import SnapshotReader, read_fold
from qgexec.testing import make_plan
from tests.kit.runs.handbooks import BEGAN, PLAN, HandBooks, started, succeeded, write_mixed


class NoFiles:
    """Nothing was kept."""

    def log(self, index: int, attempt: int) -> Path | None:
        return None

    def stack(self, index: int, attempt: int) -> Path | None:
        return None


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run in which everything happened, and its snapshot."""
    books = HandBooks(tmp_path / "run")
    write_mixed(books)
    read(books)
    assert books.run_dir.snapshot_file.exists()
    return books


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that are read from here on."""
    seen: list[Event] = []

    def counted(*arguments: Any) -> Any:
        return (seen.append(event) or event for event in read_events(*arguments))  # type: ignore[func-returns-value]

    monkeypatch.setattr(snapshot, "read_events", counted)
    return seen


def read(books: HandBooks, *, worth_keeping: int = 1) -> Fold:
    return read_fold(books.run_dir.journal, PLAN, books.run_dir.snapshot_file, worth_keeping=worth_keeping)


def assert_same(books: HandBooks, fold: Fold) -> None:
    """The fold is that of the whole journal."""
    expected = Fold(PLAN)
    for event in read_events(books.run_dir.journal):
        expected.apply(event)
    assert fold.tasks() == expected.tasks()
    assert fold.troubled(NoFiles()) == expected.troubled(NoFiles())
    assert fold.running() == expected.running()
    for name in ("driver", "end", "stop_reason", "last_event_at", "wall_s"):
        assert getattr(fold, name) == getattr(expected, name)
    assert fold.scheduler.stopping is expected.scheduler.stopping
    everyone = range(len(PLAN))
    assert [fold.scheduler.state(i) for i in everyone] == [expected.scheduler.state(i) for i in everyone]


def test_only_what_is_new_is_read(books: HandBooks, n_read: list[Event]) -> None:
    """Nothing of an unchanged journal; what was appended since, and what later writers say."""
    assert_same(books, read(books))
    assert n_read == []
    again = StopRequested(BEGAN.at + 10, StopReason.INTERRUPTED)
    books.write(again)
    assert_same(books, read(books))
    assert n_read == [again]
    n_read.clear()
    with Journal.create(books.run_dir.journal, after=1) as journal:
        for event in (BEGAN, AttemptStarted(BEGAN.at + 20, 5, 1)):
            journal.append(event)
        assert_same(books, read(books))
        assert len(n_read) == 2
        n_read.clear()
        assert_same(books, read(books))  # also what runs, and since when
        assert n_read == []
        journal.append(succeeded(5))
    assert_same(books, read(books))
    assert n_read == [succeeded(5)]


def test_half_a_line_is_read_when_it_is_whole(books: HandBooks) -> None:
    """A snapshot never ends within one."""
    path = books.journal.path
    line = b'{"e":"stop","t":1760000011.0,"r":"interrupted"}\n'
    with path.open("ab") as file:
        file.write(line[:20])
    books.run_dir.snapshot_file.unlink()
    read(books)
    with path.open("ab") as file:
        file.write(line[20:])
    fold = read(books)
    assert_same(books, fold)
    assert fold.last_event_at == 1760000011.0


def test_little_is_not_worth_a_snapshot(tmp_path: Path) -> None:
    """A small run's directory stays as it is."""
    books = HandBooks(tmp_path / "run")
    write_mixed(books)
    read(books, worth_keeping=1000)
    assert not books.run_dir.snapshot_file.exists()


def test_a_reader_that_cannot_write_goes_on_without(tmp_path: Path) -> None:
    """As on a read-only file system; nothing is left of the attempt."""
    books = HandBooks(tmp_path / "run")
    write_mixed(books)
    nowhere = tmp_path / "nowhere" / "snapshot.npz"
    assert_same(books, read_fold(books.run_dir.journal, PLAN, nowhere, worth_keeping=1))
    folder = tmp_path / "taken"
    (folder / "snapshot.npz" / "x").mkdir(parents=True)
    assert_same(books, read_fold(books.run_dir.journal, PLAN, folder / "snapshot.npz", worth_keeping=1))
    assert [path.name for path in folder.iterdir()] == ["snapshot.npz"]


def test_a_full_disk_costs_nothing_but_the_snapshot(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    """The fold is there, and half a file is not."""
    books = HandBooks(tmp_path / "run")
    write_mixed(books)
    with room_for(500):
        assert_same(books, read(books))
    assert [path.name for path in books.run_dir.path.iterdir() if "snapshot" in path.name] == []


def _header_with(**changes: object) -> Callable[[HandBooks], None]:
    def change(books: HandBooks) -> None:
        with np.load(books.run_dir.snapshot_file) as file:
            arrays = dict(file)
        header = json.loads(arrays["header"].tobytes()) | changes
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez(books.run_dir.snapshot_file, **arrays)

    return change


def _cut(books: HandBooks) -> None:
    data = books.run_dir.snapshot_file.read_bytes()
    books.run_dir.snapshot_file.write_bytes(data[: len(data) // 2])


def _bit(books: HandBooks) -> None:
    data = bytearray(books.run_dir.snapshot_file.read_bytes())
    data[data.index(b"isr.py:7")] ^= 1
    books.run_dir.snapshot_file.write_bytes(data)


def _empty(books: HandBooks) -> None:
    books.run_dir.snapshot_file.write_bytes(b"")


def _pickled(books: HandBooks) -> None:
    np.save(books.run_dir.snapshot_file.with_suffix(".npy"), np.array([{}]), allow_pickle=True)
    books.run_dir.snapshot_file.with_suffix(".npy").replace(books.run_dir.snapshot_file)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _bit,
        _empty,
        _pickled,
        _header_with(version=99),
        _header_with(journal_version=99),
        _header_with(format="other"),
        _header_with(states=["ready"]),
        _header_with(plan=[8, 0, 0, 0, 0]),
        _header_with(files=[]),
        _header_with(files=[[2, 0, 0, ""]]),
        _header_with(quantum_s=[]),
        _header_with(wasted_cpu_s=[0.0]),
        _header_with(version=2),
        _header_with(driver="nobody\n"),
        _header_with(driver='{"e":"end","t":1.0,"r":"completed"}\n'),
    ],
)
def test_one_that_does_not_fit_is_as_good_as_none(
    books: HandBooks, n_read: list[Event], damage: Callable[[HandBooks], None]
) -> None:
    """Damaged, of another version or plan: the journal is read, and a new one takes its place."""
    damage(books)
    assert_same(books, read(books))
    assert len(n_read) > 10
    n_read.clear()
    assert_same(books, read(books))
    assert n_read == []


def test_another_journal(books: HandBooks, n_read: list[Event], tmp_path: Path) -> None:
    """One with the same plan: its own events count, and not those of the snapshot that lies beside it."""
    other = HandBooks(tmp_path / "other")
    other.write(
        BEGAN, *started(*range(5)), *(succeeded(i) for i in range(5)), RunEnded(BEGAN.at, EndReason.STOPPED)
    )
    other.write(*(StopRequested(BEGAN.at + i, StopReason.INTERRUPTED) for i in range(30)))
    shutil.copy(books.run_dir.snapshot_file, other.run_dir.snapshot_file)
    assert_same(other, read(other))
    assert len(n_read) > 10


def test_a_line_taken_back(books: HandBooks, n_read: list[Event]) -> None:
    """A writer whose sync failed takes its last line back: a reader may have seen it, and must forget it."""
    lines = books.journal.path.read_bytes().splitlines(keepends=True)
    books.journal.path.write_bytes(b"".join(lines[:-1]))
    fold = read(books)
    assert_same(books, fold)
    assert fold.end is None
    assert len(n_read) > 10


def test_an_earlier_file_that_has_grown(books: HandBooks, n_read: list[Event]) -> None:
    """Written by an older version it comes before what the snapshot covers, too: all is read again."""
    old = {"format": "qgexec-journal", "version": 2, "epoch": 2}
    later = books.run_dir.journal / "0002.jsonl"
    later.write_bytes(json.dumps(old).encode() + b"\n" + encode(BEGAN))
    read(books)
    n_read.clear()
    books.write(StopRequested(BEGAN.at + 10, StopReason.INTERRUPTED))
    assert_same(books, read(books))
    assert len(n_read) > 10


def test_late_lines_of_an_earlier_writer(books: HandBooks, n_read: list[Event]) -> None:
    """Behind what a later writer has read they are no part of the run, with a snapshot or without."""
    before = read(books).tasks()
    with Journal.create(books.run_dir.journal, after=1) as journal:
        journal.append(BEGAN)
    read(books)
    n_read.clear()
    books.write(*started(5), succeeded(5))
    assert read(books).tasks() == before
    assert n_read == []
    books.run_dir.snapshot_file.unlink()
    assert read(books).tasks() == before


def test_what_was_read_before_it_turned_out_to_be_late(books: HandBooks, n_read: list[Event]) -> None:
    """All is read once more: a reader may see a line before it sees that it does not count."""
    reader = SnapshotReader(books.run_dir.journal, PLAN, books.run_dir.snapshot_file)
    positions: dict[int, Position] = {}
    list(read_events(books.run_dir.journal, positions))
    books.write(*started(5))
    reader.read_on()
    assert reader.fold.running().keys() == {5}
    Journal.create(books.run_dir.journal, after=1, read=positions).close()
    reader.read_on()
    assert not reader.fold.running()


def test_another_plan_is_an_error_with_or_without(books: HandBooks) -> None:
    """As without any snapshot."""
    journal, file = books.run_dir.journal, books.run_dir.snapshot_file
    with pytest.raises(JournalError, match="does not fit its plan"):
        read_fold(journal, make_plan("a b"), file, worth_keeping=1)
    assert_same(books, read(books))


def test_positions_name_the_line_of_later_damage(books: HandBooks) -> None:
    """Though only what is behind the snapshot is read, the line is counted from the file's first."""
    n_lines = len(books.journal.path.read_bytes().splitlines())
    with books.journal.path.open("ab") as file:
        file.write(b"rubbish\n")
    with pytest.raises(JournalError, match=rf"0001.jsonl:{n_lines + 1}: damaged line"):
        read(books)


def test_reading_on(books: HandBooks) -> None:
    """`read_events` says how far it has read, and goes on from there."""
    positions: dict[int, Position] = {}
    n_events = len(list(read_events(books.run_dir.journal, positions)))
    size = books.journal.path.stat().st_size
    assert positions == {1: Position(size, n_events + 1)}
    assert list(read_events(books.run_dir.journal, positions)) == []
    event = StopRequested(BEGAN.at + 10, StopReason.INTERRUPTED)
    books.write(event)
    assert list(read_events(books.run_dir.journal, positions)) == [event]
