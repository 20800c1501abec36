"""Quanta by the number of their group: what a clustering algorithm gives, before it is put in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Ints

__all__ = ["Groups", "chunks_of"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Quanta in groups that are numbered from 0 in any order."""

    numbers: Ints
    """Group of each quantum; shape ``(n,)``."""

    names: tuple[str, ...]
    """Names of the kinds of groups."""

    codes: Ints
    """For each group the position of its name; shape ``(k,)``."""


def chunks_of(plan: Plan, indices: Ints, size: Callable[[str], int]) -> Groups:
    """Cut the quanta of each task, in the order of the plan, into chunks.

    Parameters
    ----------
    plan, indices
        See `qgexec.clustering.algorithms.make_clusters`.
    size
        The most quanta of a task in one chunk, by label. The sizes of a task's chunks differ by one at most.
    """
    codes = np.asarray(plan.label_codes)[indices]
    numbers = np.empty(len(indices), dtype=np.int64)
    kinds: list[Ints] = []
    n_groups = 0
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        n_chunks = -(-len(rows) // size(plan.labels[code]))
        numbers[rows] = n_groups + np.arange(len(rows)) * n_chunks // len(rows)
        kinds.append(np.full(n_chunks, code, dtype=np.int64))
        n_groups += n_chunks
    return Groups(numbers, plan.labels, np.concatenate(kinds) if kinds else np.empty(0, dtype=np.int64))
