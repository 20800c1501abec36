"""Owns the journal and the segments beside it: what happened, on disk; knows nothing of who reads it.

A *journal* is a folder of files, one for each writer (``0001.jsonl``,
``0002.jsonl``, ...; the number is the writer's *epoch*). A *segment* holds
details that are too large for an event; the event names them by
`qgexec.quantum.SegmentRef`. Both are files of whole lines
(`qgexec.books.linefile`); a line that is torn or missing where no crash can have
torn it is damage, reported with file and line. The reasons are in
``docs/design/0002-journal.md``.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from qgexec.books.codec import decode, encode
from qgexec.books.headers import DamagedHeaderError, Header, Writer, counted_bytes, read_header
from qgexec.books.heartbeat import Heartbeat
from qgexec.books.journalfile import DamagedLine, FileReader, Position, tell_of_damage
from qgexec.books.linefile import LineFile, check_header, file_error, json_line, without_checksum
from qgexec.errors import JournalError, RunHeldError
from qgexec.events import Event, RunEnded
from qgexec.quantum import SegmentRef
from qgexec.regularfile import open_regular
from qgexec.storedvalues import parse_json

__all__ = [
    "FSYNC_EVERY_S",
    "SEGMENT_VERSION",
    "DamagedLine",
    "Journal",
    "Position",
    "SegmentWriter",
    "Writer",
    "counted_bytes_of",
    "has_ended",
    "journal_file",
    "last_epoch",
    "read_detail",
    "read_events",
    "read_writer",
    "segment_path",
    "tell_of_damage",
]

FSYNC_EVERY_S = 0.25
"""Seconds between two appends that force the journal to the disk: what a power cut may cost."""

SEGMENT_VERSION = 1
"""Version of the segments' lines. 1: the first."""

_SEGMENT_FORMAT = "qgexec-segment"
_HEADER_BYTES = 256
_FILE_NAME = re.compile(r"(\d{4,})\.jsonl")


def _journal_files(folder: Path) -> list[tuple[int, Path]]:
    """Return epochs and files in order."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as err:
        raise file_error("read", folder, err, JournalError) from err
    found = sorted((int(m[1]), folder / m[0]) for m in map(_FILE_NAME.fullmatch, names) if m)
    for expected, (epoch, _) in enumerate(found, start=1):
        if epoch != expected:
            raise JournalError(
                f"{folder} has no {expected:04d}.jsonl but a later one: part of the journal is lost",
                hint="Bring the file back from where the run directory was copied from.",
            )
    return found


def journal_file(folder: Path, epoch: int) -> Path:
    """Return the journal's file of one epoch."""
    return folder / f"{epoch:04d}.jsonl"


def last_epoch(folder: Path) -> int:
    """Return the number of a journal's last file; 0 if it has none.

    Raises
    ------
    qgexec.errors.JournalError
        The folder cannot be read, or a file is missing.
    """
    return len(_journal_files(folder))


def _come_too_late(folder: Path, epoch: int) -> RunHeldError:
    return RunHeldError(
        f"another driver took the run in {folder.parent} in hand a moment ago ({epoch:04d}.jsonl)",
        hint=f"See what it does: qgexec status {folder.parent}",
    )


def read_writer(folder: Path, epoch: int) -> tuple[Writer | None, bool]:
    """Return who writes a journal's file, where its header says so, and whether it has a whole header.

    Raises
    ------
    qgexec.errors.JournalError
        The file cannot be read, or is no journal's.
    """
    try:
        header = read_header(journal_file(folder, epoch), epoch)
    except DamagedHeaderError:
        return None, True
    return (None, False) if header is None else (header.writer, True)


def counted_bytes_of(folder: Path) -> dict[int, int]:
    """Return by epoch up to which byte a journal's files count, where a later writer has said so.

    Raises
    ------
    qgexec.errors.JournalError
        The journal cannot be read.
    """
    return counted_bytes(_journal_files(folder))


def has_ended(folder: Path, epoch: int) -> bool:
    """Return whether the last whole line of a journal's file says that its driver closed the books.

    Raises
    ------
    qgexec.errors.JournalError
        The file cannot be read.
    """
    path = journal_file(folder, epoch)
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _HEADER_BYTES))
            lines = file.read().split(b"\n")
    except OSError as err:
        raise file_error("read", path, err, JournalError) from err
    try:
        return len(lines) > 1 and isinstance(decode(without_checksum(lines[-2] + b"\n")), RunEnded)
    except ValueError:  # a longer line, cut: none that this asks for; or one that is damaged
        return False


