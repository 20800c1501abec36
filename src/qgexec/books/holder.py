"""Who has a run in hand, and whether that one still lives: what must be known before another takes over.

A driver on this host is there or not, by its process ID and the time at
which that process started. Of one on another host only its heartbeat can be
seen: that proves life, but its lack proves nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from qgexec.books.history import History, writer_of
from qgexec.books.journal import Writer, has_ended, journal_file, last_epoch, read_writer
from qgexec.errors import RunHeldError
from qgexec.events import RunStarted, WorkerStarted
from qgexec.processes.forkserver import process_started_at

__all__ = [
    "HEARTBEAT_S",
    "Heartbeat",
    "await_end_of_workers",
    "booted_at",
    "check_free",
    "check_not_held",
    "check_silent",
    "driver_is_alive",
    "end_driver",
    "has_restarted_since",
    "require_free",
    "silent_for",
    "this_process",
]

HEARTBEAT_S = 10.0
"""Time between two heartbeats, seconds."""

_SILENT_S = 12 * HEARTBEAT_S
"""Whoever has been silent for that long is perhaps dead: network file systems show a new time late."""

_WORKERS_END_S = 30.0
"""Time that workers whose driver is gone have to end themselves, seconds."""

_KILL_S = 10.0
_PAUSE_S = 0.05

_BETWEEN_SIGNALS_S = 0.5


class Heartbeat:
    """Sets a file's time of modification again and again, from a thread of its own.

    Parameters
    ----------
    path
        The journal file of the driver whose heart it is.
    every_s
        Time between two beats, seconds.
    """

    def __init__(self, path: Path, every_s: float = HEARTBEAT_S) -> None:
        self._path = path
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(self._every_s):
            with contextlib.suppress(OSError):  # the driver itself meets whatever is wrong with the file
                os.utime(self._path)


def driver_is_alive(driver: RunStarted) -> bool | None:
    """Return whether a driver is still there; `None` where only its own host could tell."""
    return _lives(writer_of(driver))


def _lives(writer: Writer) -> bool | None:
    if writer.host != socket.gethostname():
        return None
    return _is_there(writer.pid, writer.pid_started_at)


def _is_there(pid: int, pid_started_at: float) -> bool:
    started_at = process_started_at(pid)
    # One that began later has its number by chance; readings of one start differ by up to 2 s.
    return started_at is not None and started_at <= pid_started_at + 2.0


def require_free(journal: Path, history: History, *, force: bool = False) -> None:
    """Check that no driver has a run in hand, and wait until no worker of an earlier one lives.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    history
        What it says.
    force
        Believe that a driver on another host is gone.

    Raises
    ------
    qgexec.errors.RunHeldError
        A driver or a worker lives, or may live.
    """
    if not history.is_open:
        return
    file = journal_file(journal, history.epoch)
    writer = history.writer
    if writer is None and history.driver is not None:
        writer = writer_of(history.driver)
    if writer is not None:
        check_not_held(writer, file, force=force)
    elif not force:
        check_silent(file)
    await_end_of_workers(history.workers.values())


def check_free(journal: Path, *, silence_is_death: bool = False) -> None:
    """Check that no driver has a run in hand, from the last lines of its journal alone.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    silence_is_death
        Believe that a driver on another host is gone that has given no sign of life for minutes.

    Raises
    ------
    qgexec.errors.RunHeldError
        One has, or may have.
    """
    epoch = last_epoch(journal)
    if not epoch or has_ended(journal, epoch):
        return
    file = journal_file(journal, epoch)
    writer, _ = read_writer(journal, epoch)
    if writer is not None:
        is_silent = silent_for(file) >= _SILENT_S
        check_not_held(writer, file, force=silence_is_death and is_silent)
    else:
        check_silent(file)


def check_silent(file: Path) -> None:
    """Check that whoever made a journal's file, and did not come so far as to say who it is, is long gone.

    Raises
    ------
    qgexec.errors.RunHeldError
        It was made, or changed, a moment ago.
    """
    if silent_for(file) < _SILENT_S:
        raise RunHeldError(
            f"somebody took the run in {file.parent.parent} in hand a moment ago, and has not said who",
            hint=f"Wait {_SILENT_S / 60:.0f} minutes and try again: whoever is as silent until then is gone.",
        )


def end_driver(journal: Path) -> None:
    """Tell the driver of a run to end, if it is a process of this host; elsewhere it looks for the mark."""
    epoch = last_epoch(journal)
    writer = read_writer(journal, epoch)[0] if epoch and not has_ended(journal, epoch) else None
    if writer is None or not _lives(writer):
        return
    for _ in range(2):  # the first lets what runs finish, the second ends it
        _send(writer, signal.SIGTERM)
        time.sleep(_BETWEEN_SIGNALS_S)


def this_process() -> Writer:
    """Return this process as the writer of a journal's file."""
    pid = os.getpid()
    return Writer(socket.gethostname(), pid, process_started_at(pid) or time.time())


