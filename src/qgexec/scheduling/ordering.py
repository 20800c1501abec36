"""Order between quanta that do not need each other's outputs, as BPS's section `ordering` asks for it; pure.

A group takes the quanta of some tasks and sorts them by the values of some dimensions: numbers as numbers,
the rest as text. Those with one set of values begin when those with the set before have succeeded. As edges
of the graph: from each that none of its own set follows to each of the next set that follows none of its own.

What was found in ``lsst.ctrl.bps.generic_workflow`` (30.2026) and is kept: with a method of following
(``source``, ``sink``) a quantum has the values of the one before it, or after it, in the group; its own count
where it has no such neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from qgexec.errors import GraphError, UsageError
from qgexec.scheduling.ordergroup import OrderGroup
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Ints

__all__ = ["ordered"]

_Key = tuple[Any, ...]


def ordered(plan: Plan, groups: Sequence[OrderGroup]) -> Plan:
    """Return a plan of the same quanta, with the edges that these groups ask for.

    Returns
    -------
    plan
        The same one where there are no groups. Between sets of m and n quanta there are up to m * n edges.

    Raises
    ------
    qgexec.errors.UsageError
        A task has no such dimension, or quanta would be in two sets, or wait for each other in a circle.
    """
    if not groups:
        return plan
    edges = [edge for group in groups for edge in _Ordering(plan, group).edges()]
    names = ", ".join(group.name for group in groups)
    try:
        return plan.with_more(
            np.concatenate([np.empty(0, dtype=np.int64), *(before for before, _ in edges)]),
            np.concatenate([np.empty(0, dtype=np.int64), *(after for _, after in edges)]),
        )
    except GraphError as error:
        raise UsageError(
            f"ordering ({names}): {error.message}",
            hint="What is later in this order is needed by what is earlier: leave tasks out of `labels`.",
        ) from error


class _Ordering:
    """One group, for the quanta of a plan."""

    def __init__(self, plan: Plan, group: OrderGroup) -> None:
        self._plan = plan
        self._group = group

    def edges(self) -> Iterator[tuple[Ints, Ints]]:
        """Yield quanta, and for each one that waits for it."""
        keys = self._keys()
        sets: dict[_Key, list[int]] = {}
        for index, key in keys.items():
            sets.setdefault(key, []).append(index)
        in_order = [sets[key] for key in sorted(sets)]
        for one, following in pairwise(in_order):
            last = self._without(one, keys, self._plan.successors)
            first = self._without(following, keys, self._plan.prerequisites)
            yield np.repeat(last, len(first)), np.tile(first, len(last))

    def _without(self, members: Iterable[int], keys: Mapping[int, _Key], neighbours: Any) -> Ints:
        """Return the members of a set that have no such neighbour in it."""
        ends = [i for i in members if all(keys.get(other) != keys[i] for other in neighbours(i))]
        return np.asarray(ends, dtype=np.int64)

    def _keys(self) -> dict[int, _Key]:
        """Return the values that each quantum of the group is sorted by."""
        plan, method = self._plan, self._group.find_dependency_method
        wanted = [code for code, label in enumerate(plan.labels) if label in self._group.labels]
        members = np.flatnonzero(np.isin(np.asarray(plan.label_codes), wanted)).tolist()
        neighbours = plan.successors if method == "sink" else plan.prerequisites
        keys: dict[int, _Key] = {}
        for index in reversed(members) if method == "sink" else members:
            found = {keys[n] for n in neighbours(index) if n in keys} if method is not None else set()
            if len(found) > 1:
                raise UsageError(
                    f"ordering {self._group.name}: {plan.describe(index)} would be in several places: "
                    f"{', '.join(str(self._shown(key)) for key in sorted(found)[:2])}",
                    hint="Leave its task out of `labels`, or order by other dimensions.",
                )
            keys[index] = found.pop() if found else self._own(index)
        return keys

    def _shown(self, key: _Key) -> dict[str, Any]:
        return dict(zip(self._group.dimensions, key, strict=True))

    def _own(self, index: int) -> _Key:
        """Return the values that a quantum has itself."""
        has, group = self._plan.data_id(index), self._group
        equal: dict[str, str] = {}
        for one, other in group.equal_dimensions:
            equal |= {one: other, other: one}
        names = [name if name in has else equal.get(name, name) for name in group.dimensions]
        missing = [name for name, found in zip(group.dimensions, names, strict=True) if found not in has]
        if missing:
            raise UsageError(
                f"ordering {group.name}: {self._plan.describe(index)} has no {', '.join(missing)}",
                hint="Name a dimension that stands for it under `equalDimensions`, give a "
                "`findDependencyMethod`, or leave its task out of `labels`.",
            )
        return tuple(has[name] for name in names)
