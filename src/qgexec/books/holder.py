"""Who has a run in hand, and whether that one still lives: what must be known before another takes over.

A process that can be seen from here (same boot, same PID namespace, not hidden) is there or not, and its
being gone is proof at once. Of any other only the heartbeat can be seen: a young one proves life, and nobody
may overrule it; an old one proves nothing, and somebody who knows better must say that it is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from qgexec.books.heartbeat import HEARTBEAT_S
from qgexec.books.history import History, writer_of
from qgexec.books.journal import Writer, has_ended, journal_file, last_epoch, read_writer
from qgexec.errors import RunHeldError
from qgexec.events import RunStarted, WorkerStarted
from qgexec.processes.births import KERNEL, Kernel
from qgexec.processes.forkserver import process_started_at
from qgexec.processes.orphans import end_orphans, server_mark

__all__ = [
    "YOUNG_S",
    "await_end_of_workers",
    "booted_at",
    "check_free",
    "check_not_held",
    "check_silent",
    "driver_is_alive",
    "end_driver",
    "has_restarted_since",
    "lives",
    "read_when_free",
    "require_free",
    "silent_for",
    "this_process",
]

YOUNG_S = 12 * HEARTBEAT_S
"""A heartbeat younger than this is a sign of life: network file systems show a new time late."""

_WORKERS_END_S = 30.0
"""Time that workers whose driver is gone have to end themselves, seconds."""

_KILL_S = 10.0
_PAUSE_S = 0.05

_BETWEEN_SIGNALS_S = 0.5


def driver_is_alive(driver: RunStarted) -> bool | None:
    """Return whether a driver is still there; `None` where that cannot be seen from here."""
    return lives(writer_of(driver))


def lives(process: Writer, kernel: Kernel = KERNEL) -> bool | None:
    """Return whether a process is still there; `None` where that cannot be seen from here.

    Of one that an older version wrote down, without its birth, only life can be seen: where its number is not
    there, or seems to have begun at another time, it may be in another namespace, or a clock was set.
    """
    if process.birth is not None:
        return kernel.lives(process.pid, process.birth)
    return True if _seems_to_live(process) else None


def _seems_to_live(process: Writer) -> bool:
    if process.host != socket.gethostname():
        return False
    try:
        started_at = process_started_at(process.pid)
    except OSError:  # hidden
        return False
    # Readings of one start differ by up to 2 s.
    return started_at is not None and abs(started_at - process.pid_started_at) <= 2.0


def read_when_free(journal: Path, read: Callable[[], History], *, force: bool = False) -> History:
    """Return what a journal says when no driver has the run in hand any more.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    read
        Reads it (`qgexec.books.history.History.read`).
    force
        As for `require_free`.

    Raises
    ------
    qgexec.errors.JournalError
        A driver or a worker lives, or may live; or the journal cannot be read.
    """
    while True:
        before = _size(journal)
        history = read()
        require_free(journal, history, force=force)
        if _size(journal) == before:
            return history
        # The driver has ended in an orderly way since: its last words count.


def _size(journal: Path) -> tuple[int, int]:
    """Return the number of a journal's files and the size of the last, bytes."""
    epoch = last_epoch(journal)
    return epoch, journal_file(journal, epoch).stat().st_size if epoch else 0


def require_free(journal: Path, history: History, *, force: bool = False) -> None:
    """Check that no driver has a run in hand, and wait until no worker of an earlier one lives.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    history
        What it says.
    force
        Believe that a driver that cannot be seen is gone, if it gives no sign of life.

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
    else:
        check_silent(file)
    await_end_of_workers(history.workers.values())
    if history.driver is not None:
        _end_what_workers_started(history.driver, history.workers.values())


def _end_what_workers_started(driver: RunStarted, workers: Iterable[WorkerStarted]) -> None:
    """End processes of workers that are gone: who was killed with its server has left them to nobody."""
    birth, here = driver.birth, KERNEL.birth(os.getpid())
    if birth is None or here is None or (birth.boot_id, birth.namespaces) != (here.boot_id, here.namespaces):
        return
    mark = server_mark(driver.pid, birth.start_ticks)
    end_orphans({worker.pid for worker in workers}, mark, birth.start_ticks)


def check_free(journal: Path, *, silence_is_death: bool = False) -> None:
    """Check that no driver has a run in hand, from the last lines of its journal alone.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    silence_is_death
        Believe that a driver that cannot be seen is gone, if it gives no sign of life.

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
        check_not_held(writer, file, force=silence_is_death)
    else:
        check_silent(file)


