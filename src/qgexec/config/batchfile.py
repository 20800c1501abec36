"""Owns what the keys about batch jobs mean: site, queue, set-up, and how quanta are clustered.

A key counts in ``payload``, then in the section of the site, then of the cloud, then at the top level. A
section or list is taken whole from the first that has it, as in BPS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.values import (
    Layers,
    Reader,
    Value,
    first,
    listed,
    mebibytes,
    one,
    seconds,
    section_of,
    text,
)
from qgexec.config.yamlfile import Node, resolve
from qgexec.errors import UsageError

__all__ = ["CLUSTER_KEYS", "JOB_KEYS", "JOB_KEYS_OF_TASKS", "read_batch"]

_BPS = "lsst.ctrl.bps.quantum_clustering_funcs"

_ALGORITHMS = {
    f"{_BPS}.single_quantum_clustering": Algorithm.SINGLE,
    f"{_BPS}.dimension_clustering": Algorithm.DIMENSIONS,
    **{algorithm.value: algorithm for algorithm in Algorithm},
}


def _jobs(value: Value) -> int:
    return value.whole(1, "a number of jobs", "500")


def _quanta(value: Value) -> int:
    return value.whole(1, "a number of quanta", "20")


def _values(value: Value) -> int:
    return value.whole(1, "a number of values", "10")


def _algorithm(value: Value) -> Algorithm:
    algorithm = _ALGORITHMS.get(str(value.scalar))
    if algorithm is None:
        *names, last = (algorithm.value for algorithm in Algorithm)
        known = f"{', '.join(names)} or {last}, or BPS's name of one"
        raise value.refused(f"{known}; others would run code of their own", "auto")
    return algorithm


def _as_it_stands(name: str, node: Node, _: Layers) -> tuple[str, ...]:
    """Read texts that are another program's: `$NAME` and `{name}` in them are not ours to replace."""
    if node.content is None:
        return ()
    for item in listed(node):
        if not isinstance(item.content, str):
            raise UsageError(
                f"{item.place}: {name} is a text or a list of texts, and this is none",
                hint="Put it in quotes.",
            )
    return tuple(str(item.content) for item in listed(node))


def _lines(name: str, node: Node, layers: Layers) -> tuple[str, ...]:
    texts = _as_it_stands(name, node, layers)
    return tuple(line.strip() for item in texts for line in item.splitlines() if line.strip())


def _environment(_: str, node: Node, layers: Layers) -> dict[str, str]:
    """Read variables of jobs; those of this process in their values are replaced now, as by BPS."""
    for key, value in node.section.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UsageError(
                f"{value.place}: environment: {key!r} is no name of a variable",
                hint="Use letters, digits and _, no digit first.",
            )
    scalars = {key: resolve(value, [node.section, *layers]) for key, value in node.section.items()}
    return {key: "" if scalar is None else str(scalar) for key, scalar in scalars.items()}


_READERS: dict[str, tuple[str, Reader]] = {
    "computeSite": ("site", one(text)),
    "queue": ("queue", one(text)),
    "accountingGroup": ("account", one(text)),
    "accountingUser": ("accounting_user", one(text)),
    "setup": ("setup", _as_it_stands),
    "environment": ("environment", _environment),
    "container": ("container", one(text)),
    "submitLines": ("submit_lines", _lines),
    "maxIdle": ("max_idle", one(_jobs)),
    "maxJobs": ("max_jobs", one(_jobs)),
    "jobWalltime": ("walltime_s", one(seconds)),
    "visibilityWait": ("visibility_s", one(seconds)),
}
"""Keys about jobs: their names in `BatchSettings`, and what reads them."""

_RULE_READERS: dict[str, tuple[str, Reader]] = {
    "clusterAlgorithm": ("algorithm", one(_algorithm)),
    "chunkSize": ("chunk_size", one(_quanta)),
    "jobDuration": ("target_s", one(seconds)),
    "parallelJobs": ("width", one(_jobs)),
}
"""Keys about clusters, by their names in `ClusterRules`."""

JOB_KEYS = frozenset({*_READERS, *_RULE_READERS, "cluster", "finalJob"})
"""Keys that mean something here, for all tasks or for a site."""

JOB_KEYS_OF_TASKS = frozenset({"chunkSize"})
"""Those that mean something below the label of a task."""


