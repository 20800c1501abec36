"""What ctrl_bps is told to cluster by, where qgexec makes its own jobs: one cluster for each task.

The generic workflow that ctrl_bps makes of them is not executed; few clusters are what it makes quickest.
"""

from __future__ import annotations

from typing import Any

from lsst.ctrl.bps import ClusteredQuantumGraph, QuantaCluster

__all__ = ["ALGORITHMS", "auto", "by_task", "chunks"]


def by_task(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Put all quanta of a task into one cluster: ctrl_bps's ``clusterAlgorithm`` where the user names none.

    Such clusters have no data IDs by which ctrl_bps could order its jobs: ``ordering`` is taken out of the
    configuration, or it would refuse them.

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
    if "ordering" in config:
        del config["ordering"]
    return clustered


def auto(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Stand in a BPS file for ``clusterAlgorithm: auto``; parameters as of `by_task`."""
    return by_task(config, qgraph, name)


def chunks(config: Any, qgraph: Any, name: str) -> ClusteredQuantumGraph:
    """Stand in a BPS file for ``clusterAlgorithm: chunks``; parameters as of `by_task`."""
    return by_task(config, qgraph, name)


ALGORITHMS = {"qgexec.bps.by_task": None, "qgexec.bps.auto": "auto", "qgexec.bps.chunks": "chunks"}
"""Names in a BPS file, and what `qgexec.config.bpsfile` calls them; `None` where the other keys decide."""
