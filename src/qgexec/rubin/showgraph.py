"""Owns what ``--show`` prints of a quantum graph, as ``pipetask`` does, and its summary; writes no graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from lsst.daf.butler import Butler, DatasetRef
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import Report

from qgexec.config.buildoptions import Show
from qgexec.errors import UsageError
from qgexec.rubin.compat import datastore_of, graph_summary
from qgexec.rubin.repository import open_butler

__all__ = ["count_quanta", "show_graph", "summary_json"]


def show_graph(show: Show, graph: PredictedQuantumGraph, repository: str | None, stream: TextIO) -> None:
    """Print one thing about a graph.

    Parameters
    ----------
    show
        What to print; one of `qgexec.config.buildoptions.GRAPH_SHOWS`.
    graph
        The graph, with all quanta loaded.
    repository
        Where the datasets are or will be: ``uri`` asks it.
    stream
        Where to print it.

    Raises
    ------
    qgexec.errors.UsageError
        There is no repository to ask.
    qgexec.errors.RepositoryError
        It cannot be opened.
    """
    match show.what:
        case "graph":
            _show_quanta(graph, stream)
        case "workflow":
            _show_order(graph, stream)
        case _:
            if repository is None:
                raise UsageError("--show uri: of which repository?", hint="Name it with -b.")
            with open_butler(repository) as butler:
                _show_uris(graph, butler, stream)


def _show_quanta(graph: PredictedQuantumGraph, stream: TextIO) -> None:
    for label, quanta in graph.quanta_by_task.items():
        print(f"{label} ({graph.pipeline_graph.tasks[label].task_class_name})", file=stream)
        loaded = graph.build_execution_quanta(task_label=label)
        for data_id, quantum_id in quanta.items():
            quantum = loaded[quantum_id]
            print(f"  Quantum {quantum_id} dataId={data_id}:", file=stream)
            print("    inputs:", file=stream)
            _show_refs(quantum.inputs, quantum.datastore_records, stream)
            print("    outputs:", file=stream)
            _show_refs(quantum.outputs, quantum.datastore_records, stream)


def _show_refs(
    refs_by_type: Mapping[Any, Iterable[DatasetRef]],
    stores: Mapping[str, DatastoreRecordData],
    stream: TextIO,
) -> None:
    for dataset_type, refs in refs_by_type.items():
        if not refs:
            print(f"      {dataset_type}: []", file=stream)
            continue
        print(f"      {dataset_type}:", file=stream)
        for ref in refs:
            print(f"        - {ref}", file=stream)
            for store, data in stores.items():
                tables = data.records.get(ref.id)
                if not tables:
                    continue
                print(f"          records for {store}:", file=stream)
                for table, records in tables.items():
                    print(f"            - {table}:", file=stream)
                    for record in records:
                        print(f"              - {record}:", file=stream)


def _show_order(graph: PredictedQuantumGraph, stream: TextIO) -> None:
    order = graph.quantum_only_xgraph
    for quantum_id, data in order.nodes.items():
        print(f"Quantum {quantum_id}: {data['pipeline_node'].task_class_name}", file=stream)
        for parent_id in order.predecessors(quantum_id):
            print(f"Parent Quantum {parent_id} - Child Quantum {quantum_id}", file=stream)


def _show_uris(graph: PredictedQuantumGraph, butler: Butler, stream: TextIO) -> None:
    loaded = graph.build_execution_quanta()
    for quantum_id, data in graph.quantum_only_xgraph.nodes.items():
        print(f"Quantum {quantum_id}: {data['pipeline_node'].task_class_name}", file=stream)
        quantum = loaded[quantum_id]
        for title, refs_by_type in (("inputs", quantum.inputs), ("outputs", quantum.outputs)):
            print(f"  {title}:", file=stream)
            for refs in refs_by_type.values():
                for ref in refs:
                    _show_uri(butler, ref, stream)


def _show_uri(butler: Butler, ref: DatasetRef, stream: TextIO) -> None:
    # Not the butler: it wants dataset types registered, which those of outputs need not be yet.
    uris = datastore_of(butler).getURIs(ref, predict=True)
    if uris.primaryURI is not None:
        print(f"    {uris.primaryURI}", file=stream)
        return
    print("    (disassembled artifact)", file=stream)
    for name, uri in uris.componentURIs.items():
        print(f"        {name}: {uri}", file=stream)


def count_quanta(graph: PredictedQuantumGraph) -> dict[str, int]:
    """Return the number of quanta of each task that has any, by label in the pipeline's order."""
    return {label: len(quanta) for label, quanta in graph.quanta_by_task.items() if quanta}


def summary_json(graph: PredictedQuantumGraph) -> str:
    """Return what ``pipetask qgraph --summary`` writes: upstream's report of a graph that nobody has run."""
    report = Report(qgraphSummary=graph_summary(graph))
    text: str = report.model_dump_json(exclude_none=True, indent=2)
    return text
