"""Ends a quantum that runs in this process when its time is up: by an exception, else with the process.

An alarm raises `qgexec.errors.QuantumTimeUp` in the main thread, between two of Python's instructions. A
quantum that is deep in a library at that moment, or that catches whatever comes, goes on; after a period
of grace a thread of `faulthandler`'s, which needs nothing of Python, writes all stacks and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from qgexec.errors import QuantumTimeUp
from qgexec.processes.proctree import descendants, find_new, kill

__all__ = ["TimeLimit", "is_debugged", "may_limit"]

_LEAST_S = 1e-6
"""A timer that is set to 0 is none, seconds."""

T = TypeVar("T")


def is_debugged() -> bool:
    """Say whether a debugger follows this thread: time passes there while somebody thinks."""
    if sys.gettrace() is not None:
        return True
    monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12 on
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None


def may_limit() -> bool:
    """Say whether a quantum in this thread can be ended: only the main thread hears an alarm."""
    return threading.current_thread() is threading.main_thread() and not is_debugged()


class TimeLimit:
    """The time limit of one attempt; for the main thread.

    Parameters
    ----------
    timeout_s
        Time after which it is ended, seconds.
    grace_s
        Time that it then has to end itself, seconds.
    stack_file
        The stacks of all threads are written to it at that moment, and once
        more when the process is ended. It is there only if they were.
    """

    def __init__(self, timeout_s: float, grace_s: float, stack_file: Path) -> None:
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._path = stack_file
        self._warning = (
            f"A quantum ran over its time limit of {timeout_s:g} s. If it does not end within {grace_s:g} s, "
            "this process ends; then go on with `qgexec resume`.\n"
        ).encode()
        self._fd = -1
        self._children_before: frozenset[int] = frozenset()
        self._may_raise = False
        self.is_up = False
        """The time limit was reached."""

    def run(self, do: Callable[[], T]) -> T:
        """Do something; about 0.2 ms beside it. When its time is up, what it has started is ended with it.

        Raises
        ------
        qgexec.errors.QuantumTimeUp
            Its time is up.
        """
        self._children_before = descendants(os.getpid())
        before = signal.getsignal(signal.SIGALRM)
        began = time.monotonic()
        left_s, interval_s = signal.getitimer(signal.ITIMER_REAL)
        self._open()
        try:
            signal.signal(signal.SIGALRM, self._ring)
            self._may_raise = True
            signal.setitimer(signal.ITIMER_REAL, max(self._timeout_s, _LEAST_S))
            try:
                return do()
            finally:
                # First of all: from here on nothing may come between what is done and its result.
                self._may_raise = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            self._close()
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
            if left_s:  # an alarm of the program's own rings when it would have, or now
                left_s = max(left_s - (time.monotonic() - began), _LEAST_S)
                signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if is_debugged():  # since it began: a breakpoint in a task
            faulthandler.cancel_dump_traceback_later()
        elif self._may_raise:
            self.is_up = True
            # Should it not end itself, nothing else would be said: the process ends without a word.
            os.write(2, self._warning)
            if self._fd >= 0:
                faulthandler.dump_traceback(self._fd)
            # Now: who has started a child often waits for its end before an exception goes any further.
            kill(find_new(os.getpid(), self._children_before))
            raise QuantumTimeUp

    def _open(self) -> None:
        """Have the process ended when the grace period is over."""
        with contextlib.suppress(OSError):  # a full disk: then without the stacks
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o666)
        limit_s = self._timeout_s + self._grace_s
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self._fd if self._fd >= 0 else 2)

    def _close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._fd < 0:
            return
        is_empty = os.fstat(self._fd).st_size == 0
        os.close(self._fd)
        if is_empty:
            self._path.unlink(missing_ok=True)
