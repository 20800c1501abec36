"""What may lie where a file should be, and would have whoever opens it wait or read for ever."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, (1 << 40) + 1)


UNFIT: Mapping[str, Callable[[Path], None]] = {"FIFO": os.mkfifo, "device": _device, "larger": _huge}
"""By a word of what is said of it: makes it at a path."""
