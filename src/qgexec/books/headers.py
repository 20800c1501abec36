"""Owns the first line of a journal's file: who writes it, and how much counts of the files before it.

A writer decides what it does from what it has read of earlier files. So what an earlier writer adds later,
which was stopped and woke up again, or lives although somebody forced the run out of its hands, is no part of
the run: the header says up to which byte each earlier file counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index as as_index
from pathlib import Path
from typing import Any, Self

from qgexec.books.codec import JOURNAL_VERSION
from qgexec.books.linefile import check_header, file_error, without_checksum
from qgexec.errors import JournalError
from qgexec.events import Birth
from qgexec.regularfile import open_regular

__all__ = [
    "LONGEST_HEADER_BYTES",
    "DamagedHeaderError",
    "Header",
    "Writer",
    "check_length",
    "counted_bytes",
    "read_header",
]

_FORMAT = "qgexec-journal"

LONGEST_HEADER_BYTES = 1 << 20
"""Bounds what is read of a file to find its first line; it is longer by 20 bytes with each epoch."""


class DamagedHeaderError(JournalError):
    """A header whose checksum is wrong."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that writes a file of a journal."""

    host: str
    pid: int
    pid_started_at: float
    """When that process started, UNIX seconds, by a clock that may have been set since."""
    birth: Birth | None = None
    """What makes its number unique; `None` of older versions, and where the kernel does not tell."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line of a journal's file says."""

    epoch: int
    writer: Writer | None = None
    counted_bytes: tuple[int, ...] = ()
    """How much of each earlier file counts, that of epoch 1 first; empty where nothing is said."""

    def to_json(self) -> dict[str, object]:
        """Return the line, without checksum, as what `json` takes."""
        values: dict[str, object] = {"format": _FORMAT, "version": JOURNAL_VERSION, "epoch": self.epoch}
        if self.writer is not None:
            writer = self.writer
            values["writer"] = [writer.host, writer.pid, writer.pid_started_at]
            if writer.birth is not None:
                values["birth"] = writer.birth
        if self.counted_bytes:
            values["counted_bytes"] = self.counted_bytes
        return values

    @classmethod
    def of(cls, line: bytes, path: Path, epoch: int) -> Self:
        """Read a file's first line, newline included.

        Raises
        ------
        DamagedHeaderError
            Its checksum is wrong.
        qgexec.errors.JournalError
            It is no header of a journal's file, that of another epoch, or of a newer version.
        """
        try:
            line = without_checksum(line)
        except ValueError as err:
            raise DamagedHeaderError(f"{path}:1: damaged line: {err}") from err
        values = check_header(line, _FORMAT, JOURNAL_VERSION, path)
        if values.get("epoch") != epoch:
            raise JournalError(f"{path}:1: the header is that of epoch {values.get('epoch')}")
        try:
            writer = _writer(values.get("writer"), values.get("birth"))
            counted = tuple(map(as_index, values.get("counted_bytes", ())))
        except (TypeError, ValueError) as err:
            raise JournalError(f"{path}:1: not the header of a {_FORMAT} file: {err}") from err
        return cls(epoch, writer, counted)


def _writer(writer: Any, birth: Any) -> Writer | None:
    if writer is None:
        return None
    host, pid, started_at = writer
    if type(host) is not str or not isinstance(started_at, int | float):
        raise TypeError("its writer is none")
    if birth is not None:
        boot_id, namespaces, ticks = birth
        birth = Birth(str(boot_id), str(namespaces), as_index(ticks))
    return Writer(host, as_index(pid), started_at, birth)


def read_header(path: Path, epoch: int) -> Header | None:
    """Read the header of a journal's file; `None` where it is not whole: no writer got further.

    Raises
    ------
    qgexec.errors.JournalError
        As `Header.of`, or the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            line = file.readline(LONGEST_HEADER_BYTES)
    except OSError as err:
        raise file_error("read", path, err, JournalError) from err
    if line.endswith(b"\n"):
        return Header.of(line, path, epoch)
    check_length(line, path)
    return None


def check_length(line: bytes, path: Path) -> None:
    """Check that what was read of a first line may be the beginning of a header.

    Raises
    ------
    qgexec.errors.JournalError
        It is longer than any.
    """
    if len(line) >= LONGEST_HEADER_BYTES:
        raise JournalError(f"{path}:1: not the header of a {_FORMAT} file: it is too long")


def counted_bytes(files: Iterable[tuple[int, Path]]) -> dict[int, int]:
    """Return by epoch how much of files counts, where a later writer has said so; the first is believed.

    Raises
    ------
    qgexec.errors.JournalError
        As `read_header`; a header that is damaged says nothing.
    """
    counted: dict[int, int] = {}
    for epoch, path in files:
        if epoch == 1:
            continue
        try:
            header = read_header(path, epoch)
        except DamagedHeaderError:
            continue
        if header is not None:
            for earlier, n_bytes in enumerate(header.counted_bytes[: epoch - 1], start=1):
                counted.setdefault(earlier, n_bytes)
    return counted
