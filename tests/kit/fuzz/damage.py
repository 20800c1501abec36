"""Files as disks, networks and other people leave them: the same seed always does the same damage."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

_FILLINGS = (b"\0", b"\xff", b"\n", b"{", b"[", b'"', b"9", b"-", b"PK")


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """Return bytes as a disk may give them back: flipped, missing, swapped, repeated, overwritten."""
    for _ in range(random.choice((1, 1, 1, 3))):
        data = random.choice(_DAMAGES)(data, random)
    return data


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    begin = random.randrange(len(data) + 1)
    return begin, min(len(data), begin + random.choice((1, 2, 4, 8, 30, 200)))


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 10)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _remove(data: bytes, random: Random) -> bytes:
    begin, end = _piece(data, random)
    return data[:begin] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    begin, end = _piece(data, random)
    return data[:end] + data[begin:]


def _swap(data: bytes, random: Random) -> bytes:
    a, b, c, d = sorted(random.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _overwrite(data: bytes, random: Random) -> bytes:
    begin, end = _piece(data, random)
    return data[:begin] + (random.choice(_FILLINGS) * (end - begin))[: end - begin] + data[end:]


_DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flip,
    _truncate,
    _remove,
    _repeat,
    _swap,
    _overwrite,
)

DEEP = "[" * 100_000 + "]" * 100_000
"""JSON that is nested more deeply than any reader goes."""

_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, -1.5, math.nan, math.inf, 1e308,
    "", "x", "\ud800", "\0", "../..", [], [[]], [None], ["x", "y", "z"], {}, {"x": "y"}, {"": None},
)  # fmt: skip


def with_odd_value(text: str | bytes, random: Random) -> bytes:
    """Return JSON with a value that is of another type, missing, or more than one expects."""
    root = [json.loads(text)]
    places = list(_places(root))
    container, key = random.choice(places)
    match random.randrange(8):
        case 0 if len(places) > 1 and container is not root:
            del container[key]
        case 1:
            container[key] = [container[key]]
        case 2:
            other, there = random.choice(places)
            container[key] = other[there] if other is not root else None
        case 3:
            return _to_json(root[0] if container is root else _marked(root, container, key))
        case _:
            container[key] = random.choice(_ODD)
    try:
        return _to_json(root[0])
    except ValueError:  # it has come to hold itself
        return b"{}"


def _marked(root: list[Any], container: Any, key: Any) -> Any:
    container[key] = "@deep@"
    return root[0]


def _to_json(value: Any) -> bytes:
    return json.dumps(value).replace('"@deep@"', DEEP).encode("ascii", "backslashreplace")


def _places(container: Any) -> Any:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(items):
        yield container, key
        if isinstance(value, dict | list):
            yield from _places(value)


def with_odd_line(data: bytes, random: Random) -> bytes:
    """Return lines of JSON of which one has an odd value, or that are in another order."""
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        case _:
            lines[at] = with_odd_value(lines[at], random) + b"\n"
    return b"".join(lines)


def with_odd_array(data: bytes, random: Random) -> bytes:
    """Return an ``.npz`` file of which one array is another, missing, compressed or a lie about its size."""
    with np.load(io.BytesIO(data)) as file:
        arrays: dict[str, Any] = dict(file)
    name = random.choice(sorted(arrays))
    array = arrays[name]
    match random.randrange(10):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = array.astype(random.choice(("f8", "i8", "u1", "U3", "c16", "?", "S2")))
        case 2:
            arrays[name] = array[: random.randrange(len(array) + 1)] if array.ndim else array
        case 3:
            arrays[name] = np.concatenate([array, array])
        case 4:
            arrays[name] = array.reshape(-1, 1)
        case 5 if array.size:
            arrays[name] = array.copy()
            odd = random.choice((-1, 0, 1, 2**31 - 1, 2**40, 255))
            arrays[name].reshape(-1)[random.randrange(array.size)] = np.int64(odd).astype(array.dtype)
        case 6:
            arrays[name] = np.array(random.choice((1, 2.5, b"x", "x")))
        case 7:
            arrays[name] = arrays[random.choice(sorted(arrays))]
        case 8:
            return lying_array(data, name, random.choice(((1 << 31, 10), (10**18,), (-1,), (3, -5))))
        case _ if "header" in arrays:
            header = with_odd_value(arrays["header"].tobytes(), random)
            arrays["header"] = np.frombuffer(header, dtype=np.uint8)
    written = io.BytesIO()
    random.choice((np.savez, np.savez, np.savez, np.savez_compressed))(written, **arrays)
    return written.getvalue()


def lying_array(data: bytes, name: str, shape: tuple[int, ...]) -> bytes:
    """Return an ``.npz`` file of which one array claims to have this shape."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == f"{name}.npy":
                header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
                content = (
                    b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + content[:40]
                )
            new.writestr(member, content)
    return written.getvalue()
