"""Units of clustering: quanta, and chains of quanta that run in one job as early as in several; pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np

from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Edges, Ints, int_array, row_offsets, unique_edges

__all__ = ["MEMORY_RATIO", "Kinds", "Load", "Units", "make_units"]

MEMORY_RATIO = 2
"""Tasks whose requests differ by more are not joined: the cheaper ones would hold memory in vain."""


@dataclass(frozen=True, slots=True)
class Load:
    """What some quanta, one after another, are for a job."""

    duration_s: float
    """Sum of their expected run times, seconds."""

    cores: int
    """Cores that each of them asks for."""

    memory_bytes: tuple[int, int] | None
    """The least and the most that one of them asks for; `None` where none of them says."""

    is_serial: bool
    """They are of a task whose quanta must not run side by side."""

    environment: int = 0
    """Number of the set of variables that their jobs are given; those of two sets are in two jobs."""

    @classmethod
    def of(cls, duration_s: float, request: Resources, *, is_serial: bool, environment: int = 0) -> Self:
        """Return what one quantum is."""
        memory = request.memory_bytes
        least_most = None if memory is None else (memory, memory)
        return cls(duration_s, request.cores, least_most, is_serial, environment)

    def joined(self, other: Load, target_s: float) -> Load | None:
        """Return what both are together; `None` where they should not be in one job."""
        duration_s = self.duration_s + other.duration_s
        if self.cores != other.cores or self.is_serial or other.is_serial or duration_s > target_s:
            return None
        if self.environment != other.environment:
            return None
        one, two = self.memory_bytes, other.memory_bytes
        if one is None or two is None:
            return replace(self, duration_s=duration_s) if one is two else None
        least, most = min(one[0], two[0]), max(one[1], two[1])
        if most > MEMORY_RATIO * least:
            return None
        return replace(self, duration_s=duration_s, memory_bytes=(least, most))

    def times(self, n: int) -> Load:
        """Return what n of these are."""
        return replace(self, duration_s=n * self.duration_s)


class Kinds:
    """The kinds of units: a task each, then sequences of tasks, as they are met.

    Parameters
    ----------
    tasks
        What a quantum of each task is.
    target_s
        How long a job may last, seconds.
    """

    def __init__(self, tasks: Sequence[Load], target_s: float) -> None:
        self.loads = list(tasks)
        """What a unit of each kind is."""
        self.target_s = target_s
        self._joined: dict[tuple[int, int], int] = {}

    def joined(self, kind: int, task: int) -> int:
        """Return the kind of a unit that a quantum of a task is added to; -1 where it should not be."""
        joined = self._joined.get((kind, task))
        if joined is None:
            load = self.loads[kind].joined(self.loads[task], self.target_s)
            joined = -1 if load is None else len(self.loads)
            self._joined[kind, task] = joined
            if load is not None:
                self.loads.append(load)
        return joined


class Units:
    """Chains and single quanta in topological order: what a unit depends on has smaller numbers.

    Parameters
    ----------
    of_quantum
        Unit of each quantum that is clustered; shape ``(n,)``.
    kinds
        Kind of each unit.
    edges
        Which units depend on which, sorted, each once.
    """

    def __init__(self, of_quantum: Ints, kinds: array[int], edges: Edges) -> None:
        self.of_quantum = of_quantum
        self.kinds = kinds
        n_units = len(kinds)
        before, after = edges
        by_after = np.argsort(after, kind="stable")
        self._successor_offsets = int_array("i", row_offsets(before, n_units))
        self._successors = int_array("i", after)
        self._prerequisite_offsets = int_array("i", row_offsets(after, n_units))
        self._prerequisites = int_array("i", before[by_after])

    def __len__(self) -> int:
        return len(self.kinds)

    def prerequisites(self, unit: int) -> Sequence[int]:
        """Return the units that a unit depends on, ascending."""
        return self._prerequisites[self._prerequisite_offsets[unit] : self._prerequisite_offsets[unit + 1]]

    def successors(self, unit: int) -> Sequence[int]:
        """Return the units that depend on a unit, ascending."""
        return self._successors[self._successor_offsets[unit] : self._successor_offsets[unit + 1]]

    def levels(self) -> Iterator[list[int]]:
        """Yield the units of each level, ascending: first those that depend on no other."""
        level = array("i", bytes(4 * len(self)))
        level_of = level.__getitem__
        for unit in range(len(self)):
            before = self.prerequisites(unit)
            if before:
                level[unit] = 1 + max(map(level_of, before))
        levels = np.asarray(level)
        order = np.argsort(levels, kind="stable")
        offsets = row_offsets(levels, 0)
        for begin, end in pairwise(offsets.tolist()):
            yield order[begin:end].tolist()

    def families(self, units: Ints) -> Ints:
        """Return a number for each unit, the same for those that should stay together.

        It is that of the first unit that depends on it; where there is none, of the first that it depends on.
        """
        families = np.full(len(units), -1, dtype=np.int64)
        rows = (
            (self._prerequisite_offsets, self._prerequisites, -2, -1),
            (self._successor_offsets, self._successors, 0, 1),
        )
        for offsets, targets, base, sign in rows:
            begin, end = np.asarray(offsets)[units], np.asarray(offsets)[units + 1]
            some = begin < end
            families[some] = base + sign * np.asarray(targets)[begin[some]].astype(np.int64)
        return families


def make_units(plan: Plan, indices: Ints, kinds: Kinds) -> Units:
    """Put quanta that follow one another and nothing else into units.

    Parameters
    ----------
    plan, indices
        See `qgexec.clustering.algorithms.make_clusters`.
    kinds
        Those of the tasks; those of the chains are added.
    """
    arrays = plan.to_arrays()
    here = np.zeros(len(plan), dtype=bool)
    here[indices] = True
    before = np.repeat(np.arange(len(plan), dtype=np.int32), np.diff(arrays["successor_offsets"]))
    after = arrays["successor_targets"]
    inside = here[before] & here[after]
    before, after = before[inside], after[inside]
    alone = np.bincount(before, minlength=len(plan))[before] == 1
    alone &= np.bincount(after, minlength=len(plan))[after] == 1
    tasks, kind = plan.label_codes, array("i", plan.label_codes)
    head = array("i", range(len(plan)))
    # The edges are sorted by their first end: a chain is gone along from its head.
    for first, second in zip(before[alone].tolist(), after[alone].tolist(), strict=True):
        unit = head[first]
        joined = kinds.joined(kind[unit], tasks[second])
        if joined >= 0:
            head[second], kind[unit] = unit, joined
    heads = np.asarray(head)
    is_head = here & (heads == np.arange(len(plan)))
    number = np.cumsum(is_head, dtype=np.int64) - 1
    before, after = number[heads[before]], number[heads[after]]
    between = before != after
    return Units(
        number[heads[indices]],
        int_array("i", np.asarray(kind)[is_head]),
        unique_edges(before[between], after[between], int(is_head.sum())),
    )
