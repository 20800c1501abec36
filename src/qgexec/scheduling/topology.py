"""Edges between numbered quanta: each once, in an order, as sparse rows; knows no labels and no IDs."""

from __future__ import annotations

import heapq
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.errors import GraphError

__all__ = [
    "Edges",
    "Ints",
    "find_cycle",
    "int_array",
    "integers",
    "row_offsets",
    "topological_order",
    "unique_edges",
]

Ints = npt.NDArray[np.int64]
"""Many integers, shape ``(n,)``."""

Edges = tuple[Ints, Ints]
"""Predecessors and successors, both of shape ``(m,)``."""


def int_array(typecode: str, numbers: npt.NDArray[Any]) -> array[int]:
    """Copy numbers into an `array.array`: indexed one by one it is twice as fast as numpy."""
    result = array(typecode)
    dtype = np.dtype(typecode)
    if len(numbers) and int(numbers.max()) > np.iinfo(dtype).max:
        raise GraphError(
            f"the graph is too large: {int(numbers.max())} does not fit {8 * dtype.itemsize} bits"
        )
    result.frombytes(np.ascontiguousarray(numbers, dtype=dtype).tobytes())
    return result


def integers(stored: npt.NDArray[Any]) -> Ints:
    """Return numbers that were stored, as 64-bit integers.

    Raises
    ------
    qgexec.errors.GraphError
        They are no whole numbers from 0, or not in one row.
    """
    if stored.dtype.kind not in "iu" or stored.ndim != 1:
        raise GraphError(f"whole numbers should be stored, not {stored.dtype} of shape {stored.shape}")
    numbers = np.asarray(stored, dtype=np.int64)
    if len(numbers) and int(numbers.min()) < 0:
        raise GraphError("a stored number is negative")
    return numbers


def unique_edges(predecessors: Ints, successors: Ints, n_quanta: int) -> Edges:
    """Return the edges sorted by (predecessor, successor), each once."""
    if len(predecessors) != len(successors):
        raise GraphError(
            f"{len(predecessors)} predecessors and {len(successors)} successors do not make edges"
        )
    for ends in (predecessors, successors):
        if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < n_quanta:
            raise GraphError(
                f"an edge of the graph names quantum {int(ends.min() if ends.min() < 0 else ends.max())}, "
                f"but the graph has only {n_quanta}"
            )
    # np.unique of numpy 2.3 and later hashes, 15 times slower than this sort.
    keys = np.sort(predecessors * n_quanta + successors)
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))] if len(keys) else keys
    return np.divmod(keys, max(n_quanta, 1))


def row_offsets(rows: Ints, n_rows: int) -> Ints:
    """Return where each row begins among entries sorted by row, and at the end their number."""
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n_rows))))


def topological_order(n_quanta: int, edges: Edges) -> Ints:
    """Return the positions in topological order, the smallest first where there is a choice.

    Positions on a cycle, and behind one, are left out.
    """
    predecessors, successors = edges
    offsets = int_array("i", row_offsets(predecessors, n_quanta))
    targets = int_array("i", successors)
    missing = np.bincount(successors, minlength=n_quanta).tolist()
    ready = [position for position, count in enumerate(missing) if not count]
    order = array("i")
    while ready:
        position = heapq.heappop(ready)
        order.append(position)
        for target in targets[offsets[position] : offsets[position + 1]]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    return np.asarray(order, dtype=np.int64)


def find_cycle(order: Ints, edges: Edges) -> list[int]:
    """Return the positions on one cycle, along its edges, given what `topological_order` could order."""
    predecessors, successors = edges
    # What could not be ordered waits for another such one: going back from one to the next must repeat.
    stuck = ~(np.isin(predecessors, order) | np.isin(successors, order))
    before = dict(zip(successors[stuck].tolist(), predecessors[stuck].tolist(), strict=True))
    path: dict[int, None] = {}
    position = min(before)
    while position not in path:
        path[position] = None
        position = before[position]
    walked = list(path)
    return walked[walked.index(position) :][::-1]
