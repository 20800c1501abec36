"""Forks of the test's own process, seen to be gone with all that they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.processes import warm
from tests.kit.processes.kills import die

KILLED = -signal.SIGKILL

DEADLINE_S = 90.0
"""Longest wait for something that must happen: reached only where it does not."""

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


@dataclass(slots=True)
class Fork:
    """A fork of this process at work."""

    pid: int
    lifeline: int
    """The end of a pipe whose other end the fork holds, and all that it started."""

    def finish(self) -> int:
        """Wait until it and all that it started is gone; return how it ended."""
        deadline = time.monotonic() + DEADLINE_S
        process = os.pidfd_open(self.pid)
        try:
            in_time = is_ready(process, deadline)
            if not in_time:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            assert in_time, "a driver did not come to its end"
            assert is_ready(self.lifeline, deadline), "processes of a driver that is gone are still there"
        finally:
            os.close(process)
            os.close(self.lifeline)
        return os.waitstatus_to_exitcode(status)


def start_fork(work: Callable[[], int]) -> Fork:
    """Do something in a fork of this process, which ends with what is returned as its status."""
    ours, theirs = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if not pid:
        status = 3
        try:
            die_with(parent)
            os.close(ours)
            warm.hold_on(theirs)
            status = work()
        except BaseException:  # noqa: BLE001 - it must not come out in the copy of the test
            complain()
        finally:
            os._exit(status)
    os.close(theirs)
    return Fork(pid, ours)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that forked it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        die()


def complain() -> None:
    """Print what was raised; where that cannot be printed, a full disk is what it is about."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def is_ready(descriptor: int, deadline: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    return bool(ready)


class Flag:
    """Something that one process waits for and another one says; both by the flag's path alone.

    Parameters
    ----------
    path
        Where it is made.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        # Open for both: nobody waits for the other side to open it, and what was said stays.
        self._kept = os.open(path, os.O_RDWR)

    def raise_(self) -> None:
        """Say it."""
        descriptor = os.open(self._path, os.O_RDWR)
        os.write(descriptor, b"!")
        os.close(descriptor)

    def wait(self) -> None:
        """Wait for it; each time that it was said lets one go on."""
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            assert is_ready(descriptor, time.monotonic() + DEADLINE_S), f"{self._path.name} was never said"
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._kept)


def replace(owner: Any, name: str, value: object) -> None:
    """Put something in the place of what an object or a module has, in this process and its forks."""
    setattr(owner, name, value)
