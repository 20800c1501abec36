"""Notices that somebody has closed the descriptors of this process, not knowing whose they are.

Libraries that make a daemon of their process close all that they find. Afterwards each number may be that of
another file: a database would be written into whatever was opened since.
"""

from __future__ import annotations

import os

__all__ = ["Sentinel"]


class Sentinel:
    """A descriptor that nothing uses: where it is gone others are, too. About 1 us a look."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("qgexec-sentinel")
        self._inode = self._look()

    def is_lost(self) -> bool:
        """Return whether it was closed, also where its number is that of another file by now."""
        return self._inode is None or self._look() != self._inode

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._fd)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Close it, unless somebody has; may be called twice."""
        if not self.is_lost():
            os.close(self._fd)
        self._inode = None
