"""What a process and all that it has started use, and how to reach them; knows ``/proc``, and no quanta."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Sight",
    "adopt_orphans",
    "children_of",
    "descendants",
    "end_descendants",
    "find_new",
    "find_strays",
    "kill",
    "living_descendants",
    "look_at",
    "stat_fields",
]

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_S = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sight:
    """A process and its descendants at one moment."""

    state: str
    """State of the process itself, a letter as in proc_pid_stat(5): ``T`` if a signal has stopped it."""

    used_bytes: int
    """Memory of the process and its descendants; what they share is counted once."""

    n_descendants: int = 0
    """Descendants that were counted."""


def look_at(
    pid: int, proc: Path = _PROC, without: Collection[int] = (), *, since_s: float = 0.0
) -> Sight | None:
    """Look at a process; about 0.05 ms, and 1 ms more for each gigabyte of descendants.

    Parameters
    ----------
    pid
        The process.
    proc
        Where the kernel shows processes.
    without
        Process IDs of descendants that do not count, nor what they have started.
    since_s
        Descendants that were started before do not count; by the clock that runs since the machine was
        started, also while it sleeps.

    Returns
    -------
    sight
        `None` where there is no such process. Alone, a process uses its resident set. A child that was
        forked shares pages with it, so with descendants the proportional shares are added up.
    """
    found = _state_and_rss(proc / str(pid))
    if found is None:
        return None
    state, own_bytes = found
    found_now = _descendants(proc / str(pid), proc, without)
    children = [each for each in found_now if _is_since(each, since_s)]
    if not children:
        return Sight(state, own_bytes)
    shares = [_share_bytes(folder) for folder in (proc / str(pid), *children)]
    # A share is less than the resident set by what is shared with the server that forked the worker.
    return Sight(state, max(own_bytes, sum(shares)), len(children))


def _is_since(folder: Path, since_s: float) -> bool:
    """Tell whether a process was not started before; the kernel counts in hundredths of a second."""
    if not since_s:
        return True
    fields = stat_fields(folder)
    return fields is not None and len(fields) > 19 and (int(fields[19]) + 1) / _TICKS_PER_S >= since_s


def find_strays(pid: int, proc: Path = _PROC) -> list[int]:
    """Return pidfds of the descendants that have left a process's group: a signal to the group misses them.

    Parameters
    ----------
    pid
        The process, leader of its group; it is alive, or nothing is found.
    proc
        Where the kernel shows processes.

    Returns
    -------
    pidfds
        To be given to `kill`.
    """
    return _open_descendants(pid, proc, lambda _folder, fields: int(fields[2]) != pid)


def descendants(pid: int, proc: Path = _PROC) -> frozenset[int]:
    """Return the process IDs of the living descendants; of a child that has died they are not found."""
    return frozenset(int(folder.name) for folder in _descendants(proc / str(pid), proc))


def children_of(pid: int) -> frozenset[int]:
    """Return the process IDs of a process's children, also of those that nobody has waited for."""
    return frozenset(_children(_PROC / str(pid)))


def find_new(pid: int, old: Collection[int], proc: Path = _PROC) -> list[int]:
    """Return pidfds, to be given to `kill`, of the descendants that were not among the old ones."""
    return _open_descendants(pid, proc, lambda folder, _fields: int(folder.name) not in old)


def living_descendants(*, reaps: bool = False) -> frozenset[int]:
    """Return the process IDs of this process's descendants that live.

    Parameters
    ----------
    reaps
        Wait for children that have ended, whoever has started them: nobody else can any more.
    """
    found = descendants(os.getpid())
    return frozenset(pid for pid in found if not _is_over(pid, reaps=reaps)) if found else found


def _is_over(pid: int, *, reaps: bool) -> bool:
    fields = stat_fields(_PROC / str(pid))
    if not fields or fields[0] == b"X":
        return True
    if fields[0] != b"Z":
        return False
    if reaps:
        with suppress(ChildProcessError):  # its parent is another one
            os.waitpid(pid, os.WNOHANG)
    return True


def adopt_orphans(*, on: bool = True) -> None:
    """Have descendants whose parent dies become children of this process, also daemons; see prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def end_descendants(spared: Collection[int] = (), *, term_s: float = 2.0, kill_s: float = 2.0) -> None:
    """End the descendants of this process, and what they start meanwhile.

    Parameters
    ----------
    spared
        Process IDs of those that may stay.
    term_s
        Time between SIGTERM and SIGKILL, seconds.
    kill_s
        Longest wait after SIGKILL, seconds.
    """
    for number, limit_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, kill_s)):
        deadline = time.monotonic() + limit_s
        told = {*spared}
        while left := living_descendants(reaps=True).difference(spared):
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            pidfds = find_new(os.getpid(), told)
            _send(pidfds, number)
            told |= left
            _wait_for_one(pidfds, min(left_s, _PAUSE_S))


def _send(pidfds: Sequence[int], number: signal.Signals) -> None:
    for pidfd in pidfds:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(pidfd, number)


def _wait_for_one(pidfds: Sequence[int], timeout_s: float) -> None:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    poll.poll(timeout_s * 1000)
    for pidfd in pidfds:
        os.close(pidfd)


def kill(pidfds: Sequence[int]) -> None:
    """Send SIGKILL to processes, and close their pidfds."""
    _send(pidfds, signal.SIGKILL)
    for pidfd in pidfds:
        os.close(pidfd)


def _open_descendants(pid: int, proc: Path, is_wanted: Callable[[Path, list[bytes]], bool]) -> list[int]:
    pidfds = []
    for folder in _descendants(proc / str(pid), proc):
        fields = stat_fields(folder)
        if not fields or not is_wanted(folder, fields):
            continue
        with suppress(OSError):
            pidfds.append(os.pidfd_open(int(folder.name)))
            # The number may have been given to another process meanwhile: one that started at another time.
            if not (again := stat_fields(folder)) or again[19] != fields[19]:
                os.close(pidfds.pop())
    return pidfds


def stat_fields(folder: Path) -> list[bytes] | None:
    """Return the fields of a process's ``stat`` from the third on, the state; `None` if it is not to be seen.

    Parameters
    ----------
    folder
        The process's folder in ``/proc``; see proc_pid_stat(5).
    """
    try:
        # The name before the last parenthesis may hold anything.
        return (folder / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def _state_and_rss(folder: Path) -> tuple[str, int] | None:
    fields = stat_fields(folder)
    return None if not fields else (fields[0].decode("ascii"), int(fields[21]) * _PAGE_BYTES)


def _descendants(folder: Path, proc: Path, without: Collection[int] = ()) -> Iterator[Path]:
    """Yield the folders of all living descendants."""
    pending = [folder]
    while pending:
        children = [proc / str(pid) for pid in _children(pending.pop()) if pid not in without]
        yield from children
        pending += children


def _children(folder: Path) -> Iterator[int]:
    """Yield the process IDs of the children of all threads of a process."""
    with suppress(OSError):
        for thread in os.listdir(folder / "task"):  # noqa: PTH208 - a Path for each would cost as much as reading it
            with suppress(OSError):
                yield from map(int, (folder / "task" / thread / "children").read_text("ascii").split())


def _share_bytes(folder: Path) -> int:
    """Return the memory of one process where shared pages count in proportion, or all where none can tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in (folder / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    found = _state_and_rss(folder)
    return 0 if found is None else found[1]
