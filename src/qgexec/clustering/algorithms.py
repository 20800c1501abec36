"""Applies rules to a plan: which quanta make one batch job; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from qgexec.clustering.auto import UNKNOWN_S, auto_groups
from qgexec.clustering.clusters import Clusters
from qgexec.clustering.groups import Groups, chunks_of
from qgexec.clustering.named import named_groups, unknown_labels
from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.plaintext import few
from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.topology import Ints

__all__ = ["cluster_remarks", "make_clusters"]


def make_clusters(
    plan: Plan,
    indices: Ints,
    rules: ClusterRules,
    *,
    durations: Mapping[str, float] | None = None,
    serial_labels: Collection[str] = (),
    requests: Mapping[str, Resources] | None = None,
    environments: Mapping[str, int] | None = None,
) -> Clusters:
    """Put quanta of a plan into clusters.

    Parameters
    ----------
    plan
        All quanta.
    indices
        Those to be clustered; shape ``(n,)``. What they wait for besides has been done.
    rules
        How they are clustered.
    durations
        Expected run time of one quantum by task label, seconds; for the algorithm AUTO. A task that
        is not there counts as `qgexec.clustering.auto.UNKNOWN_S`.
    serial_labels
        Tasks whose quanta must not run side by side: clusters with quanta of such a task wait for
        one another.
    requests
        What a quantum asks for by task label; for the algorithm AUTO, which joins no tasks that ask
        for very different things. A task that is not there asks for nothing in particular.

    Returns
    -------
    clusters
        In O((n + edges) log edges) time: 3 to 10 us per quantum.

    Raises
    ------
    qgexec.errors.UsageError
        The named clusters do not fit the plan, or wait for each other in a circle.
    """
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    match rules.effective:
        case Algorithm.AUTO:
            groups = auto_groups(
                plan, indices, rules, durations or {}, serial_labels, requests or {}, environments or {}
            )
        case Algorithm.DIMENSIONS:
            groups = named_groups(plan, indices, rules)
        case Algorithm.CHUNKS:
            groups = chunks_of(plan, indices, rules.chunk_size_of)
        case Algorithm.SINGLE:
            groups = chunks_of(plan, indices, lambda _: 1)
    return Clusters.of(
        plan,
        indices,
        groups.numbers,
        groups.names,
        groups.codes,
        in_turn=_in_turn(plan, indices, groups, serial_labels),
        places={name: cluster.where for name, cluster in rules.clusters.items()},
    )


def cluster_remarks(
    plan: Plan, indices: Ints, rules: ClusterRules, *, durations: Mapping[str, float] | None = None
) -> list[str]:
    """Return what the user should know about the clusters, one sentence or two each.

    Named clusters with tasks that the plan does not have; tasks whose run time is not known; an algorithm
    without that which it goes by, and what only another goes by.
    """
    told = _without_effect(rules)
    match rules.effective:
        case Algorithm.DIMENSIONS:
            if unknown := unknown_labels(plan, rules):
                told.append(f"Clusters name tasks that this graph does not have: {few(unknown)}.")
        case Algorithm.AUTO:
            codes = np.unique(np.asarray(plan.label_codes)[np.asarray(indices, dtype=np.int64)])
            if unknown := [plan.labels[code] for code in codes if plan.labels[code] not in (durations or {})]:
                known = f"Nothing is known about the run times of {few(unknown)}"
                told.append(f"{known}: jobs are made as if each quantum took {UNKNOWN_S:.0f} s.")
        case _:
            pass
    return told


def _without_effect(rules: ClusterRules) -> list[str]:
    """Return what was asked for and changes nothing, one sentence each."""
    told = []
    own = [size for size in rules.chunk_sizes.values() if size]
    if rules.algorithm is Algorithm.CHUNKS and rules.chunk_size is None and not own:
        told.append("clusterAlgorithm is chunks, and there is no chunkSize: each quantum is a job.")
    if rules.algorithm is Algorithm.DIMENSIONS and not rules.clusters:
        told.append("clusterAlgorithm is dimensions, and there is no section `cluster` to go by.")
    said = [key for key, value in (("jobDuration", rules.target_s), ("parallelJobs", rules.width)) if value]
    if said and rules.effective is not Algorithm.AUTO:
        told.append(f"{', '.join(said)}: of no effect without `clusterAlgorithm: auto`.")
    return told


def _in_turn(plan: Plan, indices: Ints, groups: Groups, serial_labels: Collection[str]) -> list[Ints]:
    """Return for each serial task the groups that have quanta of it."""
    codes = np.asarray(plan.label_codes)[indices]
    serial = [code for code, label in enumerate(plan.labels) if label in serial_labels]
    return [np.unique(groups.numbers[codes == code]) for code in serial]
