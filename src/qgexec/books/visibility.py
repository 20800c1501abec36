"""Has network file systems show what other machines wrote; knows nothing of what that is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["look_anew"]


def look_anew(folder: Path) -> None:
    """List a folder: many a network file system asks its server anew for that, and not for one file."""
    with suppress(OSError):
        os.listdir(folder)  # noqa: PTH208 - nothing is wanted of it
