"""Owns files of whole lines with one writer each; knows nothing of what the lines say.

1. A file has one writer, who created it exclusively, and only ever grows by whole lines.
2. A line without its newline was never written: readers stop before it, a writer that survives cuts it off.
3. Its first line is a JSON object that names the format and its version.
4. Where the file is *checked*, each line ends with a key ``z``: the crc32 of what stands before it, in hex.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from operator import index as as_index
from pathlib import Path
from typing import Any, TypeVar, cast
from zlib import crc32

from qgexec.errors import JournalError, RunDirError
from qgexec.regularfile import UnfitFileError
from qgexec.storedvalues import parse_json

__all__ = [
    "LineFile",
    "check_header",
    "file_error",
    "json_line",
    "sync_folder",
    "with_checksum",
    "without_checksum",
]

_BLOCK = 65536

_CHECKSUM = b',"z":"%08x"}\n'
_CHECKSUM_BYTES = len(_CHECKSUM % 0)
_CHECKSUM_KEY = _CHECKSUM.partition(b"%")[0]
_DIGITS = slice(-11, -3)
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC

_HIGH = 256
"""From here on a number is that of no descriptor that was closed in passing and that its owner still uses."""

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def json_line(values: Mapping[str, object]) -> bytes:
    """Return an object as a line of compact JSON, newline included; TypeError or ValueError if it is none."""
    # In ASCII: no separator is left that some reader could take for the end of a line.
    return (_to_json(values) + "\n").encode("ascii")


def with_checksum(line: bytes) -> bytes:
    """Return a line of `json_line`, of an object that is not empty, with its checksum as one more key."""
    content = line[:-2]
    return content + _CHECKSUM % crc32(content)


def without_checksum(line: bytes) -> bytes:
    """Return the whole line that `with_checksum` was given; a line that has no checksum as it is.

    Raises
    ------
    ValueError
        The checksum is not that of the line: one of them is damaged.
    """
    content = line[:-_CHECKSUM_BYTES]
    if line[_DIGITS] == b"%08x" % crc32(content):  # also where the key before it is damaged
        return content + b"}\n"
    if line.startswith(_CHECKSUM_KEY, len(content)):
        raise ValueError("its checksum is wrong")
    return line


_Error = TypeVar("_Error", bound=RunDirError)


def file_error(what: str, path: Path, err: OSError, error: type[_Error]) -> _Error:
    """Return the error for a file or folder that could not be made, written, read or synced, with advice."""
    if isinstance(err, UnfitFileError):
        return error(f"cannot {what} {path}: {err.strerror}", hint=f"See who put it there: ls -l {path}")
    match err.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            hint = "Free space on that file system (or raise the quota or file size limit), then start again."
        case errno.EEXIST:
            hint = "Another writer came first; let it finish."
        case errno.ENOENT:
            hint = "Check the path, and that nothing is missing from the run directory."
        case errno.EROFS | errno.EACCES | errno.EPERM:
            hint = "Use a run directory that you can read and write (--run-dir)."
        case _:
            hint = "Check the path, and the file system that it is on."
    return error(f"cannot {what} {path}: {err.strerror or err}", hint=hint)


class LineFile:
    """A file of whole lines that this object created and alone writes; for one thread.

    Parameters
    ----------
    path
        The file, which must not exist.
    header
        Its first line.
    checked
        Whether lines get checksums.
    """

    def __init__(self, path: Path, header: Mapping[str, object], *, checked: bool = False) -> None:
        self.path = path
        self._checked = checked
        self._torn = False
        self._broken = False
        try:
            self._fd: int | None = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o664)
        except OSError as err:
            raise file_error("create", path, err, JournalError) from err
        self._status = _status_of(self._fd)
        self._inode = os.fstat(self._fd).st_ino
        try:
            self.write(json_line(header))
            self.sync()
            sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            self._fd = None
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def write(self, line: bytes) -> None:
        """Append a whole line, or nothing; ``line`` holds one newline, at its end."""
        if self._checked:
            line = with_checksum(line)
        fd = self._open_fd()
        if self._torn:
            self._heal(fd)
        try:
            written = os.write(fd, line)
            while written < len(line):
                # Less than all is taken only when there is no room (or a signal came); the next call says.
                written += os.write(fd, line[written:]) or _no_room()
        except OSError as err:
            with contextlib.suppress(JournalError):
                self._heal(fd)
            raise file_error("write", self.path, err, JournalError) from err

    def take_back(self, line: bytes) -> None:
        """Cut off the line that was written last, where that can be done."""
        if self._fd is not None and _status_of(self._fd) == self._status:
            n_bytes = len(with_checksum(line) if self._checked else line)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - n_bytes)

    def _heal(self, fd: int) -> None:
        """Cut off the torn line; found by reading, so that no count of ours need be right."""
        self._torn = True
        try:
            size = end = os.fstat(fd).st_size
            while end > 0:
                start = max(0, end - _BLOCK)
                newline = os.pread(fd, end - start, start).rfind(b"\n")
                end = start + newline + 1
                if newline >= 0:
                    break
            if end != size:
                os.ftruncate(fd, end)
        except OSError as err:
            raise file_error("repair", self.path, err, JournalError) from err
        self._torn = False

    def is_in_place(self) -> bool:
        """Return whether the file is still where it was created; it can be written to in any case."""
        return os.fstat(self._open_fd()).st_nlink > 0 and self.path.exists()

    def end(self) -> int:
        """Return the size of the file, bytes."""
        return os.lseek(self._open_fd(), 0, os.SEEK_END)

    def sync(self) -> None:
        """Force everything to the disk."""
        try:
            os.fdatasync(self._open_fd())
        except OSError as err:
            # The kernel may have dropped the pages and tells that once: a later success would prove nothing.
            self._broken = True
            raise file_error("sync", self.path, err, JournalError) from err

    def close(self) -> None:
        """Force everything to the disk and close; may be called twice."""
        if self._fd is None:
            return
        try:
            if not self._broken:
                self.sync()
        finally:
            self._let_go()

    def discard(self) -> None:
        """Close the file and remove it."""
        self._let_go()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as err:
            raise file_error("remove", self.path, err, JournalError) from err

    def _open_fd(self) -> int:
        if self._fd is None:
            raise JournalError(f"{self.path} is closed")
        if self._broken:
            raise JournalError(
                f"{self.path} takes no more lines: an earlier sync of it failed",
                hint="Check the file system that the run directory is on.",
            )
        if _status_of(self._fd) != self._status:
            self._fd = None
            self._fd = self._reopened()
        return self._fd

    def _reopened(self) -> int:
        """Open the file again, which a task that closed all descriptors has closed."""
        try:
            fd = os.open(self.path, _FLAGS)
        except OSError as err:
            raise file_error("open", self.path, err, JournalError) from err
        if os.fstat(fd).st_ino != self._inode:
            os.close(fd)
            raise JournalError(
                f"{self.path} is another file than the one that this process made and a task has closed",
                hint="Go on with the run: qgexec resume.",
            )
        with contextlib.suppress(OSError):  # so many are not allowed
            low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            os.close(low)
        return fd

    def _let_go(self) -> None:
        """Close the descriptor, unless its number is somebody else's by now."""
        fd, self._fd = self._fd, None
        if fd is not None and _status_of(fd) == self._status:
            os.close(fd)


def _status_of(fd: int) -> int | None:
    """Return the flags of a descriptor, which are like those of few others; `None` where it is closed.

    Asking for the file's number would be a question to its server, each time.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        return None


def _no_room() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to the disk: a new or renamed file's name is one."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as err:
        if err.errno != errno.EINVAL:  # file systems that keep folders elsewhere refuse to sync them
            raise file_error("sync", folder, err, JournalError) from err


def check_header(line: bytes, form: str, newest: int, path: Path) -> Mapping[str, Any]:
    """Return a file's first line as an object.

    Raises
    ------
    qgexec.errors.JournalError
        It is not the header of this format, or of a version above ``newest``.
    """
    try:
        header = parse_json(line)
        version = as_index(header["version"])
        if header["format"] != form or version < 1:
            raise ValueError(header)
    except (ValueError, KeyError, TypeError) as err:
        raise JournalError(f"{path}:1: not the header of a {form} file") from err
    if version > newest:
        raise JournalError(
            f"{path}:1: {form} version {version}, but this qgexec reads versions up to {newest}",
            hint="Read it with the qgexec that wrote it, or a newer one.",
        )
    return cast("Mapping[str, Any]", header)
