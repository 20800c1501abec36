"""Tests of `qgexec.books.journal`."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qgexec.books.codec import JOURNAL_VERSION, decode, encode
from qgexec.books.journal import (
    DamagedLine,
    Journal,
    Position,
    SegmentWriter,
    Writer,
    counted_bytes_of,
    has_ended,
    last_epoch,
    read_detail,
    read_events,
    read_writer,
    segment_path,
)
from qgexec.books.linefile import LineFile, with_checksum
from qgexec.errors import IllegalEventError, JournalError, RunHeldError
from qgexec.events import AttemptStarted, Birth, EndReason, Event, RunEnded, RunStarted, WorkerStarted
from qgexec.quantum import SegmentRef
from tests.kit.runs.damage import flip_digit

RoomFor = Callable[[int], AbstractContextManager[None]]

EVENTS: list[Event] = [
    RunStarted(1.0, "node1", 42, 0.5, "pool", 3),
    AttemptStarted(2.0, 0, 1),
    AttemptStarted(3.5, 1, 1),
    RunEnded(4.0, EndReason.STOPPED),
]


def write(folder: Path, events: list[Event], writer: Writer | None = None) -> Path:
    with Journal.create(folder, after=last_epoch(folder), writer=writer) as journal:
        for event in events:
            journal.append(event)
    return journal.path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was forced to the disk, by file descriptor."""
    found: list[int] = []
    real = os.fdatasync

    def count(fd: int) -> None:
        found.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", count)
    return found


def test_events_come_back_in_order(tmp_path: Path) -> None:
    """What was appended is read, the same and in the same order."""
    write(tmp_path, EVENTS)
    assert list(read_events(tmp_path)) == EVENTS


def test_an_event_is_readable_when_append_returns(tmp_path: Path) -> None:
    """Readers need not wait for the writer to close."""
    journal = Journal.create(tmp_path)
    for n, event in enumerate(EVENTS, start=1):
        journal.append(event)
        assert list(read_events(tmp_path)) == EVENTS[:n]
    journal.close()


def test_each_writer_has_a_file_and_a_number(tmp_path: Path) -> None:
    """Epochs count up, and their files are read in that order."""
    first, second = write(tmp_path, EVENTS[:2]), write(tmp_path, EVENTS[2:])
    assert [first.name, second.name] == ["0001.jsonl", "0002.jsonl"]
    assert list(read_events(tmp_path)) == EVENTS


def test_each_file_says_who_writes_it(tmp_path: Path) -> None:
    """As long as its header is whole, where its writer said so."""
    writer = Writer("node1", 42, 0.5)
    path = write(tmp_path, EVENTS[:2], writer)
    write(tmp_path, EVENTS[2:])
    assert [read_writer(tmp_path, epoch) for epoch in (1, 2)] == [(writer, True), (None, True)]
    assert list(read_events(tmp_path)) == EVENTS
    header = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(header)
    assert read_writer(tmp_path, 1) == (None, False)
    path.write_bytes(b"7\n")
    for epoch in (1, 3):
        with pytest.raises(JournalError, match=f"000{epoch}.jsonl"):
            read_writer(tmp_path, epoch)


@pytest.mark.parametrize("known", [0, 1, 3])
def test_a_writer_that_knows_another_journal_comes_too_late(tmp_path: Path, known: int) -> None:
    """What it decided, it decided from less, or from something else; nothing is created."""
    write(tmp_path, EVENTS[:1])
    write(tmp_path, EVENTS[1:])
    with pytest.raises(RunHeldError, match="another driver took the run"):
        Journal.create(tmp_path, after=known)
    assert last_epoch(tmp_path) == 2
    assert list(read_events(tmp_path)) == EVENTS


