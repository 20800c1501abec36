"""Owns what the keys about batch jobs mean: site, queue, set-up, and how quanta are clustered.

A key counts in ``payload``, then in the section of the site, then of the cloud, then at the top level. A
list is taken whole from the first that has it, as in BPS; what is said of `environment` is put together
(`qgexec.config.environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.environment import ENVIRONMENT, differences, job_environment
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

__all__ = [
    "CLUSTER_KEYS",
    "JOB_KEYS",
    "JOB_KEYS_OF_TASKS",
    "WALLTIME",
    "Sections",
    "is_empty_cluster",
    "read_batch",
    "read_rules",
]

WALLTIME = "requestWalltime"
"""The one request of a cluster that is not its quanta's: all of them together may take so long."""

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


_READERS: dict[str, tuple[str, Reader]] = {
    "computeSite": ("site", one(text)),
    "queue": ("queue", one(text)),
    "accountingGroup": ("account", one(text)),
    "accountingUser": ("accounting_user", one(text)),
    "setup": ("setup", _as_it_stands),
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

JOB_KEYS = frozenset({*_READERS, *_RULE_READERS, ENVIRONMENT, "cluster", "finalJob"})
"""Keys that mean something here, for all tasks or for a site."""

JOB_KEYS_OF_TASKS = frozenset({"chunkSize", ENVIRONMENT})
"""Those that mean something below the label of a task."""


@dataclass(frozen=True, slots=True)
class Sections:
    """A file's sections, by what they hold for."""

    top: Mapping[str, Node]
    """The whole file."""
    payload: Mapping[str, Node]
    site: Mapping[str, Node]
    """That of the site that is chosen."""
    cloud: Mapping[str, Node]

    @property
    def general(self) -> Layers:
        """Where keys are looked for that are not a task's own; the first that has one counts."""
        return [self.payload, self.site, self.cloud, self.top]

    def of_task(self, *own: Mapping[str, Node]) -> Layers:
        """Return where a task's keys are looked for, given its own sections: its cluster's, then its own."""
        return [self.payload, *own, self.site, self.cloud, self.top]

    def environment(self, *own: Mapping[str, Node]) -> dict[str, str]:
        """Return the variables of the jobs of a task, given its own sections as `of_task` has them."""
        whole = self.payload if ENVIRONMENT in self.payload else self.top
        return job_environment([whole, self.cloud, self.site, *reversed(own)], self.of_task(*own))


def read_batch(
    sections: Sections,
    clustering: ClusterRules,
    own_sections: Mapping[str, Sequence[Mapping[str, Node]]],
) -> BatchSettings:
    """Return what is said about batch jobs.

    Parameters
    ----------
    sections
        The file.
    clustering
        What it says of clusters; see `read_rules`.
    own_sections
        By task label the sections of a task's own, as `Sections.of_task` takes them.

    Raises
    ------
    qgexec.errors.UsageError
        A value makes no sense: the message begins with file and line.
    """
    layers = sections.general
    said = _read(_READERS, layers)
    closing = [section_of(section, "finalJob") for section in layers]
    if (node := first(closing, "requestMemory")) is not None:
        memory = one(mebibytes)("finalJob: requestMemory", node, [*closing, *layers])
        said["closing_memory_bytes"] = memory or BatchSettings().closing_memory_bytes
    common = sections.environment()
    own = {label: sections.environment(*each) for label, each in own_sections.items()}
    if clustering.effective is Algorithm.DIMENSIONS:
        _check_shared_jobs(clustering, own)
    environments = {label: changed for label, each in own.items() if (changed := differences(each, common))}
    if any(ENVIRONMENT in section for section in layers):
        said["environment"] = common
    return BatchSettings(**said, environments=environments, said=frozenset(said), clustering=clustering)


def _check_shared_jobs(rules: ClusterRules, environments: Mapping[str, Mapping[str, str]]) -> None:
    """Check that tasks of one cluster, whose quanta are in the same jobs, say the same of its variables."""
    for name, cluster in rules.clusters.items():
        first, *others = cluster.pipetasks
        for label in others:
            one_, other = environments[first], environments[label]
            changed = sorted(key for key in {**one_, **other} if one_.get(key) != other.get(key))
            if changed:
                raise UsageError(
                    f"{cluster.where}: cluster {name}: tasks {first} and {label} are in the same jobs, "
                    f"and the environment of one says something else of {', '.join(changed)}",
                    hint="Say it below the cluster, or put them into clusters of their own.",
                )


def _read(readers: Mapping[str, tuple[str, Reader]], layers: Layers) -> dict[str, Any]:
    nodes = {key: first(layers, key) for key in readers}
    return {
        readers[key][0]: readers[key][1](key, node, layers) for key, node in nodes.items() if node is not None
    }


def read_rules(sections: Sections) -> ClusterRules:
    """Return what is said about clusters; raises as `read_batch`."""
    top, layers = sections.top, sections.general
    chunk_sizes = {
        label: one(_quanta)("chunkSize", node.section["chunkSize"], [node.section, *layers])
        for label, node in section_of(top, "pipetask").items()
        if "chunkSize" in node.section
    }
    said = _read(_RULE_READERS, layers)
    clusters = {
        name: _Cluster(name, node, layers).read()
        for name, node in section_of(top, "cluster").items()
        if said.get("algorithm") is Algorithm.DIMENSIONS or not is_empty_cluster(node)
    }
    return ClusterRules(**said, clusters=clusters, chunk_sizes=chunk_sizes)


def is_empty_cluster(node: Node) -> bool:
    """Return whether an entry says what jobs are given, and nothing of which quanta they are of."""
    return isinstance(node.content, Mapping) and not CLUSTER_KEYS & node.content.keys()


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
            walltime_s=self._walltime(),
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

    def _walltime(self) -> float | None:
        node = self._node.section.get(WALLTIME)
        return None if node is None else cast("float | None", one(seconds)(WALLTIME, node, self._layers))

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