def check_not_held(writer: Writer, file: Path, *, force: bool = False) -> None:
    """Check that whoever has not closed its books is gone.

    Parameters
    ----------
    writer
        Who that is.
    file
        Its file of the journal, which shows its heartbeat.
    force
        Believe that it is gone, where that cannot be known.

    Raises
    ------
    qgexec.errors.RunHeldError
        It lives, or may live; says who it is and where.
    """
    run_dir = file.parent.parent
    who = f"process {writer.pid} on {writer.host}"
    match _lives(writer):
        case True:
            raise RunHeldError(
                f"the run in {run_dir} is in the hands of {who}",
                hint=f"See how far it is: qgexec status {run_dir}. To end it: qgexec cancel {run_dir}",
            )
        case False:
            return
    if force:
        return
    silent_s = silent_for(file)
    if silent_s < _SILENT_S:
        raise RunHeldError(
            f"the run in {run_dir} is in the hands of {who}, which gave a sign of life {silent_s:.0f} s ago",
            hint=f"End it there (kill -INT {writer.pid}), or wait for its end. If it is gone: --force.",
        )
    raise RunHeldError(
        f"the run in {run_dir} was in the hands of {who}, silent for {silent_s / 60:.0f} minutes; "
        "whether it is gone cannot be known from here",
        hint=f"Look on {writer.host}. If that process is gone, or the host is, go on with --force.",
    )


def silent_for(file: Path) -> float:
    """Return the time since something was written to a file, by its file system's own clock, seconds."""
    then = file.stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=file.parent) as now:
            now.write(b"now")
            now.flush()
            return max(0.0, os.fstat(now.fileno()).st_mtime - then)
    except OSError:  # it cannot be written to: then the clocks must be trusted to agree
        return max(0.0, time.time() - then)


def has_restarted_since(driver: RunStarted) -> bool:
    """Return whether a driver's host went down after it, as far as can be known; else `True`."""
    if driver.host != socket.gethostname():
        return True
    return booted_at() > driver.at


def booted_at() -> float:
    """Return when this host was started, UNIX seconds; see proc(5), ``/proc/stat``."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return math.inf


def await_end_of_workers(workers: Iterable[WorkerStarted], timeout_s: float = _WORKERS_END_S) -> None:
    """Wait until all workers of a driver that is gone are gone too; those that stay are killed.

    A worker ends itself when its driver does. On other hosts nothing can be seen, and nothing is done.

    Raises
    ------
    qgexec.errors.RunHeldError
        One lives on even so: it hangs in the kernel.
    """
    here = socket.gethostname()
    left = [worker for worker in workers if worker.host == here]
    for kill, limit_s in ((False, timeout_s), (True, _KILL_S)):
        deadline = time.monotonic() + limit_s
        while left := [worker for worker in left if _is_there(worker.pid, worker.pid_started_at)]:
            if kill:
                for worker in left:
                    _kill(worker)
            if time.monotonic() > deadline:
                break
            time.sleep(_PAUSE_S)
    if left:
        pids = ", ".join(str(worker.pid) for worker in left)
        raise RunHeldError(
            f"workers of the earlier driver still run on {here} and do not end: process {pids}",
            hint="They hang in the kernel, as on a file system that is away. Try again when they are gone.",
        )


def _kill(worker: WorkerStarted) -> None:
    """Kill a worker."""
    _send(Writer(worker.host, worker.pid, worker.pid_started_at), signal.SIGKILL)


def _send(process: Writer, number: signal.Signals) -> None:
    """Send a signal to a process and nobody else: the descriptor names that process for good."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if _is_there(process.pid, process.pid_started_at):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