def test_a_writer_notices_that_another_has_taken_over(tmp_path: Path) -> None:
    """From the other's file, which has the next number."""
    first = Journal.create(tmp_path)
    first.check_held()
    second = Journal.create(tmp_path, after=1)
    with pytest.raises(RunHeldError, match="another driver has taken over"):
        first.check_held()
    second.check_held()
    for journal in (first, second):
        journal.close()


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """In every file, and before a line that was torn then."""
    path = write(tmp_path, EVENTS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    positions: dict[int, Position] = {}
    assert list(read_events(tmp_path, positions)) == EVENTS[:1]
    path.write_bytes(whole)
    write(tmp_path, EVENTS[2:])
    assert list(read_events(tmp_path, positions)) == EVENTS[1:]
    assert positions[1] == Position(len(whole), 3)
    assert list(read_events(tmp_path, positions)) == []


def test_two_writers_at_the_same_time_cannot_have_the_same_file(tmp_path: Path) -> None:
    """The one that comes second is told, and the first one's file is as it was."""
    path = write(tmp_path, EVENTS)
    content = path.read_bytes()
    # The second looked at the folder before the first created its file.
    with pytest.raises(RunHeldError, match="another driver took the run") as caught:
        Journal.create(tmp_path, after=0)
    assert "qgexec status" in caught.value.hint
    assert path.read_bytes() == content


def test_an_empty_journal_has_no_events(tmp_path: Path) -> None:
    """A run that no driver has begun is no error."""
    assert list(read_events(tmp_path)) == []


def test_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    """It names the folder."""
    with pytest.raises(JournalError, match=r"cannot read .*nowhere"):
        list(read_events(tmp_path / "nowhere"))


def test_a_last_line_torn_anywhere_is_ignored(tmp_path: Path) -> None:
    """Whatever a crash left of the last line, the events before it are there."""
    path = write(tmp_path, EVENTS)
    whole = path.read_bytes()
    begin = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(begin, len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_events(tmp_path)) == EVENTS[:-1], end


def test_a_header_torn_anywhere_is_an_empty_file(tmp_path: Path) -> None:
    """A writer that died at once did nothing; the next one's events count."""
    path = write(tmp_path, EVENTS[:1])
    write(tmp_path, EVENTS[1:])
    header = path.read_bytes().partition(b"\n")[0]
    for end in range(len(header) + 1):
        path.write_bytes(header[:end])
        assert list(read_events(tmp_path)) == EVENTS[1:]


def test_torn_lines_of_earlier_writers_are_ignored(tmp_path: Path) -> None:
    """Each file has its own last line."""
    path = write(tmp_path, EVENTS[:2])
    with path.open("ab") as file:
        file.write(b'{"e":"start","t"')
    write(tmp_path, EVENTS[2:])
    assert list(read_events(tmp_path)) == EVENTS


def test_a_line_that_is_completed_while_it_is_read_is_not_split(tmp_path: Path) -> None:
    """A reader that met half a line stops there, though the rest has come meanwhile."""
    path = write(tmp_path, EVENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    events = read_events(tmp_path)
    found = [next(events) for _ in EVENTS[:-1]]
    path.write_bytes(whole)
    assert found + list(events) in (EVENTS, EVENTS[:-1])


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_damage_is_reported_with_file_and_line(tmp_path: Path, number: int) -> None:
    """Also in the last line, if it has its newline: no crash writes that."""
    path = write(tmp_path, EVENTS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:5] + b"#" + lines[number - 1][6:]
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=rf"0001\.jsonl:{number}: damaged line"):
        list(read_events(tmp_path))


def test_a_block_of_zeros_is_damage(tmp_path: Path) -> None:
    """A power cut can leave one where a file was extended; events after it would be the wrong ones."""
    path = write(tmp_path, EVENTS)
    with path.open("ab") as file:
        file.write(b"\0" * 4096 + b"\n")
    with pytest.raises(JournalError, match="damaged line"):
        list(read_events(tmp_path))


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    """It says so, and names the file."""
    newer = JOURNAL_VERSION + 1
    header = {"format": "qgexec-journal", "version": newer, "epoch": 1}
    (tmp_path / "0001.jsonl").write_text(f'{json.dumps(header)}\n{{"e":"new"}}\n')
    with pytest.raises(JournalError, match=rf"0001\.jsonl:1: qgexec-journal version {newer}"):
        list(read_events(tmp_path))


def test_a_file_that_was_renamed_is_refused(tmp_path: Path) -> None:
    """The header says which epoch it is."""
    write(tmp_path, EVENTS).rename(tmp_path / "other")
    write(tmp_path, EVENTS)
    (tmp_path / "other").rename(tmp_path / "0002.jsonl")
    with pytest.raises(JournalError, match=r"0002\.jsonl:1: the header is that of epoch 1"):
        list(read_events(tmp_path))


def test_a_missing_file_is_noticed_by_readers_and_writers(tmp_path: Path) -> None:
    """Events would be missing without a word, and an epoch would be given out twice."""
    first = write(tmp_path, EVENTS)
    write(tmp_path, EVENTS)
    first.unlink()
    with pytest.raises(JournalError, match=r"no 0001\.jsonl"):
        list(read_events(tmp_path))
    with pytest.raises(JournalError, match=r"no 0001\.jsonl"):
        Journal.create(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, room_for: RoomFor) -> None:
    """The event that did not fit is not in the journal, the error says why, and the next one may fit."""
    journal = Journal.create(tmp_path)
    journal.append(EVENTS[0])
    with (
        room_for(journal.path.stat().st_size + 20),
        pytest.raises(JournalError, match=r"cannot write .*0001"),
    ):
        journal.append(EVENTS[1])
    assert list(read_events(tmp_path)) == EVENTS[:1]
    journal.append(EVENTS[2])
    journal.close()
    assert list(read_events(tmp_path)) == [EVENTS[0], EVENTS[2]]


def test_an_event_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """The journal goes on as if it had not been tried."""
    with Journal.create(tmp_path) as journal:
        with pytest.raises(IllegalEventError):
            journal.append(AttemptStarted(float("nan"), 0, 1))
        journal.append(EVENTS[0])
    assert list(read_events(tmp_path)) == EVENTS[:1]


def test_the_disk_is_asked_at_most_four_times_a_second(tmp_path: Path, syncs: list[int]) -> None:
    """An append forces the file to the disk 0.25 s after one last did, and closing does."""
    clock = Clock()
    journal = Journal.create(tmp_path, clock=clock)
    syncs.clear()
    counts = []
    for now in (0.0, 0.2, 0.25, 0.3, 0.4, 0.6, 10.0):
        clock.now = now
        journal.append(EVENTS[1])
        counts.append(len(syncs))
    assert counts == [0, 0, 1, 1, 1, 2, 3]
    journal.close()
    assert len(syncs) == 4


def test_a_failed_sync_takes_its_event_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event whose append raised is not in the journal: memory and file agree. No other is taken."""
    clock = Clock()
    journal = Journal.create(tmp_path, clock=clock)
    journal.append(EVENTS[0])

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    clock.now = 1.0
    with pytest.raises(JournalError, match="cannot sync"):
        journal.append(EVENTS[1])
    with pytest.raises(JournalError, match="takes no more lines"):
        journal.append(EVENTS[2])
    journal.close()
    assert list(read_events(tmp_path)) == EVENTS[:1]


def _write_and_die(folder: Path) -> None:
    journal = Journal.create(folder)
    for event in EVENTS:
        journal.append(event)
    os.kill(os.getpid(), 9)


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    """The kernel has every event when append returns, whatever becomes of the process."""
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert list(read_events(tmp_path)) == EVENTS


@pytest.mark.parametrize("version", range(1, JOURNAL_VERSION + 1))
def test_every_version_is_still_read(tmp_path: Path, version: int) -> None:
    """A file of an earlier version is read as it was."""
    content = (Path(__file__).parents[1] / "data" / f"journal-v{version}.jsonl").read_bytes()
    (tmp_path / "0001.jsonl").write_bytes(content)
    assert len(list(read_events(tmp_path))) == content.count(b"\n") - 1


DETAILS: list[dict[str, Any]] = [
    {"traceback": 'Traceback:\n  "x" \u2028 ☆\n'},
    {"outputs": [["image", ["Cam", 4], "0" * 32]], "replaces": True},
    {},
]


def test_details_are_found_by_their_refs(tmp_path: Path) -> None:
    """Each detail is readable as soon as it was appended, in any order."""
    writer = SegmentWriter(segment_path(tmp_path, 1, "worker-0003"))
    refs = []
    for detail in DETAILS:
        refs.append(writer.append(detail))
        assert read_detail(tmp_path, refs[-1]) == detail
    writer.close()
    assert [read_detail(tmp_path, ref) for ref in reversed(refs)] == DETAILS[::-1]
    assert refs[0].segment == "0001-worker-0003.jsonl"


def test_details_that_others_wait_for(tmp_path: Path, syncs: list[int]) -> None:
    """A writer that was told to has each detail on the disk before anybody is told where it is."""
    writers = [SegmentWriter(segment_path(tmp_path, 1, f"{told}"), syncs=told) for told in (False, True)]
    counts = []
    for writer in writers:
        syncs.clear()
        for detail in DETAILS:
            writer.append(detail)
        counts.append(len(syncs))
        writer.close()
    assert counts == [0, len(DETAILS)]


def test_a_segment_has_one_writer(tmp_path: Path) -> None:
    """A second writer of the same name is refused; in another epoch the name is another."""
    path = segment_path(tmp_path, 1, "driver")
    writer = SegmentWriter(path)
    with pytest.raises(JournalError, match="File exists"):
        SegmentWriter(path)
    writer.append(DETAILS[0])
    writer.close()
    with pytest.raises(JournalError, match="File exists"):
        SegmentWriter(path)
    SegmentWriter(segment_path(tmp_path, 2, "driver")).close()


def test_a_segment_without_details_is_removed(tmp_path: Path) -> None:
    """Nobody asks for it: of many jobs that did nothing no files are left."""
    writer = SegmentWriter(segment_path(tmp_path, 1, "driver"))
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_detail_that_does_not_fit_leaves_nothing(tmp_path: Path, room_for: RoomFor) -> None:
    """The segment ends with a whole line, and the next detail has the right place."""
    writer = SegmentWriter(tmp_path / "x.jsonl")
    first = writer.append(DETAILS[0])
    with (
        room_for((tmp_path / "x.jsonl").stat().st_size + 7),
        pytest.raises(JournalError, match="cannot write"),
    ):
        writer.append(DETAILS[1])
    second = writer.append(DETAILS[2])
    assert second.offset == first.offset + first.length
    assert read_detail(tmp_path, second) == DETAILS[2]


def test_a_detail_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """Nothing of it is written."""
    writer = SegmentWriter(tmp_path / "x.jsonl")
    before = (tmp_path / "x.jsonl").read_bytes()
    with pytest.raises(JournalError, match="cannot write a detail"):
        writer.append({"x": object()})
    assert (tmp_path / "x.jsonl").read_bytes() == before


def test_a_torn_detail_is_an_error_at_every_length(tmp_path: Path) -> None:
    """Nothing but the whole line is taken for the detail."""
    writer = SegmentWriter(tmp_path / "x.jsonl")
    writer.append(DETAILS[0])
    ref = writer.append(DETAILS[1])
    writer.close()
    whole = (tmp_path / "x.jsonl").read_bytes()
    for end in range(ref.offset, len(whole)):
        (tmp_path / "x.jsonl").write_bytes(whole[:end])
        with pytest.raises(JournalError, match="no whole detail"):
            read_detail(tmp_path, ref)


@pytest.mark.parametrize(
    ("shift", "longer"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1), (10**6, 0), (0, -10)]
)
def test_a_wrong_place_is_an_error(tmp_path: Path, shift: int, longer: int) -> None:
    """A ref that is off by one byte finds nothing."""
    writer = SegmentWriter(tmp_path / "x.jsonl")
    writer.append({"a": 1})
    ref = writer.append({"b": 2})
    writer.append({"c": 3})
    wrong = SegmentRef(ref.segment, ref.offset + shift, ref.length + longer)
    with pytest.raises(JournalError):
        read_detail(tmp_path, wrong)


@pytest.mark.parametrize("segment", ["missing.jsonl", "../x.jsonl", "/etc/passwd", ".", "", "a/b"])
def test_only_files_of_the_folder_are_read(tmp_path: Path, segment: str) -> None:
    """A ref names a file in the segments folder, or it is an error."""
    (tmp_path / "x.jsonl").write_bytes(b"{}\n{}\n")
    (tmp_path / "segments").mkdir()
    with pytest.raises(JournalError):
        read_detail(tmp_path / "segments", SegmentRef(segment, 3, 3))


def test_a_segment_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """It says so."""
    (tmp_path / "x.jsonl").write_bytes(b'{"format":"qgexec-segment","version":2}\n{}\n')
    with pytest.raises(JournalError, match="qgexec-segment version 2"):
        read_detail(tmp_path, SegmentRef("x.jsonl", 40, 3))


# --- who comes late -------------------------------------------------------------------------------------


def test_late_lines_are_no_part_of_the_journal(tmp_path: Path) -> None:
    """What a writer adds after the next one has read its file is ignored, a line that was torn then, too."""
    first = Journal.create(tmp_path)
    for event in EVENTS[:2]:
        first.append(event)
    positions: dict[int, Position] = {}
    known = list(read_events(tmp_path, positions))
    first.append(EVENTS[2])  # after it was read, and before the other begins
    with Journal.create(tmp_path, after=1, read=positions) as second:
        second.append(EVENTS[3])
        first.append(EVENTS[2])
        first.close()
    assert known == EVENTS[:2]
    assert list(read_events(tmp_path)) == [*EVENTS[:2], EVENTS[3]]
    assert counted_bytes_of(tmp_path) == {1: positions[1].offset}


def test_a_torn_line_that_is_completed_late(tmp_path: Path) -> None:
    """It was none when the next writer read it, and is none later."""
    path = write(tmp_path, EVENTS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    positions: dict[int, Position] = {}
    list(read_events(tmp_path, positions))
    Journal.create(tmp_path, after=1, read=positions).close()
    path.write_bytes(whole)
    assert list(read_events(tmp_path)) == EVENTS[:1]


def test_a_header_that_comes_late(tmp_path: Path) -> None:
    """A writer that had not even said who it is is nobody."""
    path = write(tmp_path, EVENTS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    Journal.create(tmp_path, after=1).close()
    path.write_bytes(whole)
    assert list(read_events(tmp_path)) == []


def test_every_later_writer_says_what_counts(tmp_path: Path) -> None:
    """Of all files before its own: one that was killed before it had said so is no hole."""
    first = write(tmp_path, EVENTS[:1])
    (tmp_path / "0002.jsonl").write_bytes(b'{"format":"qgexec-jo')
    size = first.stat().st_size
    third = write(tmp_path, EVENTS[3:])
    with first.open("ab") as file:
        file.write(with_checksum(encode(EVENTS[1])))
    write(tmp_path, [])
    assert list(read_events(tmp_path)) == [EVENTS[0], EVENTS[3]]
    assert counted_bytes_of(tmp_path) == {1: size, 2: 20, 3: third.stat().st_size}


def test_what_was_read_beyond_stays_read(tmp_path: Path) -> None:
    """Whoever goes on reading gets nothing twice, and no late line."""
    first = Journal.create(tmp_path)
    first.append(EVENTS[0])
    before: dict[int, Position] = {}
    list(read_events(tmp_path, before))
    first.append(EVENTS[1])
    positions: dict[int, Position] = {}
    list(read_events(tmp_path, positions))
    with Journal.create(tmp_path, after=1, read=before) as second:
        first.append(EVENTS[2])
        second.append(EVENTS[3])
    first.close()
    assert list(read_events(tmp_path, positions)) == [EVENTS[3]]
    assert list(read_events(tmp_path, positions)) == []


def test_files_of_older_versions_count_whole(tmp_path: Path) -> None:
    """They say nothing of those before them, and their lines have no checksums."""
    for epoch, event in ((1, EVENTS[0]), (2, EVENTS[3])):
        header = {"format": "qgexec-journal", "version": 2, "epoch": epoch, "writer": ["node1", 42, 0.5]}
        path = tmp_path / f"000{epoch}.jsonl"
        path.write_bytes(json.dumps(header).encode() + b"\n" + encode(event))
    assert list(read_events(tmp_path)) == [EVENTS[0], EVENTS[3]]
    assert read_writer(tmp_path, 2) == (Writer("node1", 42, 0.5), True)
    assert counted_bytes_of(tmp_path) == {}


@pytest.mark.parametrize("withdraws", [False, True])
def test_a_writer_gives_signs_of_life_until_it_is_closed(tmp_path: Path, withdraws: bool) -> None:
    """Whatever it does meanwhile: settle an earlier run, make a registry ready, wait for a batch system."""
    before = threading.active_count()
    journal = Journal.create(tmp_path, writer=Writer("node1", 42, 0.5))
    assert threading.active_count() == before + 1
    journal.withdraw() if withdraws else journal.close()
    journal.close()
    assert threading.active_count() == before


# --- checksums ------------------------------------------------------------------------------------------


def _flips(path: Path) -> list[tuple[int, bytes]]:
    """Return for each place in a file, newlines aside, its line, and the file with one bit changed there."""
    whole = path.read_bytes()
    found = []
    for place, byte in enumerate(whole):
        changed = byte ^ 1
        if byte != 0x0A and changed != 0x0A:
            number = whole.count(b"\n", 0, place) + 1
            found.append((number, whole[:place] + bytes([changed]) + whole[place + 1 :]))
    return found


def test_no_changed_bit_is_believed(tmp_path: Path) -> None:
    """Wherever in a file it is: the line is named, all other events are read, and none that never was."""
    path = write(tmp_path, EVENTS, Writer("node1", 42, 0.5, Birth("boot", "pid:[1]", 7)))
    n_unharmed = 0
    for number, content in _flips(path):
        path.write_bytes(content)
        damaged: list[DamagedLine] = []
        events = list(read_events(tmp_path, damaged=damaged))
        if not damaged:  # in the checksum's own key: what it is about is known to be right
            assert events == EVENTS
            n_unharmed += 1
            continue
        assert list(map(str, damaged)) == [f"{path}:{number}"]
        assert events == [event for line, event in enumerate(EVENTS, start=2) if line != number]
        with pytest.raises(JournalError, match=rf"0001\.jsonl:{number}: damaged line: its checksum is wrong"):
            list(read_events(tmp_path))
    assert n_unharmed == 8 * (len(EVENTS) + 1)


def test_a_damaged_header_says_nothing(tmp_path: Path) -> None:
    """Neither who writes the file nor what counts of others is taken from it."""
    path = write(tmp_path, EVENTS[:2], Writer("node1", 42, 0.5))
    second = write(tmp_path, EVENTS[2:], Writer("node1", 43, 0.5))
    flip_digit(second, 1)
    assert read_writer(tmp_path, 2) == (None, True)
    assert counted_bytes_of(tmp_path) == {}
    assert has_ended(tmp_path, 2)
    flip_digit(second, len(EVENTS[2:]) + 1)
    assert not has_ended(tmp_path, 2)
    assert read_writer(tmp_path, 1) == (Writer("node1", 42, 0.5), True)
    assert path.exists()


def test_a_hole_of_zeros_is_one_damaged_line(tmp_path: Path) -> None:
    """A power cut can leave one; what comes before it and after it is read."""
    path = write(tmp_path, EVENTS)
    whole = bytearray(path.read_bytes())
    ends = [place for place, byte in enumerate(whole) if byte == 0x0A]
    whole[ends[1] - 20 : ends[2] + 20] = b"\0" * (ends[2] + 20 - ends[1] + 20)
    path.write_bytes(whole)
    damaged: list[DamagedLine] = []
    assert list(read_events(tmp_path, damaged=damaged)) == EVENTS[3:]
    assert list(map(str, damaged)) == [f"{path}:2"]


def test_a_failed_sync_takes_the_checksum_back_too(tmp_path: Path) -> None:
    """The file ends where it did before."""
    file = LineFile(tmp_path / "x", {"format": "test"}, checked=True)
    before = (tmp_path / "x").read_bytes()
    file.write(b'{"a":1}\n')
    assert (tmp_path / "x").read_bytes() == before + b'{"a":1,"z":"%08x"}\n' % zlib.crc32(b'{"a":1')
    file.take_back(b'{"a":1}\n')
    assert (tmp_path / "x").read_bytes() == before
    file.close()


def test_what_was_written_since_there_are_checksums_is_still_read(tmp_path: Path) -> None:
    """The fixture has every kind of event, and is never rewritten; but for births it is that of version 2."""
    data = Path(__file__).parents[1] / "data"
    shutil.copy(data / "journal-v2-checked.jsonl", tmp_path / "0001.jsonl")
    birth = Birth("0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", "pid:[4026531836] time:[4026531834]", 123456)
    assert read_writer(tmp_path, 1) == (Writer("node1", 4242, 1790000000.25, birth), True)
    plain = [decode(line) for line in (data / "journal-v2.jsonl").read_bytes().splitlines(keepends=True)[1:]]
    assert list(read_events(tmp_path)) == [
        replace(event, birth=birth) if isinstance(event, RunStarted | WorkerStarted) else event
        for event in plain
    ]
