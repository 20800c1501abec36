"""The clusters of a plan's quanta, each to be one batch job, in topological order; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import (
    Edges,
    Ints,
    find_cycle,
    int_array,
    integers,
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
        in_turn: Sequence[Ints] = (),
        places: Mapping[str, str] | None = None,
    ) -> Self:
        """Make clusters of some quanta of a plan.

        They are numbered in topological order; where there is a choice, that with the first quantum
        of the plan comes first. So the same quanta in the same clusters always have the same numbers.

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
            Sets of clusters, by these numbers, that must not run side by side: each waits for the one
            of its set that comes before it.
        places
            Where the kinds of clusters are defined, by name: file and line, for messages.

        Raises
        ------
        qgexec.errors.UsageError
            Clusters wait for each other in a circle; the message names the quanta that make it.
        """
        n_clusters = len(name_codes)
        # Of several values for one place the last stays: each cluster's first quantum.
        first = np.empty(n_clusters, dtype=np.int64)
        first[cluster_of[::-1]] = np.arange(len(indices))[::-1]
        by_first = np.argsort(first)
        number = np.empty(n_clusters, dtype=np.int64)
        number[by_first] = np.arange(n_clusters)
        codes = name_codes[by_first]
        edges = _edges(plan, indices, number[cluster_of], n_clusters)
        if np.any(edges[0] > edges[1]):
            order = topological_order(n_clusters, edges)
            if len(order) < n_clusters:
                cycle = find_cycle(order, edges)
                quanta = indices[first[by_first[cycle]]].tolist()
                raise _cycle_error(plan, quanta, [names[codes[c]] for c in cycle], places or {})
            rank = np.empty(n_clusters, dtype=np.int64)
            rank[order] = np.arange(n_clusters)
            number, codes, edges = rank[number], codes[order], (rank[edges[0]], rank[edges[1]])
        # They run in the order of their numbers, in which nothing waits for what comes later: no new cycle.
        rows = [np.sort(number[row]) for row in in_turn]
        before = np.concatenate([edges[0], *(row[:-1] for row in rows)])
        after = np.concatenate([edges[1], *(row[1:] for row in rows)])
        children, parents = unique_edges(after, before, n_clusters)
        numbers = number[cluster_of]
        by_cluster = np.argsort(numbers, kind="stable")
        return cls(
            names,
            codes,
            (row_offsets(numbers, n_clusters), indices[by_cluster]),
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

    def first(self, n: int) -> Self:
        """Return the first so many clusters; none of them waits for another that is left out."""
        offsets, parent_offsets = (
            np.asarray(self._offsets[: n + 1]),
            np.asarray(self._parent_offsets[: n + 1]),
        )
        members = np.asarray(self._members)[: offsets[n]]
        parents = np.asarray(self._parents)[: parent_offsets[n]]
        codes = np.asarray(self._codes)[:n]
        return type(self)(self.names, codes, (offsets, members), (parent_offsets, parents))

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
        """Return the clusters that `to_arrays` was called on; an error for anything else."""
        codes, names = integers(arrays["name_codes"]), arrays["names"].tobytes().decode().split("\n")
        rows = [(integers(arrays[f"{row}_offsets"]), integers(arrays[targets])) for row, targets in _ROWS]
        for offsets, targets in rows:
            if len(offsets) != len(codes) + 1 or offsets[0] != 0 or offsets[-1] != len(targets):
                raise ValueError("their rows do not fit their number")
            if np.any(np.diff(offsets) < 0):
                raise ValueError("their rows overlap")
        if np.any(codes >= len(names)):
            raise ValueError("a name is missing")
        if np.any(rows[1][1] >= np.repeat(np.arange(len(codes)), np.diff(rows[1][0]))):
            raise ValueError("a cluster waits for a later one")
        return cls(names, codes, rows[0], rows[1])


_ROWS = (("quantum", "quanta"), ("parent", "parents"))


def _edges(plan: Plan, indices: Ints, cluster_of: Ints, n_clusters: int) -> Edges:
    """Return which clusters wait for which, each pair once."""
    of_quantum = np.full(len(plan), -1, dtype=np.int32)
    of_quantum[indices] = cluster_of
    arrays = plan.to_arrays()
    # There are several edges to a quantum: numbers of 32 bits until most of them are gone.
    first = np.repeat(of_quantum, np.diff(arrays["successor_offsets"]))
    second = of_quantum[arrays["successor_targets"]]
    between = (first >= 0) & (second >= 0) & (first != second)
    return unique_edges(first[between].astype(np.int64), second[between].astype(np.int64), n_clusters)


def _cycle_error(
    plan: Plan, quanta: Sequence[int], names: Sequence[str], places: Mapping[str, str]
) -> UsageError:
    """Say which clusters wait for each other, by one quantum of each."""
    defined = next((n for n, name in enumerate(names) if places.get(name)), 0)
    shown = [f"{name} (with {plan.describe(index)})" for index, name in zip(quanta, names, strict=True)]
    shown = shown[defined:] + shown[:defined]
    more = f" -> {len(shown) - 4} more" if len(shown) > 4 else ""
    place = places.get(names[defined])
    return UsageError(
        f"{f'{place}: ' if place else ''}clusters of quanta wait for each other in a circle: "
        f"{' -> '.join(shown[:4])}{more} -> {shown[0]}",
        hint="Put the tasks between them into the same cluster, or leave one of them out of it.",
    )
