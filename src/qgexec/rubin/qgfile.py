"""A ``.qg`` file as blocks of bytes, read at random; knows the container, not what the blocks mean.

The format is upstream's (`lsst.pipe.base.quantum_graph`): an uncompressed zip
archive of zstandard-compressed JSON blocks, and one member of many small
blocks (``quantum_datasets.mb``) that ``quanta.addr`` finds by UUID. Upstream's
own reader serves whole graphs. For one quantum of a million it reads a page of 125,000
addresses into Python objects, and Python before 3.13 seeks in a zip member by reading
all that lies before: here both are a few reads at known places.
"""

from __future__ import annotations

import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zstandard

from qgexec.errors import GraphError, QgexecError, UnknownQuantumError
from qgexec.regularfile import open_regular
from qgexec.storedvalues import UNFIT, parse_json

__all__ = ["NEWEST_VERSION", "QgFile", "reading"]

NEWEST_VERSION = 1
"""Newest format version that is read.

0: quanta and edges of the thin graph are integers.
1: they are UUIDs.
"""

_LOCAL_HEADER_SIZE = 30
_ID_SIZE = 16
_LONGEST_INT = 8
_ROWS_READ_AT_ONCE = 64
_LARGEST_FACTOR = 1000
"""No JSON text is compressed better; one that claims so would fill the memory."""

# OSError: offsets that are none; RuntimeError, NotImplementedError: members that are said to be encrypted,
# or packed in another way.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    *UNFIT,
)

_HEADER_TYPES = {"version": int, "n_quanta": int, "int_size": int, "output_run": str}
"""What is used of the header besides the type of the graph."""


_LONGEST_MESSAGE = 500
"""Characters; upstream's models name every value that does not fit."""


