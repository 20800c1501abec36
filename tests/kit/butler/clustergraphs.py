"""A real graph with quanta of many dimensions, and what BPS makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from lsst.ctrl.bps import BpsConfig, ClusteredQuantumGraph
from lsst.ctrl.bps.quantum_clustering_funcs import dimension_clustering
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.clustering.clusters import Clusters
from qgexec.scheduling.plan import Plan
from tests.kit.butler.repos import connection, open_repository, save_graph

__all__ = ["N_VISITS", "TASKS", "Partition", "bps_clusters", "bps_partition", "make_sky_graph", "partition"]

N_VISITS = 12
"""Enough that their numbers are not in the order of their texts."""

Partition = frozenset[tuple[str, frozenset[UUID]]]
"""Clusters as name of the kind and IDs of the quanta; single quanta have no name."""

_VISIT, _PATCH = "visit detector", "tract patch band"

TASKS: dict[str, tuple[str, str, str]] = {
    # The names are those of production: dimensions, the task whose output is read, and its dimensions.
    "isr": ("exposure detector", "raw", "exposure detector"),
    "calibrateImage": (_VISIT, "isr", "exposure detector"),
    "analyzeInitialSummaryStats": (_VISIT, "calibrateImage", _VISIT),
    "consolidateVisitSummary": ("visit", "calibrateImage", _VISIT),
    "makeDirectWarp": ("tract patch visit", "calibrateImage", _VISIT),
    "assembleDeepCoadd": (_PATCH, "makeDirectWarp", "tract patch visit"),
    "measureObjectUnforced": (_PATCH, "assembleDeepCoadd", _PATCH),
    "makeWholeTractImage": ("tract band", "measureObjectUnforced", _PATCH),
    "final": ("instrument", "consolidateVisitSummary", "visit"),
}


def _insert_visits(butler: Butler) -> None:
    """Insert visits with the same pointing as those that are there, and an exposure for each visit."""
    insert = butler.registry.insertDimensionData
    known = list(butler.query_dimension_records("visit"))
    regions = list(butler.query_dimension_records("visit_detector_region"))
    visits = {record.id: record.toDict() for record in known}
    for visit in range(len(known) + 1, N_VISITS + 1):
        like = known[visit % len(known)]
        visits[visit] = like.toDict() | {"id": visit, "name": str(visit), "seq_num": visit}
        insert("visit", visits[visit])
        copies = [region.toDict() | {"visit": visit} for region in regions if region.visit == like.id]
        insert("visit_detector_region", *copies)
    for visit, values in visits.items():
        shared = {key: values[key] for key in ("instrument", "day_obs", "physical_filter")}
        insert("group", {"instrument": values["instrument"], "name": f"g{visit}"})
        insert("exposure", shared | {"id": visit, "group": f"g{visit}", "obs_id": f"e{visit}"})
        insert("visit_definition", {"instrument": values["instrument"], "visit": visit, "exposure": visit})


def make_sky_graph(folder: Path) -> Path:
    """Make a graph from raw exposures to images of tracts."""
    path = folder / "sky.qg"
    with open_repository(folder / "repo") as repo:
        _insert_visits(repo.butler)
        for label, (dimensions, reads, of) in TASKS.items():
            repo.add_task(
                label,
                dimensions=dimensions.split(),
                inputs={"input": connection(f"{reads}_mock", of.split(), multiple=True)},
                outputs={"output": connection(f"{label}_mock", dimensions.split())},
            )
        save_graph(repo, path)
    return path


def bps_clusters(graph: PredictedQuantumGraph, clusters: Mapping[str, Any]) -> ClusteredQuantumGraph:
    """Return what BPS makes by dimensions, of the section ``cluster``."""
    values = {"cluster": clusters, "bps_defined": {"runQgraphFile": "graph.qg"}}
    return dimension_clustering(BpsConfig(values), graph, "test")


def bps_partition(clustered: ClusteredQuantumGraph) -> Partition:
    """Return the clusters of BPS."""
    return _partition((cluster.label, cluster.qgraph_node_ids) for cluster in clustered.clusters())


def partition(plan: Plan, clusters: Clusters) -> Partition:
    """Return our clusters in the same form."""
    return _partition(
        (clusters.name(n), [plan.quantum_id(index) for index in clusters.quanta(n)])
        for n in range(len(clusters))
    )


def _partition(clusters: Iterable[tuple[str, Iterable[UUID]]]) -> Partition:
    sets = [(name, frozenset(ids)) for name, ids in clusters]
    return frozenset((name if len(ids) > 1 else "", ids) for name, ids in sets)
