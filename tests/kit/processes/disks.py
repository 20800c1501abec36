"""File systems of tests' own, which are small, and what fills them up."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "small_disk"]


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """Mount a file system of this size; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Leave no room on a file system; may be called again."""
    with ballast.open("ab", buffering=0) as file:
        for n_bytes in (1 << 20, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(n_bytes))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
