"""The clusters of a plan's quanta, each to be one batch job, in topological order; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import (
    Ints,
    find_cycle,
    int_array,
    row_offsets,
    topological_order,
    unique_edges,
)

__all__ = ["Clusters"]


class Clusters:
    """Clusters of quanta, numbered from 0 so that all parents of a cluster have smaller numbers.

    Made by `of` or `from_arrays`; never changes.
    """

    __slots__ = ("_codes", "_members", "_offsets", "_parent_offsets", "_parents", "names")

    names: tuple[str, ...]
    """Names of the kinds of clusters."""

    def __init__(
        self,
        names: Sequence[str],
        codes: npt.NDArray[Any],
        members: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        parents: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    ) -> None:
        # Private: rows of sparse matrices (offsets, targets), all in topological order already.
        self.names = tuple(names)
        self._codes = int_array("H", codes)
        self._offsets, self._members = int_array("i", members[0]), int_array("i", members[1])
        self._parent_offsets, self._parents = int_array("i", parents[0]), int_array("i", parents[1])

    @classmethod
    def of(
        cls,
        plan: Plan,
        indices: Ints,
        cluster_of: Ints,
        names: Sequence[str],
        name_codes: Ints,
        *,
        in_turn: Sequence[Sequence[int]] = (),
    ) -> Self:
        """Make clusters of some quanta of a plan.

        Parameters
        ----------
        plan
            All quanta.
        indices
            Those to be clustered, ascending; shape ``(n,)``. What they wait for besides has been done.
        cluster_of
            For each of them a number of its cluster, from 0, none left out; shape ``(n,)``.
        names, name_codes
            Names of the kinds of clusters, and for each cluster the position of its name; shape ``(k,)``.
        in_turn
            Clusters, by these numbers, that must not run side by side: each waits for the one before it.

        Raises
        ------
        qgexec.errors.UsageError
            Clusters wait for each other in a circle; the message names the quanta that make it.
        """
        n_clusters = len(name_codes)
        of_quantum = np.full(len(plan), -1, dtype=np.int64)
        of_quantum[indices] = cluster_of
        arrays = plan.to_arrays()
        offsets = arrays["successor_offsets"].astype(np.int64)
        first = of_quantum[np.repeat(np.arange(len(plan)), np.diff(offsets))]
        second = of_quantum[arrays["successor_targets"].astype(np.int64)]
        between = (first >= 0) & (second >= 0) & (first != second)
        before = [first[between], *(np.asarray(row[:-1], dtype=np.int64) for row in in_turn)]
        after = [second[between], *(np.asarray(row[1:], dtype=np.int64) for row in in_turn)]
        edges = unique_edges(np.concatenate(before), np.concatenate(after), n_clusters)
        order = topological_order(n_clusters, edges)
        if len(order) < n_clusters:
            raise _cycle_error(plan, indices, cluster_of, names, name_codes, find_cycle(order, edges))
        rank = np.empty(n_clusters, dtype=np.int64)
        rank[order] = np.arange(n_clusters)
        ranked = rank[cluster_of]
        by_cluster = np.argsort(ranked, kind="stable")
        children, parents = unique_edges(rank[edges[1]], rank[edges[0]], n_clusters)
        return cls(
            names,
            name_codes[order],
            (row_offsets(ranked, n_clusters), indices[by_cluster]),
            (row_offsets(children, n_clusters), parents),
        )

    def __len__(self) -> int:
        return len(self._codes)

    def quanta(self, cluster: int) -> Sequence[int]:
        """Return the indices of a cluster's quanta, ascending: each after its prerequisites."""
        return self._members[self._offsets[cluster] : self._offsets[cluster + 1]]

    def parents(self, cluster: int) -> Sequence[int]:
        """Return the clusters with prerequisites of a cluster's quanta, ascending."""
        return self._parents[self._parent_offsets[cluster] : self._parent_offsets[cluster + 1]]

    def name(self, cluster: int) -> str:
        """Return the name of a cluster's kind."""
        return self.names[self._codes[cluster]]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the clusters as arrays of numbers that `from_arrays` reads; they share memory."""
        return {
            "names": np.frombuffer("\n".join(self.names).encode(), dtype=np.uint8),
            "name_codes": np.asarray(self._codes),
            "quantum_offsets": np.asarray(self._offsets),
            "quanta": np.asarray(self._members),
            "parent_offsets": np.asarray(self._parent_offsets),
            "parents": np.asarray(self._parents),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return the clusters that `to_arrays` was called on; KeyError or ValueError for anything else."""
        codes, names = arrays["name_codes"], arrays["names"].tobytes().decode().split("\n")
        rows = [(arrays[f"{row}_offsets"], arrays[targets]) for row, targets in _ROWS]
        for offsets, targets in rows:
            if len(offsets) != len(codes) + 1 or offsets[0] != 0 or offsets[-1] != len(targets):
                raise ValueError("their rows do not fit their number")
            if np.any(np.diff(offsets.astype(np.int64)) < 0):
                raise ValueError("their rows overlap")
        if np.any(codes >= len(names)):
            raise ValueError("a name is missing")
        return cls(names, codes, rows[0], rows[1])


_ROWS = (("quantum", "quanta"), ("parent", "parents"))


def _cycle_error(
    plan: Plan, indices: Ints, cluster_of: Ints, names: Sequence[str], name_codes: Ints, cycle: list[int]
) -> UsageError:
    """Say which clusters wait for each other, by one quantum of each."""
    shown = []
    for cluster in cycle[:4]:
        index = int(indices[np.flatnonzero(cluster_of == cluster)[0]])
        shown.append(f"{names[name_codes[cluster]]} (with {plan.describe(index)})")
    more = f" and {len(cycle) - 4} more" if len(cycle) > 4 else ""
    return UsageError(
        f"clusters of quanta wait for each other in a circle: {' -> '.join(shown)}{more}",
        hint="Leave a task between them out of one of these clusters, or give it finer dimensions.",
    )
