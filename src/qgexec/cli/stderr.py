"""A stderr that nobody has to read: what is said there may be lost, and a run is not."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["be_patient"]


class _PatientFile(io.FileIO):
    """Writes what can be written.

    The terminal may be gone, ``tee`` or ``head`` may have ended, the disk that holds the log may
    be full: the books of a run are elsewhere, and say all of it.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def be_patient() -> None:
    """Let `sys.stderr` be such a file from now on, for click, rich, loggers and tracebacks alike."""
    if not isinstance(sys.stderr, io.TextIOWrapper):
        return  # somebody's own, as in a test
    sys.stderr.flush()
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_PatientFile(sys.stderr.fileno(), "w", closefd=False)),
        encoding=sys.stderr.encoding,
        errors="backslashreplace",  # data IDs and messages may hold what the locale's encoding does not have
        line_buffering=True,
    )
