"""What ctrl_bps is told to cluster by, where qgexec makes its own jobs: one cluster for each task.

The generic workflow that ctrl_bps makes of them is not executed; few clusters are what it makes quickest.
"""

from __future__ import annotations

from typing import Any

from lsst.ctrl.bps import ClusteredQuantumGraph, QuantaCluster
from lsst.daf.butler import Config

__all__ = ["ALGORITHMS", "ORDERING_ASIDE", "auto", "by_task", "chunks"]

ORDERING_ASIDE = "qgexecOrdering"
"""Where ``ordering`` is kept from ctrl_bps."""


def by_task(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Put all quanta of a task into one cluster: ctrl_bps's ``clusterAlgorithm`` where the user names none.

    Such clusters have no data IDs by which ctrl_bps could order its jobs, and it would refuse them: in the
    configuration ``ordering`` has another name from then on. It is for quanta, and qgexec orders these.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig`
        BPS configuration.
    qgraph : `lsst.pipe.base.quantum_graph.PredictedQuantumGraph`
        The graph.
    name
        Name of the clustered graph.
    """
    clustered = ClusteredQuantumGraph(
        name=name, qgraph=qgraph, qgraph_filename=config[".bps_defined.runQgraphFile"]
    )
    quanta = clustered.qxgraph
    labels = {quantum_id: info["task_label"] for quantum_id, info in quanta.nodes.items()}
    clusters = {label: QuantaCluster(label, label) for label in dict.fromkeys(labels.values())}
    for quantum_id, label in labels.items():
        clusters[label].add_quantum(quantum_id, label)
    for cluster in clusters.values():
        clustered.add_cluster(cluster)
    pairs = {(labels[parent], labels[child]) for parent, child in quanta.edges}
    for parent, child in sorted(pair for pair in pairs if pair[0] != pair[1]):
        clustered.add_dependency(parent, child)
    for section in ("payload", ""):
        _put_aside(config, section)
    return clustered


def _put_aside(config: Any, section: str) -> None:
    """Give ``ordering`` in a section, or at the top level, another name, which ctrl_bps does not look for."""
    place = (section, "ordering") if section else ("ordering",)
    if Config.__contains__(config, place):
        ordering = Config.__getitem__(config, place)
        del config[place]
        if ORDERING_ASIDE not in config:  # what stands in `payload` counts more
            config[ORDERING_ASIDE] = ordering


def auto(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Stand in a BPS file for ``clusterAlgorithm: auto``; parameters as of `by_task`."""
    return by_task(config, qgraph, name)


def chunks(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Stand in a BPS file for ``clusterAlgorithm: chunks``; parameters as of `by_task`."""
    return by_task(config, qgraph, name)


ALGORITHMS = {"qgexec.bps.by_task": None, "qgexec.bps.auto": "auto", "qgexec.bps.chunks": "chunks"}
"""Names in a BPS file, and what `qgexec.config.bpsfile` calls them; `None` where the other keys decide."""
