"""Named clusters: quanta that agree in some dimensions, cut by others, exactly as BPS makes them.

What was found in ``lsst.ctrl.bps.quantum_clustering_funcs`` (30.2026) and must stay so, as production
files rely on it:

- Values of ``partitionDimensions`` are ordered as text ("10" before "9"), over all clusters of an entry
  together: a value is in the part of the same number in each of them.
- ``partitionMaxClusters`` is divided by the number of clusters that the entry makes without it, rounded
  down: that many parts, the first ones a value longer where it does not come out even.
- ``findDependencyMethod`` changes nothing for quanta that have the dimensions. For others BPS fails;
  here they go with a quantum that they depend on, which is what it is said to be for.

Other than there, ``clusterTemplate`` says nothing about which quanta belong together, and only circles
of quanta are refused, not those of task labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from qgexec.clustering.groups import Groups, chunks_of
from qgexec.clustering.rules import ClusterRules, NamedCluster
from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Ints

__all__ = ["named_groups", "unknown_labels"]

_Key = tuple[Any, ...]
"""Values of the dimensions of a cluster, and at the end the number of its part."""


def named_groups(plan: Plan, indices: Ints, rules: ClusterRules) -> Groups:
    """Put quanta into the named clusters; those of tasks in none into chunks.

    Parameters
    ----------
    plan, indices
        See `qgexec.clustering.algorithms.make_clusters`.
    rules
        With the named clusters.

    Raises
    ------
    qgexec.errors.UsageError
        A task is in two clusters, or has no such dimension, or there are too many clusters.
    """
    entry_of = _entry_of_label(plan, rules)
    codes = np.asarray(plan.label_codes)[indices]
    entries = np.array([entry_of.get(label, -1) for label in plan.labels], dtype=np.int64)[codes]
    others = np.flatnonzero(entries < 0)
    rest = chunks_of(plan, indices[others], rules.chunk_size_of)
    numbers = np.empty(len(indices), dtype=np.int64)
    numbers[others] = rest.numbers
    kinds = [rest.codes]
    n_groups = len(rest.codes)
    for entry, (name, cluster) in enumerate(rules.clusters.items()):
        rows = np.flatnonzero(entries == entry)
        groups = _Entry(plan, name, cluster).groups(indices[rows].tolist())
        numbers[rows] = n_groups + groups
        n_new = int(groups.max(initial=-1)) + 1
        kinds.append(np.full(n_new, len(plan.labels) + entry, dtype=np.int64))
        n_groups += n_new
    return Groups(numbers, (*plan.labels, *rules.clusters), np.concatenate(kinds))


def unknown_labels(plan: Plan, rules: ClusterRules) -> list[str]:
    """Return the labels in named clusters that the plan does not have."""
    named = (label for cluster in rules.clusters.values() for label in cluster.pipetasks)
    return [label for label in dict.fromkeys(named) if label not in plan.labels]


def _entry_of_label(plan: Plan, rules: ClusterRules) -> dict[str, int]:
    """Return the number of the cluster of each task; one that is not in the plan may stand anywhere."""
    entry_of: dict[str, int] = {}
    names = list(rules.clusters)
    for entry, (name, cluster) in enumerate(rules.clusters.items()):
        for label in cluster.pipetasks:
            if label in entry_of:
                other = names[entry_of[label]]
                raise _error(
                    cluster,
                    f"task {label} is in cluster {name}, but also in {other}"
                    if other != name
                    else f"task {label} is in cluster {name} twice",
                    "Take it out of one of them." if other != name else "Name it once.",
                )
            if label in plan.labels:
                entry_of[label] = entry
    return entry_of


def _error(cluster: NamedCluster, message: str, hint: str) -> UsageError:
    return UsageError(f"{cluster.where}: {message}" if cluster.where else message, hint=hint)


class _Entry:
    """One named cluster, for the quanta of a plan that are its own."""

    def __init__(self, plan: Plan, name: str, cluster: NamedCluster) -> None:
        self._plan = plan
        self._name = name
        self._cluster = cluster

    def groups(self, quanta: Sequence[int]) -> Ints:
        """Return for each of these quanta, which ascend, the number of its group."""
        keys: dict[int, tuple[_Key, str]] = {}
        lacking: list[int] = []
        sources: dict[str, list[str] | None] = {}
        for index in quanta:
            label = self._plan.label(index)
            if label not in sources:
                sources[label] = self._sources(index)
            names = sources[label]
            if names is None:
                lacking.append(index)
                continue
            data_id = self._plan.data_id(index)
            values = [data_id[name] for name in names]
            n_own = len(self._cluster.dimensions)
            keys[index] = tuple(values[:n_own]), "==".join(map(str, values[n_own:]))
        self._follow(lacking, keys)
        parts = self._parts(keys.values())
        return self._numbered([(*keys[index][0], parts[keys[index][1]]) for index in quanta])

    def _sources(self, index: int) -> list[str] | None:
        """Return where a task has the values of our dimensions, given one of its quanta.

        `None` if it lacks one, and follows other quanta.
        """
        has = self._plan.data_id(index)
        cluster = self._cluster
        equal: dict[str, str] = {}
        for one, other in cluster.equal_dimensions:
            equal |= {one: other, other: one}
        wanted = (*cluster.dimensions, *cluster.partition_dimensions)
        names = [name if name in has else equal.get(name, name) for name in wanted]
        missing = [name for name, found in zip(wanted, names, strict=True) if found not in has]
        if not missing:
            return names
        if cluster.find_dependency_method is not None:
            return None
        label = self._plan.label(index)
        raise _error(
            cluster,
            f"cluster {self._name} is of {', '.join(wanted)}, but task {label} has no {', '.join(missing)}",
            f"It has {', '.join(has) or 'no dimensions'}. Name one that stands for the other under "
            "equalDimensions, or take the task out.",
        )

    def _follow(self, lacking: Sequence[int], keys: dict[int, tuple[_Key, str]]) -> None:
        """Give the quanta without a key that of one which they depend on, or which depends on them."""
        from_sink = self._cluster.find_dependency_method == "sink"
        neighbours = self._plan.successors if from_sink else self._plan.prerequisites
        for index in reversed(lacking) if from_sink else lacking:
            key = next((keys[other] for other in neighbours(index) if other in keys), None)
            if key is None:
                raise _error(
                    self._cluster,
                    f"cluster {self._name} has no place for {self._plan.describe(index)}: it lacks a "
                    f"dimension, and no {'successor' if from_sink else 'prerequisite'} of it is in a cluster",
                    "Name one that stands for the other under equalDimensions, or take the task out.",
                )
            keys[index] = key

    def _parts(self, keys: Collection[tuple[_Key, str]]) -> Mapping[str, int]:
        """Return the number of the part of each value of the partition dimensions."""
        cluster = self._cluster
        if not cluster.partition_dimensions:
            return {"": 0}
        values = {value for _, value in keys}
        most, longer = cluster.partition_max_clusters, 0
        length = cluster.partition_max_size or 1
        if most is not None:
            n_clusters = len({own for own, _ in keys})
            if n_clusters > most:
                self._too_many(n_clusters, most)
            length, longer = divmod(len(values), most // max(n_clusters, 1))
        # The first `longer` parts have one more.
        edge = longer * (length + 1)
        return {
            value: n // (length + 1) if n < edge else longer + (n - edge) // max(length, 1)
            for n, value in enumerate(sorted(values))
        }

    def _too_many(self, n_clusters: int, most: int) -> NoReturn:
        dimensions = ", ".join(self._cluster.dimensions)
        raise _error(
            self._cluster,
            f"cluster {self._name} makes {n_clusters} clusters by {dimensions} alone, "
            f"but partitionMaxClusters is {most}",
            f"Give at least {n_clusters}, or fewer dimensions.",
        )

    def _numbered(self, keys: Sequence[_Key]) -> Ints:
        """Give numbers to the keys in the order in which they come; cut what is longer than our size."""
        numbers: dict[_Key, int] = {}
        groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
        if self._cluster.size is None:
            return groups
        counts = np.bincount(groups)
        n_chunks = -(-counts // self._cluster.size)
        order = np.argsort(groups, kind="stable")
        places = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.cumsum(n_chunks) - n_chunks
        of_sorted = groups[order]
        cut = np.empty_like(groups)
        cut[order] = first[of_sorted] + places * n_chunks[of_sorted] // counts[of_sorted]
        return cut
