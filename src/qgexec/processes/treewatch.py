"""Watches from a thread how much memory this process and what it has started use together; ends nothing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from qgexec.processes.proctree import look_at

__all__ = ["TreeWatch"]


class TreeWatch:
    """Looks at this process and its descendants now and then, while something is measured.

    The kernel keeps the peak of each process, but not of several together.

    Parameters
    ----------
    period_s
        Time between two looks, seconds; each takes about 30 us where there is no descendant.
    proc
        Where the kernel shows processes.
    """

    def __init__(self, period_s: float = 0.1, proc: Path = Path("/proc")) -> None:
        self._period_s = period_s
        self._proc = proc
        self._stopped = threading.Event()
        self._measured: list[float] | None = None  # since when, and the peak; a new one for each measurement
        self._thread = threading.Thread(target=self._watch, name="qgexec-memory", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Measure anew; descendants that are there already do not count."""
        self._measured = [time.clock_gettime(time.CLOCK_BOOTTIME), 0.0]

    def end(self) -> int:
        """Return the most memory that was seen since `begin`, bytes; 0 where nothing was started."""
        measured, self._measured = self._measured, None
        return 0 if measured is None else int(measured[1])

    def look(self) -> None:
        """Look once; the thread does so by itself."""
        measured = self._measured
        if measured is None:
            return
        sight = look_at(os.getpid(), self._proc, since_s=measured[0])
        if sight is not None and sight.n_descendants:
            measured[1] = max(measured[1], sight.used_bytes)

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._period_s):
            self.look()
