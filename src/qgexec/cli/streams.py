"""What the command prints to: a stderr that nobody has to read, and a stdout that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Any

from qgexec.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["be_patient", "say_why"]


class _PatientFile(io.FileIO):
    """Writes what can be written.

    The terminal may be gone, ``tee`` or ``head`` may have ended, the disk that holds the log may
    be full: the books of a run are elsewhere, and say all of it.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        n_bytes = len(rest)
        with contextlib.suppress(OSError):
            while rest and (
                n_written := super().write(rest)
            ):  # none: who reads is too slow, and does not wait
                rest = rest[n_written:]
        return n_bytes


def be_patient() -> None:
    """Let `sys.stderr` be such a file from now on, for click, rich, loggers and tracebacks alike."""
    if not isinstance(sys.stderr, io.TextIOWrapper):
        return  # somebody's own, as in a test
    # Without a buffer between: signal handlers write to it, also while something is being written.
    file = _PatientFile(sys.stderr.fileno(), "w", closefd=False)
    sys.stderr = _text(file, sys.stderr, line_buffering=True)


class _OutFile(io.FileIO):
    """Writes for somebody who may have seen enough (``| head``), and says where there is no room."""

    _has_ended = False

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_terminal = self.isatty()  # one that has been closed since says no

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._has_ended:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._has_ended = True
            except OSError as error:
                self._has_ended = True  # Python flushes once more at its end
                if self._is_terminal:
                    return memoryview(data).nbytes
                raise UsageError(
                    f"What was asked for cannot be printed: {error.strerror}.",
                    hint="Print it to where there is room.",
                ) from error
        return memoryview(data).nbytes


def say_why() -> None:
    """Let `sys.stdout` be such a file from now on."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return  # somebody's own, as in a test
    file = io.BufferedWriter(_OutFile(sys.stdout.fileno()))
    sys.stdout = _text(file, sys.stdout, line_buffering=sys.stdout.line_buffering)


def _text(
    file: io.BufferedWriter[Any] | io.FileIO, former: io.TextIOWrapper, *, line_buffering: bool
) -> io.TextIOWrapper:
    """Return a stream of text that takes the place of another one."""
    former.flush()
    return io.TextIOWrapper(
        file,
        encoding=former.encoding,
        errors="backslashreplace",  # data IDs and messages may hold what the locale's encoding does not have
        line_buffering=line_buffering,
    )
