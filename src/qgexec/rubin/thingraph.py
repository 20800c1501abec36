"""The thin part of a ``.qg`` file as columns of numbers; knows its JSON text and nothing of the stack.

A million quanta make 350 MB of JSON, from which a JSON parser makes several
GB of objects. Upstream writes it compactly with a fixed layout, so that
quanta are found by a marker and edges by arithmetic::

    {"quanta":{"isr":[{"quantum_id":"<36>","data_coordinate":["Cam1",1]},...],...},"edges":[["<36>","<36>"],...]}

Everything that the layout promises is checked; text of another layout is refused
(`parse_thin_graph` returns `None`), and a reader of models takes over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.scheduling.dataids import DataIds

__all__ = ["ThinGraph", "parse_thin_graph"]

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]

_BEGIN = b'{"quanta":{'
_END_OF_QUANTA = b'},"edges":['
_QUANTUM = b'{"quantum_id":"'
_DATA_ID = b'","data_coordinate":'
_UUID_SIZE = 36
_EDGE_SIZE = 80
_CHUNK = 100_000

_DASHES = np.array([8, 13, 18, 23])
_DIGITS = np.array([i for i in range(_UUID_SIZE) if i not in _DASHES])
_NIBBLES: _Bytes = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


class _OtherLayoutError(Exception):
    """The text is not laid out as upstream writes it."""


@dataclass(frozen=True, slots=True)
class ThinGraph:
    """Quanta in the order of the file, and the edges between them."""

    labels: tuple[str, ...]
    """Task labels."""

    label_codes: _Ints
    """For each quantum the position of its label; shape ``(n,)``."""

    quantum_ids: bytes
    """16 bytes for each quantum."""

    data_ids: DataIds
    """Full data-ID values of each quantum."""

    edge_ids: bytes
    """For each edge 16 bytes of the predecessor's ID and 16 of the successor's."""


def parse_thin_graph(text: bytes) -> ThinGraph | None:
    """Parse the JSON text of a thin graph of format version 1.

    Parameters
    ----------
    text
        JSON text in upstream's compact layout.

    Returns
    -------
    thin
        Columns, or `None` for text that is laid out in another way.
    """
    try:
        end = text.find(_END_OF_QUANTA)
        if not text.startswith(_BEGIN) or end < 0 or not text.isascii():
            return None
        labels, codes, starts, ends = _find_quanta(text, end)
        raw = np.frombuffer(text, dtype=np.uint8)
        quantum_ids = b"".join(_read_ids(raw, starts + len(_QUANTUM), _DATA_ID))
        data_ids = _read_data_ids(text, starts, ends)
        edge_ids = b"".join(_read_edges(raw[end + len(_END_OF_QUANTA) :]))
    except _OtherLayoutError:
        return None
    return ThinGraph(labels, codes, quantum_ids, data_ids, edge_ids)


def _find_quanta(text: bytes, end: int) -> tuple[tuple[str, ...], _Ints, _Ints, _Ints]:
    """Return labels, and for each quantum its label's position, where its object begins and where it ends."""
    # Inside of a JSON string the marker's quotation marks would be escaped: it can only be an object's begin.
    markers = re.compile(re.escape(_QUANTUM)).finditer(text, 0, end)
    starts: _Ints = np.fromiter((match.start() for match in markers), dtype=np.int64)
    before = np.frombuffer(text, dtype=np.uint8)[starts - 1]
    _require(bool(np.all((before == ord(",")) | (before == ord("[")))))
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:] - 1
    labels: list[str] = []
    codes = np.zeros(len(starts), dtype=np.int64)
    first_of_label = [*np.flatnonzero(before == ord("[")).tolist(), len(starts)]
    at = _read_labels(text, len(_BEGIN), end, labels)
    for first, after in pairwise(first_of_label):
        _require(at == starts[first])
        codes[first:after] = len(labels) - 1
        ends[after - 1] = _end_of_object(text, int(starts[after - 1]), end)
        _require(text[ends[after - 1] : ends[after - 1] + 1] == b"]")
        at = _read_labels(text, int(ends[after - 1]) + 1, end, labels)
    _require(at == end)
    return tuple(labels), codes, starts, ends


