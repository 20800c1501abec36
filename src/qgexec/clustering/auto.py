"""Clusters that last about as long as a job should: chains and chunks, from expected run times; pure.

1. *Chains*: a quantum whose only prerequisite has no other successor goes on in the same job: it could not
   start earlier elsewhere, and nobody else waits for it.
2. Chains and single quanta have a *level*: the number of others on the longest path to them. Level by level:

   a. What depends on one cluster alone is taken into it, if all that depends on this cluster can be:
      one after another instead of side by side costs waiting, and one job's start is saved, so that
      is done only where it costs less (`JOB_COST_S`).
   b. All others of one level that run the same tasks are cut into *chunks* of about one size, such that
      those that the same quantum waits for are together where they can be. A chunk lasts no longer than
      the target, and there are not fewer chunks than machines (`ClusterRules.width`), so that none is idle
      for lack of jobs; only where a job would take less time than starting it are there fewer.

What it guarantees, whatever the graph and the run times:

- Every quantum is in one cluster, and clusters do not wait for each other in a circle. (Chains hang on
  their ends alone. A cluster has nothing of a higher level when its level is chunked, so nothing in it
  can wait for a quantum of its own level elsewhere. What (a) takes in is all that depends on the
  cluster, so no path leaves the cluster and comes back.)
- A cluster is expected to last no longer than the target, unless it is a single quantum.
- Tasks in one cluster ask for equally many cores, and the one for at most twice the memory of
  the other; those that do not say how much are with none that do.
- Tasks in one cluster have jobs with the same environment.
- Quanta of a serial task are with others of the same task alone: more would have to wait in turn.
- The same plan, rules and run times give the same clusters.

All quanta of a task count as equally long. Waiting for the batch system is not known and not counted: it
makes larger clusters better than they look here.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from qgexec.clustering.chains import Kinds, Load, Units, make_units
from qgexec.clustering.groups import Groups
from qgexec.clustering.rules import ClusterRules
from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Ints, row_offsets, unique_edges

__all__ = ["JOB_COST_S", "TARGET_S", "UNKNOWN_S", "WIDTH", "auto_groups"]

TARGET_S = 1800.0
"""How long a job lasts where nothing else is said, seconds."""

WIDTH = 1000
"""How many jobs run side by side where nothing else is said."""

UNKNOWN_S = 60.0
"""Run time of a quantum where it is not known, seconds."""

JOB_COST_S = 60.0
"""What it costs to start a job, seconds: a slot is found, the software is read from a shared file system."""

_LEAST_S = 1e-3
"""No quantum takes less time, seconds: so that there is an end to what fits into a job."""


def auto_groups(
    plan: Plan,
    indices: Ints,
    rules: ClusterRules,
    durations: Mapping[str, float],
    serial_labels: Collection[str],
    requests: Mapping[str, Resources],
    environments: Mapping[str, int],
) -> Groups:
    """Put quanta into chains and chunks.

    See `qgexec.clustering.algorithms.make_clusters` for the parameters.
    """
    kinds = Kinds(
        [
            Load.of(
                max(_LEAST_S, durations.get(label, UNKNOWN_S)),
                requests.get(label, Resources()),
                is_serial=label in serial_labels,
                environment=environments.get(label, 0),
            )
            for label in plan.labels
        ],
        TARGET_S if rules.target_s is None else rules.target_s,
    )
    units = make_units(plan, indices, kinds)
    clusters = _Clustering(units, kinds, rules.width or WIDTH)
    for level in units.levels():
        clusters.add(level)
    numbers = np.asarray(clusters.of_unit, dtype=np.int64)[units.of_quantum]
    return _named(plan, indices, numbers, len(clusters.loads))


class _Clustering:
    """Clusters of units, which grow level by level."""

    def __init__(self, units: Units, kinds: Kinds, width: int) -> None:
        self._units = units
        self._kinds = kinds
        self._width = width
        self.of_unit = array("i", [-1]) * len(units)
        """Cluster of each unit that has one."""
        self.loads: list[Load] = []
        """What each cluster is in all."""
        self._newest: list[Sequence[int] | None] = []
        """For each cluster the units that came in last, on which alone others can depend; `None` where
        others do depend that will never come in."""

    def add(self, level: Sequence[int]) -> None:
        """Put all units of the next level into clusters."""
        offers: dict[int, list[int]] = {}
        for unit in level:
            cluster = self._only_parent(unit)
            if cluster >= 0:
                offers.setdefault(cluster, []).append(unit)
        for cluster, offered in offers.items():
            self._take_in(cluster, offered)
        kinds: dict[int, list[int]] = {}
        for unit in level:
            if self.of_unit[unit] < 0:
                kinds.setdefault(self._units.kinds[unit], []).append(unit)
        for kind, alike in kinds.items():
            self._cut(kind, np.array(alike, dtype=np.int64))

    def _only_parent(self, unit: int) -> int:
        """Return the cluster that all prerequisites of a unit are in; -1 where there is no such one."""
        before = self._units.prerequisites(unit)
        if not before:
            return -1
        clusters = {self.of_unit[other] for other in before}
        cluster = clusters.pop()
        return cluster if not clusters and self._newest[cluster] is not None else -1

    def _take_in(self, cluster: int, offered: Sequence[int]) -> None:
        """Let units into the cluster that they depend on, if that is all that does and costs no time."""
        newest = self._newest[cluster]
        assert newest is not None
        self._newest[cluster] = None
        mine = set(offered)
        if any(unit not in mine for other in newest for unit in self._units.successors(other)):
            return
        loads = [self._kinds.loads[self._units.kinds[unit]] for unit in offered]
        seconds = [load.duration_s for load in loads]
        load: Load | None = self.loads[cluster]
        if sum(seconds) - max(seconds) > JOB_COST_S:
            return
        for other in loads:
            load = load.joined(other, self._kinds.target_s) if load is not None else None
        if load is not None:
            self.loads[cluster], self._newest[cluster] = load, offered
            for unit in offered:
                self.of_unit[unit] = cluster

    def _cut(self, kind: int, alike: Ints) -> None:
        """Make chunks of units of one level and kind, which ascend."""
        load = self._kinds.loads[kind]
        most = max(1, int(self._kinds.target_s / load.duration_s))
        n_chunks = -(-len(alike) // most)
        if not load.is_serial:
            # Fewer chunks than machines only where starting a job would take longer than what is in it.
            in_a_start = max(1, int(JOB_COST_S / load.duration_s))
            n_chunks = max(n_chunks, min(self._width, -(-len(alike) // in_a_start)))
        if n_chunks >= len(alike):
            for unit in alike.tolist():
                self._open([unit], load)
            return
        families = self._units.families(alike)
        order = np.argsort(families, kind="stable")
        edges = np.flatnonzero(np.diff(families[order])) + 1
        for chunk in _packed(np.split(alike[order], edges), n_chunks, most):
            self._open(chunk, load.times(len(chunk)))

    def _open(self, members: Sequence[int], load: Load) -> None:
        for unit in members:
            self.of_unit[unit] = len(self.loads)
        self.loads.append(load)
        self._newest.append(members)


def _packed(families: Sequence[Ints], n_chunks: int, most: int) -> Iterator[list[int]]:
    """Put whole families into at least so many chunks of about one size; cut those that are larger.

    A chunk takes no more than its share of what is left, and never more than ``most``.
    """
    left, n_left = sum(map(len, families)), n_chunks
    chunk: list[int] = []
    for family in families:
        members = family.tolist()
        if chunk and len(chunk) + len(members) > min(most, -(-left // n_left)):
            yield chunk
            left, n_left, chunk = left - len(chunk), max(1, n_left - 1), []
        if len(members) > min(most, -(-left // n_left)):
            n_parts = max(-(-len(members) // most), -(-len(members) * n_left // left))
            edges = [len(members) * n // n_parts for n in range(n_parts + 1)]
            yield from (members[begin:end] for begin, end in pairwise(edges))
            left, n_left = left - len(members), max(1, n_left - n_parts)
        else:
            chunk += members
    if chunk:
        yield chunk


def _named(plan: Plan, indices: Ints, numbers: Ints, n_groups: int) -> Groups:
    """Call each group by the tasks in it."""
    codes = np.asarray(plan.label_codes)[indices].astype(np.int64)
    groups, labels = unique_edges(numbers, codes, max(n_groups, len(plan.labels)))
    offsets = row_offsets(groups, n_groups).tolist()
    of_group = [plan.labels[code] for code in labels.tolist()]
    names: dict[str, int] = {}
    kinds = [names.setdefault(_name(of_group[begin:end]), len(names)) for begin, end in pairwise(offsets)]
    return Groups(numbers, tuple(names), np.array(kinds, dtype=np.int64))


def _name(labels: Sequence[str]) -> str:
    return "+".join(labels) if len(labels) <= 3 else f"{labels[0]}+{len(labels) - 2}+{labels[-1]}"
