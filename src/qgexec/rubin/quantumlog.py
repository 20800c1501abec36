"""Logging where quanta are executed: levels as pipetask sets them, and a plain-text log for the killed.

The log datasets are upstream's own affair; they hold what the loggers let through.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsst.daf.butler import ButlerLogRecords
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.logging import ButlerLogRecord

from qgexec.books.linefile import file_error
from qgexec.errors import RunDirError
from qgexec.plaintext import encodable

__all__ = ["QuantumLogRecords", "StreamedLog", "pipetask_logging"]


class QuantumLogRecords(ButlerLogRecords):
    """Log records of one quantum; one whose arguments do not match its message is lost, and nothing else.

    So it is with ``pipetask run -j 2``, which streams them to a file. With
    one process, or without a full butler, upstream's own container stands in
    for that, and raises out of the task's log call.
    """

    def __init__(self) -> None:
        super().__init__([])

    def append(self, value: logging.LogRecord | ButlerLogRecord) -> None:
        """Add a record. `StreamedLog` says on stderr what is wrong with one that cannot be added."""
        with contextlib.suppress(Exception):
            super().append(_encodable(value) if isinstance(value, logging.LogRecord) else value)


def _encodable(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record whose text can be stored: undecodable file names in it are escaped."""
    text = record.getMessage()
    try:
        (text + (record.exc_text or "")).encode()
    except UnicodeEncodeError:
        escaped = {"msg": encodable(text), "args": None, "exc_text": encodable(record.exc_text or "") or None}
        return logging.makeLogRecord(vars(record) | escaped)
    return record


class StreamedLog(logging.Handler):
    """Writes each record to a file before the logging call returns; starts the file anew for each attempt.

    Its reader is whoever asks why a quantum was killed: the log dataset is
    written at a quantum's end only. A log that was kept makes room: the
    file is not there until the next attempt, and what is logged meanwhile is lost.

    Parameters
    ----------
    path
        The file; created, or emptied.

    Raises
    ------
    OSError
        It cannot be created.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._fd: int | None = self._create()
        self._written = False
        self._second = -1
        self._second_text = ""

    def restart(self, title: str) -> None:
        """Empty the file and begin it with a title line.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written.
        """
        try:
            if self._fd is None:
                self._fd = self._create()
            elif self._written:
                os.ftruncate(self._fd, 0)
            self._write(title)
        except OSError as error:
            raise file_error("write", self._path, error, RunDirError) from error

    def keep(self, path: Path) -> None:
        """Give the file this name, in place of one that has it, and write nothing more to it; once.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be renamed.
        """
        if self._fd is None:
            return
        try:
            self._path.replace(path)
        except OSError as error:
            raise file_error("write", path, error, RunDirError) from error
        self._let_go()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one line, or several where the message or a traceback has more."""
        try:
            self._write(
                f"{self._time(record.created)} {record.levelname} {record.name}: {self.format(record)}"
            )
        except Exception:  # noqa: BLE001  a log call must not fail the quantum
            self.handleError(record)

    def close(self) -> None:
        """Close the file; may be called twice."""
        super().close()
        self._let_go()

    def discard(self) -> None:
        """Close and remove the file, for nobody asks for what is in it any more."""
        has_file = self._fd is not None
        self.close()
        if has_file:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _create(self) -> int:
        # In append mode a truncation never leaves a hole at the start of the file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._path, flags, 0o666)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _write(self, text: str) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, (text + "\n").encode("utf-8", "backslashreplace"))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            self._fd = None  # a task has closed it
        self._written = True

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int(at % 1 * 1000):03d}Z"


@contextmanager
def pipetask_logging(level: str) -> Iterator[None]:
    """Let through what ``pipetask run`` lets through, with the data ID of the quantum in each record.

    Upstream's own set-up does it, so that C++ loggers, where there are any,
    come along. Where it has been done already in this process, it is left
    alone. Add a handler to the root logger before, else upstream adds one
    that writes to the terminal.

    Parameters
    ----------
    level
        Level of ``lsst`` and of the loggers that upstream's variable
        ``DAF_BUTLER_ROOT_LOGGER`` names; the others are at WARNING.
    """
    if CliLog.configState:
        yield
        return
    loggers = [logging.getLogger(), *map(logging.getLogger, sorted(CliLog.root_loggers()))]
    before = [(logger, logger.level) for logger in loggers]
    showwarning = warnings.showwarning
    CliLog.initLog(longlog=False)
    CliLog.setLogLevels([(None, level)])
    captures_warnings = warnings.showwarning is not showwarning
    try:
        yield
    finally:
        CliLog.resetLog()
        if captures_warnings:
            logging.captureWarnings(False)
        for logger, old_level in before:
            logger.setLevel(old_level)  # upstream's reset leaves its own default behind
