"""Which quanta go into one batch job: the rules as they were asked for, not yet applied to any plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

__all__ = ["Algorithm", "ClusterRules", "NamedCluster"]


class Algorithm(Enum):
    """How quanta are put into clusters."""

    SINGLE = "single"
    """Each quantum is a job."""

    CHUNKS = "chunks"
    """Quanta of one task, so many to a job."""

    DIMENSIONS = "dimensions"
    """Named clusters: quanta of some tasks with the same values of some dimensions; as BPS does it."""

    AUTO = "auto"
    """Chains and chunks that last about as long as a job should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCluster:
    """One entry of BPS's section ``cluster``."""

    pipetasks: tuple[str, ...]
    """Labels of the tasks whose quanta it takes."""

    dimensions: tuple[str, ...] = ()
    """Quanta that agree in these go into one cluster; all of them do if there are none."""

    equal_dimensions: tuple[tuple[str, str], ...] = ()
    """Pairs of which one stands for the other where a task has only that."""

    partition_dimensions: tuple[str, ...] = ()
    """Each cluster is cut by the values of these."""

    partition_max_clusters: int | None = None
    """Into so many parts that the whole entry makes no more clusters than this."""

    partition_max_size: int | None = None
    """Or into parts with so many values each."""

    find_dependency_method: str | None = None
    """``source`` or ``sink``: tasks without the dimensions follow their prerequisites, or successors."""

    size: int | None = None
    """The most quanta in one cluster, for an entry with one task; ours, not BPS's."""

    walltime_s: float | None = None
    """Time limit of each of its jobs; `None` for the sum of its quanta's."""

    where: str = ""
    """File and line that say so."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return it from its fields, with lists for tuples."""
        known = {name: _tuples(value) for name, value in values.items()}
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRules:
    """How quanta are clustered. What is `None` was not said."""

    algorithm: Algorithm | None = None
    """See `effective`."""

    clusters: Mapping[str, NamedCluster] = field(default_factory=dict)
    """Named clusters, for the algorithm DIMENSIONS."""

    chunk_size: int | None = None
    """The most quanta of a task in one job: of all tasks for CHUNKS, of those in no named cluster for
    DIMENSIONS; `None` for one."""

    chunk_sizes: Mapping[str, int | None] = field(default_factory=dict)
    """The same for single tasks, by label."""

    target_s: float | None = None
    """How long a job should last, for the algorithm AUTO; `None`: half an hour."""

    width: int | None = None
    """How many jobs run side by side, for the algorithm AUTO; `None`: 1000."""

    @property
    def effective(self) -> Algorithm:
        """The algorithm that was asked for, or that the other rules are for."""
        if self.algorithm is not None:
            return self.algorithm
        if self.clusters:
            return Algorithm.DIMENSIONS
        chunked = self.chunk_size is not None or any(self.chunk_sizes.values())
        return Algorithm.CHUNKS if chunked else Algorithm.SINGLE

    def chunk_size_of(self, label: str) -> int:
        """Return how many quanta of a task go into one chunk."""
        return self.chunk_sizes.get(label, self.chunk_size) or 1

    def updated(self, later: ClusterRules) -> ClusterRules:
        """Return what holds when this is followed by rules that were given later.

        A cluster of the same name is replaced as a whole.
        """
        said = {f.name: value for f in fields(later) if (value := getattr(later, f.name)) is not None}
        tables = ("clusters", "chunk_sizes")
        said |= {name: {**getattr(self, name), **getattr(later, name)} for name in tables}
        return replace(self, **said)

    def to_json(self) -> dict[str, Any]:
        """Return the rules by their names, as JSON can hold them."""
        return asdict(self) | {"algorithm": self.algorithm and self.algorithm.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave; one that is not there has its default."""
        known: dict[str, Any] = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if known.get("algorithm") is not None:
            known["algorithm"] = Algorithm(known["algorithm"])
        named = known.get("clusters", {})
        return cls(**known | {"clusters": {n: NamedCluster.from_json(v) for n, v in named.items()}})


def _tuples(value: Any) -> Any:
    """Return lists, which is what JSON makes of tuples, as those."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