def _read_labels(text: bytes, at: int, end: int, labels: list[str]) -> int:
    """Read ``"label":[`` and any labels without quanta before it; return where the next thing begins."""
    while at < end:
        at += text[at : at + 1] == b","
        colon = text.find(b'":[', at, end)
        _require(colon > at and text[at : at + 1] == b'"')
        labels.append(json.loads(text[at : colon + 1]))
        at = colon + 3
        if text[at : at + 1] != b"]":
            break
        at += 1
    return at


def _end_of_object(text: bytes, start: int, end: int) -> int:
    """Return where the JSON object at ``start`` ends, when what follows is not another quantum."""
    size = 1_000
    while True:
        try:
            _, length = json.JSONDecoder().raw_decode(text[start : min(end, start + size)].decode("ascii"))
        except json.JSONDecodeError:
            _require(start + size < end)
            size *= 10
        else:
            return start + length


def _read_ids(raw: _Bytes, starts: _Ints, after: bytes) -> Iterator[bytes]:
    """Read the UUIDs that begin at ``starts``, each followed by the text ``after``."""
    window = np.arange(_UUID_SIZE + len(after))
    for begin in range(0, len(starts), _CHUNK):
        rows = raw[starts[begin : begin + _CHUNK, np.newaxis] + window]
        _require(_same(rows[:, _UUID_SIZE:], after))
        yield _uuids(rows[:, :_UUID_SIZE]).tobytes()


def _read_data_ids(text: bytes, starts: _Ints, ends: _Ints) -> DataIds:
    """Copy the data-ID arrays, which lie between the UUIDs and the closing braces."""
    begins = starts + (len(_QUANTUM) + _UUID_SIZE + len(_DATA_ID))
    raw = np.frombuffer(text, dtype=np.uint8)
    _require(bool(np.all(raw[begins] == ord("[")) and np.all(raw[ends - 2] == ord("]"))))
    _require(bool(np.all(raw[ends - 1] == ord("}"))))
    pieces: list[bytes] = []
    for chunk in range(0, len(begins), _CHUNK):
        some = slice(chunk, chunk + _CHUNK)
        bounds = zip(begins[some].tolist(), (ends[some] - 1).tolist(), strict=True)
        pieces.append(b"".join([text[begin:end] for begin, end in bounds]))
    offsets = np.zeros(len(begins) + 1, dtype=np.int64)
    np.cumsum(ends - 1 - begins, out=offsets[1:])
    return DataIds(b"".join(pieces), offsets)


def _read_edges(raw: _Bytes) -> Iterator[bytes]:
    """Read ``["<36>","<36>"],...]}``: 80 bytes an edge, the last one's comma being the closing bracket."""
    if _same(raw, b"]}"):
        return
    n_edges, rest = divmod(len(raw) - 1, _EDGE_SIZE)
    _require(rest == 0 and _same(raw[-2:], b"]}"))
    rows = raw[:-1].reshape(n_edges, _EDGE_SIZE)
    _require(bool(np.all(rows[:-1, 79] == ord(","))))
    for begin in range(0, n_edges, _CHUNK):
        some = rows[begin : begin + _CHUNK]
        _require(_same(some[:, :2], b'["') and _same(some[:, 38:41], b'","') and _same(some[:, 77:79], b'"]'))
        pair = (_uuids(some[:, 2:38]), _uuids(some[:, 41:77]))
        yield np.concatenate(pair, axis=1).tobytes()


def _uuids(text: _Bytes) -> _Bytes:
    """Return the 16 bytes of UUIDs in their usual text form; shape ``(n, 36)`` to ``(n, 16)``."""
    _require(bool(np.all(text[:, _DASHES] == ord("-"))))
    nibbles = _NIBBLES[text[:, _DIGITS]]
    _require(bool(np.all(nibbles < 16)))
    return nibbles[:, 0::2] * np.uint8(16) + nibbles[:, 1::2]


def _same(rows: npt.NDArray[Any], text: bytes) -> bool:
    expected = np.frombuffer(text, dtype=np.uint8)
    return rows.shape[-1] == len(expected) and bool(np.all(rows == expected))


def _require(fits: bool) -> None:
    if not fits:
        raise _OtherLayoutError
