"""Owns how a process is made to log what it was asked to, by upstream's own set-up; knows no quantum."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lsst.daf.butler.cli.cliLog import CliLog, PrecisionLogFormatter

from qgexec.config.logoptions import LogOptions
from qgexec.errors import UsageError
from qgexec.plaintext import PrintableFormatter
from qgexec.processes.forkserver import driver_stderr

__all__ = ["begin_logging", "given_logging"]


def begin_logging(options: LogOptions) -> None:
    """Log what is asked for, from now on; does nothing in a process that upstream has set up already.

    Parameters
    ----------
    options
        What to log. To the terminal means to the driver's standard error, also
        from a worker whose own goes to a file.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be written; nothing has changed then.
    """
    if CliLog.configState:
        return
    for file in options.files:
        try:
            with open(file, "ab"):  # noqa: PTH123 - as upstream will open it
                pass
        except OSError as error:
            raise UsageError(
                f"--log-file {file} cannot be written: {error.strerror}.",
                hint="Name a file in a folder that exists and that you may write to.",
            ) from error
    # The disk with a log may become full: that costs what is logged, and not a traceback for each record.
    logging.raiseExceptions = False
    # Not upstream's handler for the terminal: it writes to what is standard error in this process.
    CliLog.initLog(
        longlog=options.long, log_tty=False, log_file=options.files, log_label=dict(options.labels) or None
    )
    if options.terminal:
        handler = logging.StreamHandler(_terminal())
        if options.long:
            formatter: logging.Formatter = PrecisionLogFormatter(fmt=CliLog.pylog_longLogFmt, style="{")
        else:
            formatter = logging.Formatter(fmt=CliLog.pylog_normalFmt, style="{")
        handler.setFormatter(PrintableFormatter(formatter))
        logging.getLogger().addHandler(handler)
    CliLog.setLogLevels(list(options.levels))


def _terminal() -> io.TextIOBase:
    """Return the driver's standard error; whole lines are written at once, so that workers' do not mix."""
    inherited = driver_stderr()
    if inherited is None:
        return sys.stderr  # type: ignore[return-value]  # a text stream, whatever it is
    return os.fdopen(os.dup(inherited), "w", encoding="utf-8", errors="backslashreplace")


@contextmanager
def given_logging(options: LogOptions) -> Iterator[None]:
    """Log what is asked for until the block ends; raises as `begin_logging`.

    Where upstream's set-up was done before, in the driver's own process, it is left alone.
    """
    if CliLog.configState:
        yield
        return
    root = logging.getLogger()
    handlers, showwarning = root.handlers[:], warnings.showwarning
    loggers = [root, *map(logging.getLogger, sorted(CliLog.root_loggers()))]
    levels = [(logger, logger.level) for logger in loggers]
    begin_logging(options)
    try:
        yield
    finally:
        CliLog.resetLog()
        root.handlers[:] = handlers
        if warnings.showwarning is not showwarning:
            logging.captureWarnings(False)
        for logger, level in levels:
            logger.setLevel(level)
