"""Reads files of arrays that may be damaged, or not ours.

Nothing takes much more memory than the bytes that are there, whatever they claim.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

__all__ = ["read_arrays"]

_NUMBERS = "biuf"
"""Kinds of numpy's that are numbers of fixed size: nothing of Python's own, which is unpickled."""


def read_arrays(file: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an ``.npz`` file that `numpy.savez` wrote: numbers, not compressed.

    Parameters
    ----------
    file
        The file, at its beginning; stays open.

    Returns
    -------
    arrays
        By name.

    Raises
    ------
    ValueError
        It is no such file, is damaged, or claims to hold more than its own size.
    OSError
        It cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_sizes(archive, file.seek(0, 2))
        file.seek(0)
        with np.load(file, allow_pickle=False) as members:
            return dict(members)
    except (
        EOFError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"its arrays cannot be read: {error}") from error


def _check_sizes(archive: zipfile.ZipFile, n_bytes: int) -> None:
    """Refuse members that are, or claim to be, larger than the file that they are in."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its arrays are compressed, as none of ours are")
    if sum(member.file_size for member in members) > n_bytes:
        raise ValueError("its arrays claim to be larger than the file")
    for member in members:
        with archive.open(member) as stream:
            claimed = _claimed_bytes(stream)
        if claimed > member.file_size:
            raise ValueError(f"{member.filename} claims to be larger than it is")


def _claimed_bytes(stream: IO[bytes]) -> int:
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"it is of version {version}")
    try:
        shape, _, dtype = read_header(stream)
    except (SyntaxError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError("an array's header is damaged") from error
    if dtype.kind not in _NUMBERS or dtype.subdtype is not None or any(length < 0 for length in shape):
        raise ValueError(f"an array of {dtype} and shape {shape}")
    return math.prod(shape) * int(dtype.itemsize)