def read_batch(top: Mapping[str, Node], layers: Layers) -> BatchSettings:
    """Return what is said about batch jobs.

    Parameters
    ----------
    top
        The whole file.
    layers
        Sections in which keys are looked for, the first that has one counts.

    Raises
    ------
    qgexec.errors.UsageError
        A value makes no sense: the message begins with file and line.
    """
    said = _read(_READERS, layers)
    closing = [section_of(section, "finalJob") for section in layers]
    if (node := first(closing, "requestMemory")) is not None:
        memory = one(mebibytes)("finalJob: requestMemory", node, [*closing, *layers])
        said["closing_memory_bytes"] = memory or BatchSettings().closing_memory_bytes
    return BatchSettings(**said, said=frozenset(said), clustering=_rules(top, layers))


def _read(readers: Mapping[str, tuple[str, Reader]], layers: Layers) -> dict[str, Any]:
    nodes = {key: first(layers, key) for key in readers}
    return {
        readers[key][0]: readers[key][1](key, node, layers) for key, node in nodes.items() if node is not None
    }


def _rules(top: Mapping[str, Node], layers: Layers) -> ClusterRules:
    chunk_sizes = {
        label: one(_quanta)("chunkSize", node.section["chunkSize"], [node.section, *layers])
        for label, node in section_of(top, "pipetask").items()
        if "chunkSize" in node.section
    }
    clusters = {
        name: _Cluster(name, node, layers).read() for name, node in section_of(top, "cluster").items()
    }
    return ClusterRules(**_read(_RULE_READERS, layers), clusters=clusters, chunk_sizes=chunk_sizes)


class _Cluster:
    """Reads one entry of the section `cluster`."""

    def __init__(self, name: str, node: Node, layers: Layers) -> None:
        self._name = name
        self._node = node
        self._layers: Layers = [node.section, *layers]

    def read(self) -> NamedCluster:
        """Return what the entry says."""
        cluster = NamedCluster(
            pipetasks=self._names("pipetasks"),
            dimensions=self._names("dimensions"),
            equal_dimensions=tuple(self._pairs("equalDimensions")),
            partition_dimensions=self._names("partitionDimensions"),
            partition_max_clusters=self._number("partitionMaxClusters", _jobs),
            partition_max_size=self._number("partitionMaxSize", _values),
            find_dependency_method=self._method("findDependencyMethod"),
            size=self._number("size", _quanta),
            where=str(self._node.place),
        )
        if not cluster.pipetasks:
            raise self._refused("names no tasks", "Write for example `pipetasks: isr,calibrateImage`.")
        if cluster.size is not None and len(cluster.pipetasks) > 1:
            raise self._refused(
                "has a size, which holds for one task, but several tasks",
                "Give each task a cluster of its own, or use partitionDimensions and partitionMaxSize.",
            )
        limits = [cluster.partition_max_clusters, cluster.partition_max_size]
        if cluster.partition_dimensions and limits.count(None) != 1:
            raise self._refused(
                "has partitionDimensions, but not one of partitionMaxClusters and partitionMaxSize",
                "Give one of them: how many clusters at most, or how many values in each.",
            )
        return cluster

    def _refused(self, what: str, hint: str) -> UsageError:
        return UsageError(f"{self._node.place}: cluster {self._name} {what}", hint=hint)

    def _items(self, key: str) -> Iterator[tuple[Node, str]]:
        """Yield the parts of a list that is written with commas, or as one."""
        node = self._node.section.get(key)
        if node is None or node.content is None:
            return
        for item in listed(node):
            for part in str(resolve(item, self._layers)).split(","):
                if part.strip():
                    yield item, part.strip()

    def _names(self, key: str) -> tuple[str, ...]:
        return tuple(name for _, name in self._items(key))

    def _pairs(self, key: str) -> Iterator[tuple[str, str]]:
        for node, text_ in self._items(key):
            one_, colon, other = (name.strip() for name in text_.partition(":"))
            if not (one_ and colon and other) or ":" in other:
                raise Value(key, node, text_).refused("two dimensions with a colon between", "visit:exposure")
            yield one_, other

    def _number(self, key: str, read: Callable[[Value], int]) -> int | None:
        node = self._node.section.get(key)
        return None if node is None else cast("int | None", one(read)(key, node, self._layers))

    def _method(self, key: str) -> str | None:
        node = self._node.section.get(key)
        if node is None or node.content is None:
            return None
        value = Value(key, node, resolve(node, self._layers))
        if value.scalar not in ("source", "sink"):
            raise value.refused("source or sink", "source")
        return str(value.scalar)


CLUSTER_KEYS = frozenset(
    {
        *("pipetasks", "dimensions", "equalDimensions", "partitionDimensions", "partitionMaxClusters"),
        *("partitionMaxSize", "findDependencyMethod", "clusterTemplate", "size"),
    }
)
"""Keys of an entry of the section `cluster`; jobs have names of their own, whatever `clusterTemplate` is."""