def check_silent(file: Path) -> None:
    """Check that whoever made a journal's file, and did not come so far as to say who it is, is long gone.

    Raises
    ------
    qgexec.errors.RunHeldError
        It was made, or changed, a moment ago.
    """
    if silent_for(file) < YOUNG_S:
        raise RunHeldError(
            f"somebody took the run in {file.parent.parent} in hand a moment ago, and has not said who",
            hint=f"Wait {YOUNG_S / 60:.0f} minutes and try again: whoever is as silent until then is gone.",
        )


def end_driver(journal: Path) -> None:
    """Tell the driver of a run to end, if it is a process of this host; elsewhere it looks for the mark."""
    epoch = last_epoch(journal)
    writer = read_writer(journal, epoch)[0] if epoch and not has_ended(journal, epoch) else None
    if writer is None or not lives(writer):
        return
    for _ in range(2):  # the first lets what runs finish, the second ends it
        _send(writer, signal.SIGTERM)
        time.sleep(_BETWEEN_SIGNALS_S)


def this_process(kernel: Kernel = KERNEL) -> Writer:
    """Return this process as the writer of a journal's file."""
    pid = os.getpid()
    return Writer(socket.gethostname(), pid, process_started_at(pid) or time.time(), kernel.birth(pid))


def check_not_held(writer: Writer, file: Path, *, force: bool = False, kernel: Kernel = KERNEL) -> None:
    """Check that whoever has not closed its books is gone.

    Parameters
    ----------
    writer
        Who that is.
    file
        Its file of the journal, which shows its heartbeat.
    force
        Believe that it is gone, where that cannot be seen and it gives no sign of life.
    kernel
        Shows processes.

    Raises
    ------
    qgexec.errors.RunHeldError
        It lives, or may live; says who it is and where.
    """
    run_dir = file.parent.parent
    who = f"process {writer.pid} on {writer.host}"
    match lives(writer, kernel):
        case True:
            raise RunHeldError(
                f"the run in {run_dir} is in the hands of {who}",
                hint=f"See how far it is: qgexec status {run_dir}. To end it: qgexec cancel {run_dir}",
            )
        case False:
            return
    silent_s = silent_for(file)
    if silent_s < YOUNG_S:
        raise RunHeldError(
            f"the run in {run_dir} is in the hands of {who}, which gave a sign of life {silent_s:.0f} s ago",
            hint=f"End it there (kill -INT {writer.pid}), or from here: qgexec cancel {run_dir}\n"
            f"If it is gone: qgexec resume {run_dir} --force, once it has been silent for {YOUNG_S:.0f} s.",
        )
    if force:
        return
    raise RunHeldError(
        f"the run in {run_dir} was in the hands of {who}, silent for {silent_s / 60:.0f} minutes; "
        "whether it is gone cannot be known from here",
        hint=f"{_why_unseen(writer)} If it is gone: qgexec resume {run_dir} --force",
    )


def _why_unseen(writer: Writer) -> str:
    """Return why a process cannot be seen, and where it could be."""
    if writer.host != socket.gethostname():
        return f"Look on {writer.host} (ps -p {writer.pid})."
    return (
        "It began before this machine was last started, in another container (PID namespace), "
        "on another machine of the same name, or is hidden (hidepid)."
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


def has_restarted_since(driver: RunStarted, kernel: Kernel = KERNEL) -> bool:
    """Return whether a driver's host went down after it, as far as can be known; else `True`."""
    here = kernel.birth(os.getpid())
    if driver.birth is not None and here is not None:
        return driver.birth.boot_id != here.boot_id
    return driver.host != socket.gethostname() or booted_at() > driver.at


def booted_at() -> float:
    """Return when this host was started, UNIX seconds; see proc(5), ``/proc/stat``."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return math.inf


def await_end_of_workers(workers: Iterable[WorkerStarted], timeout_s: float = _WORKERS_END_S) -> None:
    """Wait until all workers of a driver that is gone are gone too; those that stay are killed.

    A worker ends itself when its driver does. Where they cannot be seen nothing is done.

    Raises
    ------
    qgexec.errors.RunHeldError
        One lives on even so: it hangs in the kernel.
    """
    left = [Writer(worker.host, worker.pid, worker.pid_started_at, worker.birth) for worker in workers]
    for kill, limit_s in ((False, timeout_s), (True, _KILL_S)):
        deadline = time.monotonic() + limit_s
        while left := [worker for worker in left if lives(worker)]:
            if kill:
                for worker in left:
                    _send(worker, signal.SIGKILL)
            if time.monotonic() > deadline:
                break
            time.sleep(_PAUSE_S)
    if left:
        pids = ", ".join(str(worker.pid) for worker in left)
        raise RunHeldError(
            f"workers of the earlier driver still run on {left[0].host} and do not end: process {pids}",
            hint="They hang in the kernel, as on a file system that is away. Try again when they are gone.",
        )


def _send(process: Writer, number: signal.Signals) -> None:
    """Send a signal to a process and nobody else: the descriptor names that process for good."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if lives(process):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
