"""Starts commands of `qgexec` that outlive ``bps``, and tells whether they have begun; knows no settings."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qgexec.books.journal import Position, journal_file, last_epoch, read_events
from qgexec.bps.submission import Submission
from qgexec.errors import JournalError, ModelError
from qgexec.events import RunStarted
from qgexec.processes.interpreter import module_command

__all__ = ["launch"]

_logger = logging.getLogger(f"lsst.{__name__}")  # what the --log-level of bps is about

_PAUSE_S = 0.2

_WELL = (0, 1)
"""Exit codes of a run that came to its end: 1 where quanta failed."""

_LAST_LINES = 15


def launch(submission: Submission, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Start a command that executes a run, and return when the run has begun, or been handed over.

    Parameters
    ----------
    submission
        What the run is; says whether to wait for the command's end.
    command
        Arguments of `qgexec`.
    variables
        What it is given besides this process's environment.

    Raises
    ------
    qgexec.errors.ModelError
        It ended before the run had begun, or was handed over; the message is the command's own.
    """
    journal = submission.run_dir / "journal"
    before = last_epoch(journal) if journal.exists() else 0
    with submission.log.open("ab") as log:
        log.write(f"$ {shlex.join(['qgexec', *command])}\n".encode())
        log.flush()
        said_before = log.tell()
        # In a session of its own: neither Ctrl-C nor the end of the terminal is meant for it.
        process = subprocess.Popen(
            module_command("qgexec", *command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    # As long as its parent does not wait for it, a process that has ended would be taken for alive.
    threading.Thread(target=process.wait, daemon=True).start()
    if not submission.ends:
        while process.poll() is None and not _has_begun(journal, before):
            time.sleep(_PAUSE_S)
        _logger.info("Process %d executes the run; what it says: %s", process.pid, submission.log)
    if submission.ends or submission.waits:
        process.wait()
    if process.poll() is not None and process.returncode not in _WELL:
        raise ModelError(_last_words(submission.log, said_before, process.returncode))


def _has_begun(journal: Path, before: int) -> bool:
    """Return whether a driver that came after so many others has taken the run in hand."""
    try:
        if not journal.exists() or last_epoch(journal) <= before:
            return False
        earlier = {
            epoch: Position(journal_file(journal, epoch).stat().st_size, 1) for epoch in range(1, before + 1)
        }
        return any(isinstance(event, RunStarted) for event in read_events(journal, earlier))
    except (JournalError, OSError):  # it is made, or taken back, right now
        return False


def _last_words(log: Path, begin: int, code: int) -> str:
    """Return the error that a command ended with."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "backslashreplace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    words = lines[starts[-1] :] if starts else lines[-_LAST_LINES:]
    text = "\n".join(words).removeprefix("Error: ")
    return f"{text}\n(qgexec ended with exit code {code}; all that it said: {log})".lstrip()
