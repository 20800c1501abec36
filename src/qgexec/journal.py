"""Owns the journal and the segments beside it: what happened, on disk; knows nothing of who reads it.

A *journal* is a folder of files, one for each writer (``0001.jsonl``,
``0002.jsonl``, ...; the number is the writer's *epoch*). A *segment* holds
details that are too large for an event; the event names them by
`qgexec.quantum.SegmentRef`. Both are files of whole lines
(`qgexec.linefile`); a line that is torn or missing where no crash can have
torn it is damage, reported with file and line. The reasons are in
``docs/design/0002-journal.md``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from qgexec.codec import JOURNAL_VERSION, decode, encode
from qgexec.errors import JournalError
from qgexec.events import Event
from qgexec.linefile import LineFile, check_header, file_error, json_line
from qgexec.quantum import SegmentRef

__all__ = [
    "FSYNC_EVERY_S",
    "SEGMENT_VERSION",
    "Journal",
    "SegmentWriter",
    "read_detail",
    "read_events",
    "segment_path",
]

FSYNC_EVERY_S = 0.25
"""Seconds between two appends that force the journal to the disk: what a power cut may cost."""

SEGMENT_VERSION = 1
"""Version of the segments' lines. 1: the first."""

_JOURNAL_FORMAT = "qgexec-journal"
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


class Journal:
    """One writer's file of a run's journal; made by `create`, for one thread."""

    def __init__(self, file: LineFile, epoch: int, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._synced_at = clock()
        self.epoch = epoch
        """Number of this writer, from 1."""

    @classmethod
    def create(cls, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Start the journal's next file.

        Parameters
        ----------
        folder
            The run directory's ``journal`` folder.
        clock
            Seconds; decides when to fsync.

        Raises
        ------
        qgexec.errors.JournalError
            The file cannot be created, or another writer created it first;
            nothing is left of it.
        """
        epoch = len(_journal_files(folder)) + 1
        header = {"format": _JOURNAL_FORMAT, "version": JOURNAL_VERSION, "epoch": epoch}
        return cls(LineFile(folder / f"{epoch:04d}.jsonl", header), epoch, clock)

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
        if now - self._synced_at >= FSYNC_EVERY_S:
            try:
                self._file.sync()
            except JournalError:
                self._file.take_back(line)
                raise
            self._synced_at = now

    def close(self) -> None:
        """Force everything to the disk and close; may be called twice.

        Raises
        ------
        qgexec.errors.JournalError
            The disk refused; the file is closed all the same.
        """
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(folder: Path) -> Iterator[Event]:
    """Yield the events of a journal in order, also while it is written; constant memory, about 5 us an event.

    Parameters
    ----------
    folder
        The run directory's ``journal`` folder.

    Raises
    ------
    qgexec.errors.JournalError
        Missing or unreadable, of a newer version, or damaged; names file
        and line. A torn last line of a file is no damage.
    """
    for epoch, path in _journal_files(folder):
        try:
            with path.open("rb") as file:
                yield from _read_file(file, epoch, path)
        except OSError as err:
            raise file_error("read", path, err, JournalError) from err


def _read_file(file: Iterable[bytes], epoch: int, path: Path) -> Iterator[Event]:
    for number, line in enumerate(file, start=1):
        if line[-1] != 0x0A:
            return  # going on would read the rest of a line that is being written right now as one of its own
        if number == 1:
            header = check_header(line, _JOURNAL_FORMAT, JOURNAL_VERSION, path)
            if header.get("epoch") != epoch:
                raise JournalError(f"{path}:1: the header is that of epoch {header.get('epoch')}")
            continue
        try:
            event = decode(line)
        except ValueError as err:
            raise JournalError(
                f"{path}:{number}: damaged line: {err}",
                hint="Bring the file back from a copy; the outputs themselves are not affected.",
            ) from err
        yield event


def segment_path(folder: Path, epoch: int, writer: str) -> Path:
    """Return the segment file of one writer; names like ``driver`` come again in every epoch."""
    return folder / f"{epoch:04d}-{writer}.jsonl"


class SegmentWriter:
    """Writes the details of one process to a file of its own; for one thread.

    Parameters
    ----------
    path
        The file, which must not exist; see `segment_path`.

    Raises
    ------
    qgexec.errors.JournalError
        The file exists already, or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path, {"format": _SEGMENT_FORMAT, "version": SEGMENT_VERSION})

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
        return SegmentRef(self._file.path.name, self._file.end() - len(line), len(line))

    def close(self) -> None:
        """Force everything to the disk and close; may be called twice."""
        self._file.close()


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
        with path.open("rb", buffering=0) as file:
            header = os.pread(file.fileno(), _HEADER_BYTES, 0).partition(b"\n")[0]
            line = os.pread(file.fileno(), ref.length + 1, ref.offset - 1)
    except OSError as err:
        raise file_error("read", path, err, JournalError) from err
    check_header(header, _SEGMENT_FORMAT, SEGMENT_VERSION, path)
    try:
        detail = json.loads(line)
    except ValueError:
        detail = None
    # With the newline before it, the line must be all there is between two newlines.
    if not isinstance(detail, dict) or line[:1] != b"\n" or line.find(b"\n", 1) != ref.length:
        raise JournalError(f"{path} has no whole detail of {ref.length} bytes at byte {ref.offset}")
    return detail