class Journal:
    """One writer's file of a run's journal; made by `create`, for one thread."""

    def __init__(
        self, file: LineFile, epoch: int, clock: Callable[[], float], heart: Heartbeat | None = None
    ) -> None:
        self._file = file
        self._heart = heart
        self._clock = clock
        self._synced_at = clock()
        self.sync_every_s = FSYNC_EVERY_S
        """Seconds between two appends that force the journal to the disk."""
        self.epoch = epoch
        """Number of this writer, from 1."""

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        after: int = 0,
        read: Mapping[int, Position] | None = None,
        writer: Writer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Start the journal's next file.

        Parameters
        ----------
        folder
            The run directory's ``journal`` folder.
        after
            The last epoch that the caller knows, all that it decided having been decided from the
            journal up to it; 0 for a journal without any.
        read
            How far it has read each file (see `read_events`): what is written behind that later on, by a
            writer that was believed gone, no reader takes for a part of the run. By default all there is now.
        writer
            Who has the run in hand as soon as the file is there, and gives signs of life until it is closed.
        clock
            Seconds; decides when to fsync.

        Raises
        ------
        qgexec.errors.RunHeldError
            Another writer created it first.
        qgexec.errors.JournalError
            The file cannot be created; nothing is left of it.
        """
        epoch = after + 1
        files = _journal_files(folder)
        if len(files) != after:
            raise _come_too_late(folder, epoch)
        header = Header(epoch, writer, _counted(files, read))
        try:
            file = LineFile(journal_file(folder, epoch), header.to_json(), checked=True)
        except JournalError as err:
            if isinstance(err.__cause__, FileExistsError):
                raise _come_too_late(folder, epoch) from err
            raise
        return cls(file, epoch, clock, None if writer is None else Heartbeat(file.path))

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def append(self, event: Event) -> None:
        """Add an event; the kernel has it when this returns, and the disk at least every `FSYNC_EVERY_S`.

        Raises
        ------
        qgexec.errors.JournalError
            It could not be written (disk full, ...); the event is not in the
            journal. The next append tries again, unless a sync failed.
        qgexec.errors.IllegalEventError
            The event itself cannot be written; nothing has changed.
        """
        line = encode(event)
        self._file.write(line)
        now = self._clock()
        if now - self._synced_at >= self.sync_every_s:
            try:
                self._file.sync()
            except JournalError:
                self._file.take_back(line)
                raise
            self._synced_at = now

    def check_held(self) -> None:
        """Check that no later writer has taken the run in hand.

        Raises
        ------
        qgexec.errors.RunHeldError
            One has: whatever this one still did would be done twice.
        """
        if journal_file(self.path.parent, self.epoch + 1).exists():
            raise RunHeldError(
                f"another driver has taken over the run in {self.path.parent.parent}",
                hint="It was told to, by --force: this one writes nothing more.",
            )

    def check_in_place(self) -> None:
        """Check that nobody has removed or moved the run directory.

        Raises
        ------
        qgexec.errors.JournalError
            It is not where it was: all that is written now is written for nobody.
        """
        if not self._file.is_in_place():
            raise JournalError(
                f"the run directory {self.path.parent.parent} was deleted or moved while the run went on",
                hint="If it was moved, go on with it where it is now: qgexec resume NEW_PLACE. If it was "
                "deleted, give the command that began the run again, with --extend-run --clobber-outputs: "
                "what is done is skipped.",
            )

    def close(self) -> None:
        """Force everything to the disk and close; may be called twice.

        Raises
        ------
        qgexec.errors.JournalError
            The disk refused; the file is closed all the same.
        """
        self._stop_heart()
        self._file.close()

    def withdraw(self) -> None:
        """Close and remove the file, as if nobody had created it; only while there is no event in it.

        Raises
        ------
        qgexec.errors.JournalError
            It cannot be removed.
        """
        self._stop_heart()
        self._file.discard()

    def _stop_heart(self) -> None:
        if self._heart is not None:
            self._heart.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _counted(files: Iterable[tuple[int, Path]], read: Mapping[int, Position] | None) -> tuple[int, ...]:
    if read is not None:
        return tuple(read.get(epoch, Position()).offset for epoch, _ in files)
    counted = counted_bytes(files)
    return tuple(min(path.stat().st_size, counted.get(epoch, sys.maxsize)) for epoch, path in files)


def read_events(
    folder: Path,
    positions: MutableMapping[int, Position] | None = None,
    damaged: list[DamagedLine] | None = None,
) -> Iterator[Event]:
    """Yield the events of a journal in order, also while it is written; constant memory, about 5 us an event.

    What a file got after a later writer had taken over is not read.

    Parameters
    ----------
    folder
        The run directory's ``journal`` folder.
    positions
        Where to begin in the file of each epoch, instead of at its first line. As soon as the last event
        of a file has been taken, it says how far that was read.
    damaged
        Gets the lines whose checksums are wrong, each before the next event is yielded: they are passed over.
        Without it such a line is an error.

    Raises
    ------
    qgexec.errors.JournalError
        Missing or unreadable, of a newer version, or damaged; names file
        and line. A torn last line of a file is no damage.
    """
    positions = {} if positions is None else positions
    files = _journal_files(folder)
    counted = counted_bytes(files)
    for epoch, path in files:
        reader = FileReader(path, epoch, counted.get(epoch, sys.maxsize), damaged)
        try:
            positions[epoch] = yield from reader.read(positions.get(epoch, Position()))
        except OSError as err:
            raise file_error("read", path, err, JournalError) from err


def segment_path(folder: Path, epoch: int, writer: str) -> Path:
    """Return the segment file of one writer; names like ``driver`` come again in every epoch."""
    return folder / f"{epoch:04d}-{writer}.jsonl"


class SegmentWriter:
    """Writes the details of one process to a file of its own; for one thread.

    Parameters
    ----------
    path
        The file, which must not exist; see `segment_path`.
    syncs
        Force each detail to the disk: other machines see on a network file system what is.

    Raises
    ------
    qgexec.errors.JournalError
        The file exists already, or cannot be created.
    """

    def __init__(self, path: Path, *, syncs: bool = False) -> None:
        self._syncs = syncs
        self._file = LineFile(path, {"format": _SEGMENT_FORMAT, "version": SEGMENT_VERSION})
        self._is_empty = True

    def append(self, detail: Mapping[str, object]) -> SegmentRef:
        """Add a detail (a JSON object) and return where it lies; the kernel has it then.

        Raises
        ------
        qgexec.errors.JournalError
            It could not be written; the file is as before.
        """
        try:
            line = json_line(detail)
        except (TypeError, ValueError) as err:
            raise JournalError(f"cannot write a detail to {self._file.path}: {err}") from err
        self._file.write(line)
        self._is_empty = False
        if self._syncs:
            self._file.sync()
        return SegmentRef(self._file.path.name, self._file.end() - len(line), len(line))

    def close(self) -> None:
        """Force everything to the disk and close; a file without details is removed. May be called twice."""
        self._file.close()
        if self._is_empty:
            with suppress(OSError):
                self._file.path.unlink(missing_ok=True)


def read_detail(folder: Path, ref: SegmentRef) -> dict[str, Any]:
    """Return one detail, also while its segment is written.

    Parameters
    ----------
    folder
        The run directory's ``segments`` folder.
    ref
        What `SegmentWriter.append` returned.

    Raises
    ------
    qgexec.errors.JournalError
        The file or the line is missing, torn or damaged, or of a newer version.
    """
    path = folder / ref.segment
    if path.name != ref.segment:
        raise JournalError(f"{ref.segment!r} is no name of a segment file in {folder}")
    try:
        with open_regular(path) as file:
            header = os.pread(file.fileno(), _HEADER_BYTES, 0).partition(b"\n")[0]
            line = os.pread(file.fileno(), ref.length + 1, ref.offset - 1)
    except OSError as err:
        raise file_error("read", path, err, JournalError) from err
    check_header(header, _SEGMENT_FORMAT, SEGMENT_VERSION, path)
    try:
        detail = parse_json(line)
    except ValueError:
        detail = None
    # With the newline before it, the line must be all there is between two newlines.
    if not isinstance(detail, dict) or line[:1] != b"\n" or line.find(b"\n", 1) != ref.length:
        raise JournalError(f"{path} has no whole detail of {ref.length} bytes at byte {ref.offset}")
    return detail
