"""Which process is which, and whether it lives: by what the kernel says, never by a clock that can be set.

A number alone names no process: it is given again, and each PID namespace has numbers of its own. With the
boot and the namespaces in which it was read, and the ticks at which the process began, it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qgexec.events import Birth
from qgexec.processes.proctree import stat_fields

__all__ = ["KERNEL", "Kernel"]

_STATE, _N_THREADS, _START_TICKS = 0, 17, 19
"""Places in what `stat_fields` returns; proc_pid_stat(5) counts them from 1, behind two others."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel as it shows itself to this process."""

    proc: Path = Path("/proc")
    """Where it shows processes."""

    signal: Callable[[int, int], None] = os.kill
    """Asked with signal 0 whether there is a process, which no mount option of ``/proc`` can hide."""

    def birth(self, pid: int) -> Birth | None:
        """Return what makes a process's number unique; `None` where it is not there, or cannot be seen."""
        where = self.here()
        # Its own entry is there by this name also where /proc shows the numbers of another namespace.
        name = "self" if pid == os.getpid() else str(pid)
        if where is None or not (name == "self" or self._shows_our_numbers()):
            return None
        fields = stat_fields(self.proc / name)
        return None if fields is None else Birth(*where, int(fields[_START_TICKS]))

    def lives(self, pid: int, birth: Birth) -> bool | None:
        """Return whether a process is there; `None` where that cannot be known from here.

        Parameters
        ----------
        pid
            Its number.
        birth
            What `birth` returned of it.

        Notes
        -----
        It is known in the same boot and the same namespaces. There, that no process has its number is proof
        that it is gone. One that has it, and that ``/proc`` does not show (option hidepid), may be another.
        """
        if self.here() != (birth.boot_id, birth.namespaces):
            return None
        if not self._has(pid):
            return False
        fields = stat_fields(self.proc / str(pid)) if self._shows_our_numbers() else None
        if fields is None:
            return None if self._has(pid) else False
        # A first thread that has ended is shown as dead, also while others of the process go on.
        has_ended = fields[_STATE] in b"ZX" and int(fields[_N_THREADS]) <= 1
        return int(fields[_START_TICKS]) == birth.start_ticks and not has_ended

    def here(self) -> tuple[str, str] | None:
        """Return boot and namespaces of this process; `None` where the kernel does not tell."""
        try:
            boot_id = (self.proc / "sys/kernel/random/boot_id").read_text("ascii").strip()
            namespaces = str((self.proc / "self/ns/pid").readlink())
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # kernels before 5.6 have one time for all
            namespaces += f" {(self.proc / 'self/ns/time').readlink()}"
        return boot_id, namespaces

    def _shows_our_numbers(self) -> bool:
        """Return whether ``/proc`` is that of our PID namespace: in a new one the old may be mounted."""
        try:
            return (self.proc / "self").readlink() == Path(str(os.getpid()))
        except OSError:
            return False

    def _has(self, pid: int) -> bool:
        """Return whether any process has this number."""
        try:
            self.signal(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:  # another user's
            return True
        return True


KERNEL = Kernel()
"""That of this machine."""
