"""Opens files that others may have made: regular ones of a sane size, and never waits for one to be written.

Opening a FIFO waits until somebody writes to it, a device may give bytes without end, and a file of a
terabyte takes a byte of disk: one of them in place of a file had a command hang for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DATA_BYTES",
    "TEXT_BYTES",
    "YAML_BYTES",
    "UnfitFileError",
    "check_regular",
    "open_regular",
    "read_regular",
]

YAML_BYTES = 1 << 20
"""Largest file of settings: those in use have a twentieth of it, and the parser takes 10 s for it."""

TEXT_BYTES = 256 << 20
"""Largest file that is read as a whole."""

DATA_BYTES = 1 << 40
"""Largest file that is read in parts."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnfitFileError(OSError):
    """It is no regular file, or larger than any that was written for this purpose."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))


def open_regular(path: Path, most_bytes: int = DATA_BYTES) -> BinaryIO:
    """Open a file for reading, at its beginning.

    Parameters
    ----------
    path
        The file; a link is followed.
    most_bytes
        Size above which it cannot be what is looked for.

    Raises
    ------
    UnfitFileError
        It is a FIFO, a device or a socket, or too large.
    OSError
        It cannot be opened, or is a folder.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            check_regular(path, most_bytes)
        raise
    try:
        _check(os.fstat(descriptor), path, most_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most_bytes: int = TEXT_BYTES) -> bytes:
    """Return all that is in a file; parameters and errors are those of `open_regular`."""
    with open_regular(path, most_bytes) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # it has grown
        raise _too_large(path, most_bytes)
    return content


def check_regular(path: Path, most_bytes: int = DATA_BYTES) -> None:
    """Check a file that somebody else's code is to open; errors are those of `open_regular`."""
    _check(path.stat(), path, most_bytes)


def _check(found: os.stat_result, path: Path, most_bytes: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnfitFileError(path, f"it is {kind}, not a regular file")
    if found.st_size > most_bytes:
        raise _too_large(path, most_bytes)


def _too_large(path: Path, most_bytes: int) -> UnfitFileError:
    return UnfitFileError(path, f"it is larger than {most_bytes >> 20} MiB, as no such file is")
