"""Reads one file of a journal, from any line on; knows nothing of the other files.

A line whose checksum is wrong is not what its writer wrote: it is an error, or passed over and named.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from qgexec.books.codec import decode
from qgexec.books.headers import LONGEST_HEADER_BYTES, DamagedHeaderError, Header, check_length
from qgexec.books.linefile import without_checksum
from qgexec.errors import JournalError
from qgexec.events import Event
from qgexec.regularfile import open_regular

__all__ = ["LONGEST_LINE_BYTES", "DamagedLine", "FileReader", "Position", "tell_of_damage"]

_logger = logging.getLogger(__name__)

LONGEST_LINE_BYTES = 64 << 20
"""Bounds what a line takes to read; that on 7 million quanta is shorter."""

_N_TOLD = 5
"""Damaged lines that are named, each; of more the number."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file of a journal was read: up to the end of a whole line."""

    offset: int = 0
    """Bytes."""
    lines: int = 0
    """Whole lines, the header included."""


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line that is not what its writer wrote, as its checksum tells."""

    path: Path
    number: int
    """From 1, which is the header."""
    event: Event | None
    """What it seems to say, which is not to be believed."""

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


def tell_of_damage(damaged: Sequence[DamagedLine]) -> None:
    """Warn of lines that were passed over."""
    for line in damaged[:_N_TOLD]:
        _logger.warning("%s: damaged line: its checksum is wrong", line)
    if n_more := len(damaged[_N_TOLD:]):
        _logger.warning("%d more lines are damaged.", n_more)
    if damaged:
        _logger.warning(
            "Damaged lines are passed over: what they spoke of may be shown as running, or as not begun. "
            "qgexec resume looks it up in the outputs."
        )


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads one file of a journal."""

    path: Path
    epoch: int
    counted_bytes: int
    """How much of it counts."""
    damaged: list[DamagedLine] | None

    def read(self, begin: Position) -> Generator[Event, None, Position]:
        """Yield events from a place on; return the place up to which all lines were whole."""
        with open_regular(self.path) as file:
            line = file.readline(LONGEST_HEADER_BYTES)
            check_length(line, self.path)
            if not line.endswith(b"\n") or max(len(line), begin.offset) > self.counted_bytes:
                return begin
            try:
                Header.of(line, self.path, self.epoch)
            except DamagedHeaderError:
                if not begin.lines:
                    self._pass_over(1, None)
            if not begin.lines:
                begin = Position(len(line), 1)
            file.seek(begin.offset)
            return (yield from self._read_lines(file, begin))

    def _read_lines(self, file: BinaryIO, begin: Position) -> Generator[Event, None, Position]:
        offset, number = begin.offset, begin.lines
        for line in iter(partial(file.readline, LONGEST_LINE_BYTES), b""):
            if len(line) == LONGEST_LINE_BYTES:
                raise _damage(self.path, number + 1, f"it is longer than {LONGEST_LINE_BYTES >> 20} MiB")
            # Half a line may be written right now: going on would read its rest as a line of its own.
            if line[-1] != 0x0A or offset + len(line) > self.counted_bytes:
                break
            offset += len(line)
            number += 1
            try:
                content = without_checksum(line)
            except ValueError:
                self._pass_over(number, line)
                continue
            try:
                event = decode(content)
            except ValueError as err:
                raise _damage(self.path, number, str(err)) from err
            yield event
        return Position(offset, number)

    def _pass_over(self, number: int, line: bytes | None) -> None:
        if self.damaged is None:
            raise _damage(self.path, number, "its checksum is wrong")
        event = None
        if line is not None:
            with suppress(ValueError):
                event = decode(line)
        self.damaged.append(DamagedLine(self.path, number, event))


def _damage(path: Path, number: int, why: str) -> JournalError:
    return JournalError(
        f"{path}:{number}: damaged line: {why}",
        hint="Bring the file back from a copy. Without one, run the graph again with --extend-run "
        "--clobber-outputs: the outputs themselves are not affected, and what is done is skipped.",
    )
