"""What an attempt took from this process: wall time, CPU time, peak memory; knows no quanta."""

from __future__ import annotations

import contextlib
import resource
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "Usage"]

_RESET_PEAK = b"5"
"""Written to ``/proc/self/clear_refs``, sets the mark back to the resident set of now; see proc(5)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was taken between start and reading."""

    started_at: float
    """UNIX seconds."""

    ended_at: float
    """UNIX seconds."""

    cpu_s: float
    """User and system time of this process and of children that it waited for, seconds."""

    peak_rss_bytes: int | None
    """Largest resident set size of this process, or of a child that it waited for; `None` if unknown."""


class Meter:
    """Measures one attempt after another; about 60 us each.

    Upstream writes ``ru_maxrss`` into metadata datasets, which never falls
    by itself: setting the mark back is what makes that figure, too, one of
    this quantum in a process that runs many. Of children the kernel keeps the largest there ever was,
    which cannot be set back: one counts if it was larger than all of earlier quanta.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._clear_refs = proc / "clear_refs"
        self._status = proc / "status"
        self._is_reset = False
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._is_reset = self._reset_peak()
        self._cpu_s = _cpu_s()
        self._children_peak_bytes = _children_peak_bytes()
        self._started_at = time.time()

    def read(self) -> Usage:
        """Return what was taken since `start`."""
        ended_at = max(time.time(), self._started_at)  # the clock may be set back meanwhile
        return Usage(
            started_at=self._started_at,
            ended_at=ended_at,
            cpu_s=round(_cpu_s() - self._cpu_s, 6),
            peak_rss_bytes=self._peak_rss_bytes() if self._is_reset else None,
        )

    def _reset_peak(self) -> bool:
        try:
            self._clear_refs.write_bytes(_RESET_PEAK)
        except OSError:
            return False
        return True

    def _peak_rss_bytes(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in self._status.read_bytes().splitlines():
                if line.startswith(b"VmHWM:"):
                    children_bytes = _children_peak_bytes()
                    grew = children_bytes > self._children_peak_bytes
                    return max(int(line.split()[1]) * 1024, children_bytes if grew else 0)
        return None


def _cpu_s() -> float:
    # Not os.times: that counts in hundredths of a second, and many a quantum takes less.
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in taken)


def _children_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
