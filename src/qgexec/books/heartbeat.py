"""Owns the sign of life that a journal's writer gives: its file's time of modification, set anew."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

__all__ = ["HEARTBEAT_S", "Heartbeat"]

HEARTBEAT_S = 10.0
"""Time between two heartbeats, seconds."""


class Heartbeat:
    """Sets a file's time of modification again and again, from a thread of its own, until it is stopped.

    Parameters
    ----------
    path
        The journal file of the writer whose heart it is.
    every_s
        Time between two beats, seconds.
    """

    def __init__(self, path: Path, every_s: float = HEARTBEAT_S) -> None:
        self._path = path
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; may be called twice."""
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(self._every_s):
            with contextlib.suppress(OSError):  # the writer itself meets whatever is wrong with the file
                os.utime(self._path)
