"""Which quanta of a graph are to be executed, where not all are; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.quantumname import matching_quanta
from qgexec.scheduling.topology import Ints

__all__ = ["Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """What of a graph is meant; by default all of it.

    What the part needs of the rest must be there already: it is neither executed nor waited for.
    """

    names: tuple[str, ...] = ()
    """Quanta, as `qgexec.scheduling.quantumname.matching_quanta` takes them; all that any of these names."""

    quanta: Collection[tuple[UUID, str]] | None = None
    """Quanta of another run, by ID and, where the graph was built anew, by task label and data ID as
    `Plan.describe` gives them; `None` where none are asked for."""

    ancestors: bool = False
    """Also all that these wait for, directly or indirectly."""

    descendants: bool = False
    """Also all that waits for these."""

    @property
    def is_all(self) -> bool:
        """Whether nothing is asked for."""
        return not self.names and self.quanta is None

    def of(self, plan: Plan) -> Plan:
        """Return the part of a plan that is meant.

        Raises
        ------
        qgexec.errors.UsageError
            There is no such quantum, or nothing to execute.
        """
        if self.is_all:
            if self.ancestors or self.descendants:
                raise UsageError(
                    "Ancestors and descendants are those of some quanta, and none are named.",
                    hint="Name them with --only or --only-failures-of.",
                )
            return plan
        indices = self._indices(plan)
        return plan if len(indices) == len(plan) else plan.part(indices)

    def _indices(self, plan: Plan) -> Ints:
        marks = bytearray(len(plan))
        for name in self.names:
            for index in matching_quanta(plan, name):
                marks[index] = 1
        for index in _others(plan, self.quanta or ()):
            marks[index] = 1
        named = [index for index, mark in enumerate(marks) if mark]
        if not named:
            raise UsageError(
                "Nothing is left to execute: none of the quanta that were asked for is in this graph.",
                hint="Those of an earlier run are found by ID, or by task label and data ID.",
            )
        before = _reached(plan.prerequisites, named, len(plan)) if self.ancestors else ()
        after = _reached(plan.successors, named, len(plan)) if self.descendants else ()
        return np.unique(np.asarray([*named, *before, *after], dtype=np.int64))


def _others(plan: Plan, quanta: Iterable[tuple[UUID, str]]) -> list[int]:
    found: list[int] = []
    missing: set[str] = set()
    for quantum_id, description in quanta:
        try:
            found.append(plan.index_of(quantum_id))
        except LookupError:
            missing.add(description)
    if missing:
        found += [index for index in range(len(plan)) if plan.describe(index) in missing]
    return found


def _reached(
    neighbours: Callable[[int], Sequence[int]], start: Iterable[int], n_quanta: int
) -> Iterable[int]:
    marks = bytearray(n_quanta)
    pending = list(start)
    while pending:
        for index in neighbours(pending.pop()):
            if not marks[index]:
                marks[index] = 1
                pending.append(index)
    return (index for index, mark in enumerate(marks) if mark)