class QgFile:
    """An open ``.qg`` file of a predicted quantum graph.

    Parameters
    ----------
    path
        Local file.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing, truncated, of another type or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream = open_regular(path)
        except FileNotFoundError:
            raise GraphError(f"graph file {path} does not exist", hint="Check the path.") from None
        except IsADirectoryError:
            raise GraphError(f"{path} is a directory, not a graph file", hint="Check the path.") from None
        except OSError as error:
            raise GraphError(
                f"graph file {path} cannot be read: {error.strerror}", hint=f"See what it is: ls -l {path}"
            ) from error
        try:
            self._open()
        except BaseException:
            self._stream.close()
            raise

    def _open(self) -> None:
        self._size = os.fstat(self._stream.fileno()).st_size
        try:
            self._zip = zipfile.ZipFile(self._stream)
        except _DAMAGE as error:
            raise GraphError(
                f"{self.path} {self._complaint()}", hint="Build it again, or copy it again."
            ) from error
        names = set(self._zip.namelist())
        if "header.json.zst" not in names:
            raise GraphError(
                f"{self.path} is a zip file, but not a quantum graph (.qg) file", hint="Check the path."
            )
        try:
            shared = self._zip.read("compression_dict") if "compression_dict" in names else None
            dictionary = zstandard.ZstdCompressionDict(shared) if shared is not None else None
            self._decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
            self.header: dict[str, Any] = self._read_header()
            """Header as in upstream's ``HeaderModel``."""
        except _DAMAGE as error:
            raise self._damaged(error) from error
        if (graph_type := self.header.get("graph_type")) != "predicted":
            raise GraphError(
                f"{self.path} holds a {graph_type!r} quantum graph, which cannot be executed",
                hint="Give the graph that was built for execution (type 'predicted').",
            )
        if (version := self.header["version"]) > NEWEST_VERSION:
            raise GraphError(
                f"{self.path} has format version {version}; this qgexec reads up to {NEWEST_VERSION}",
                hint="Install a newer qgexec.",
            )
        self._find_quanta()

    def _read_header(self) -> dict[str, Any]:
        header: dict[str, Any] = parse_json(self.block("header"))
        if header.get("graph_type") != "predicted":
            return header
        for name, kind in _HEADER_TYPES.items():
            if type(header[name]) is not kind:
                raise TypeError(f"{name} in its header is {header[name]!r:.40}")
        if not (0 < header["int_size"] <= _LONGEST_INT and header["n_quanta"] >= 0):
            raise ValueError("a number in its header is negative, or too large")
        return header

    def _complaint(self) -> str:
        self._stream.seek(0)
        if self._stream.read(4) == b"PK\x03\x04":
            return "is truncated: the end of the quantum graph file is missing"
        return "is not a quantum graph (.qg) file"

    def _find_quanta(self) -> None:
        try:
            self._blocks_at = self._offset("quantum_datasets.mb")
            self._blocks_size = self._zip.getinfo("quantum_datasets.mb").file_size
            addresses_at = self._offset("quanta.addr")
            self._n_rows = int.from_bytes(self._read(addresses_at + 1, self.header["int_size"]))
        except _DAMAGE as error:
            raise self._damaged(error) from error
        size = self._int_size = self.header["int_size"]
        self._row_size = _ID_SIZE + 3 * size
        self._rows_at = addresses_at + 1 + 2 * size

    def _offset(self, name: str) -> int:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"member {name} is compressed")
        local = self._read(info.header_offset, _LOCAL_HEADER_SIZE)
        return (
            info.header_offset
            + _LOCAL_HEADER_SIZE
            + int.from_bytes(local[26:28], "little")
            + int.from_bytes(local[28:30], "little")
        )

    def _read(self, offset: int, size: int) -> bytes:
        if not 0 <= size <= self._size - offset:
            raise EOFError(f"there are no {size} bytes at {offset}")
        data = os.pread(self._stream.fileno(), size, offset)
        if len(data) < size:
            raise EOFError(f"there are no {size} bytes at {offset}")
        return data

    def _decompress(self, data: bytes) -> bytes:
        claimed = zstandard.frame_content_size(data)
        if claimed > _LARGEST_FACTOR * len(data):
            raise zstandard.ZstdError(f"{len(data)} bytes claim to be {claimed}")
        return self._decompressor.decompress(data)

    def _damaged(self, error: BaseException) -> GraphError:
        return GraphError(f"{self.path} is damaged: {error}", hint="Build the graph again, or copy it again.")

    def block(self, name: str) -> bytes:
        """Return one of the large blocks (``header``, ``thin_graph``...), decompressed: JSON text.

        Raises
        ------
        qgexec.errors.GraphError
            It is missing or damaged.
        """
        try:
            return self._decompress(self._zip.read(f"{name}.json.zst"))
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def quantum(self, quantum_id: uuid.UUID) -> bytes:
        """Return the description of one quantum: JSON text; about 30 us in a graph of a million.

        Raises
        ------
        qgexec.errors.UnknownQuantumError
            The graph has no such quantum.
        qgexec.errors.GraphError
            The block is damaged.
        """
        try:
            row = self._find(quantum_id.bytes)
            if row is None:
                raise UnknownQuantumError(
                    f"{self.path} has no quantum {quantum_id}: it is not the graph that the run began with",
                    hint="Bring that one back to this place, from a copy; "
                    "or build a graph for what is missing.",
                )
            size = self._int_size
            at = int.from_bytes(row[_ID_SIZE + size : _ID_SIZE + 2 * size])
            length = int.from_bytes(row[_ID_SIZE + 2 * size :])
            block = self._read(self._blocks_at + at, length)
            return self._decompress(block[size:])
        except UnknownQuantumError:
            raise
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _find(self, wanted: bytes) -> bytes | None:
        """Return the address row of an ID, if there is one; rows are sorted by ID."""
        first, end, row_size = 0, self._n_rows, self._row_size
        while end - first > _ROWS_READ_AT_ONCE:
            middle = (first + end) // 2
            if self._read(self._rows_at + middle * row_size, _ID_SIZE) <= wanted:
                first = middle
            else:
                end = middle
        rows = self._read(self._rows_at + first * row_size, (end - first) * row_size)
        for at in range(0, len(rows), row_size):
            if rows[at : at + _ID_SIZE] == wanted:
                return rows[at : at + row_size]
        return None

    def quanta(self) -> Iterator[bytes]:
        """Iterate over the descriptions of all quanta in the order of the file: JSON text.

        Raises
        ------
        qgexec.errors.GraphError
            A block is damaged.
        """
        size = self._int_size
        at, end = self._blocks_at, self._blocks_at + self._blocks_size
        try:
            while at < end:
                length = int.from_bytes(self._read(at, size))
                yield self._decompress(self._read(at + size, length))
                at += size + length
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._zip.close()
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say that a file is damaged where upstream, or what looks into what it read, may raise anything for it.

    Raises
    ------
    qgexec.errors.GraphError
        It is.
    """
    try:
        yield
    except QgexecError:
        raise
    except Exception as error:
        raise GraphError(
            f"{path} is damaged: {type(error).__name__}: {error}"[:_LONGEST_MESSAGE],
            hint="Build the graph again, or copy it again.",
        ) from error
