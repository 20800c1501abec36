"""Counts the signals by which a user tells a run to end, or asks how far it is; decides nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from qgexec.errors import RunInterrupted

__all__ = ["Interrupts"]


class Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP, and notes SIGUSR1.

    The first Ctrl-C or SIGTERM lets running quanta finish, the second ends them; SIGUSR1 asks how far it is.
    SIGHUP is as SIGTERM, but counts once: who closes a terminal has shell and kernel send several. Where it
    is ignored when the run begins (nohup), it stays so.

    Parameters
    ----------
    notice
        Called from the signal handler with the count so far, to tell the
        user what happens now.
    grace_s
        Time that running quanta have to finish after the first, seconds; `None` for as long as they take.
    """

    def __init__(
        self, notice: Callable[[int], None] = lambda _count: None, *, grace_s: float | None = None
    ) -> None:
        self.count = 0
        self.first: int | None = None
        """Number of the first signal that was counted."""
        self.asked = False
        """SIGUSR1 came since this was last set to `False`."""
        self._notice = notice
        self._grace_s = grace_s
        self._first_at = 0.0
        self._has_hung_up = False
        self._may_raise = False

    @property
    def patience_over(self) -> bool:
        """What runs is to be ended: a second signal came, or the time to finish is over."""
        if self.count == 1 and self._grace_s is not None:
            return time.monotonic() >= self._first_at + self._grace_s
        return self.count > 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take the signals while the block runs; only the main thread can, in others this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGINT: self.handle, signal.SIGTERM: self.handle, signal.SIGUSR1: self._ask}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._hang_up
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise `qgexec.errors.RunInterrupted` where a signal leaves no time, while the block runs.

        Quanta run in this thread then, and only an exception ends one. Nowhere else may one come out of a
        signal handler: between the journal and the scheduler it would make them disagree.
        """
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if not self._has_hung_up:
            self._has_hung_up = True
            self.handle(number, frame)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Count one more signal; the handler of Ctrl-C and SIGTERM."""
        self.count += 1
        if self.count == 1:
            self.first, self._first_at = number, time.monotonic()
        self._notice(self.count)
        if self.patience_over and self._may_raise:
            raise RunInterrupted
