"""Some quanta of a graph file, or all of them, as a plan: what one job of many needs, and no more."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from lsst.pipe.base.quantum_graph import PredictedQuantumDatasetsModel

from qgexec.errors import GraphError, UnknownQuantumError
from qgexec.rubin.addresses import locate_file
from qgexec.rubin.graphfile import GRAPH_NAME, GraphSource, open_graph, read_old, read_plan
from qgexec.rubin.graphload import warn_of_id
from qgexec.rubin.graphwrite import fetch_graph, into_run_dir, write_graph
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan

__all__ = ["local_graph", "read_part"]


def local_graph(
    graph: str, folder: Path, quantum_ids: Sequence[uuid.UUID] = (), graph_id: str | None = None
) -> Path:
    """Return where a graph is as a local ``.qg`` file; any other is written into a folder as one.

    Parameters
    ----------
    graph
        Path or URI of a ``.qg`` or ``.qgraph`` file.
    folder
        For a copy, if there must be one.
    quantum_ids
        Quanta that are needed of a ``.qgraph`` file; none for all.
    graph_id
        Identifier that a ``.qgraph`` file must have; ``.qg`` files have none.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing or damaged, or has another identifier, or not these quanta.
    """
    uri, target = locate_file(graph), folder / GRAPH_NAME
    if uri.getExtension() == ".qgraph":
        components = read_old(uri, quantum_ids, graph_id)
        with into_run_dir(target):
            write_graph(components, target)
        return target
    if graph_id is not None:
        warn_of_id()
    if uri.isLocal:
        return Path(uri.ospath).absolute()
    with into_run_dir(target):
        fetch_graph(uri, target)
    return target


def read_part(path: Path, quantum_ids: Sequence[uuid.UUID] = ()) -> Plan:
    """Read quanta of a ``.qg`` file, and the order among them; no task class is imported.

    Parameters
    ----------
    path
        Local file.
    quantum_ids
        The quanta; none for all. What they need of others must be there.

    Returns
    -------
    plan
        Without a source. Of named quanta about 0.1 ms each, whatever the size of the graph.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing or damaged, has no quanta, or not these.
    """
    if not quantum_ids:
        return read_plan(path)
    quanta = _read_quanta(path, dict.fromkeys(quantum_ids))
    with open_graph(path, imports=False) as reader:
        tasks = reader.pipeline_graph.tasks
        try:
            dimensions = {
                each.task_label: tuple(tasks[each.task_label].dimensions.data_coordinate_keys)
                for each in quanta
            }
        except LookupError as error:
            raise GraphError(
                f"{path}: a task of these quanta is not in its pipeline: {error}",
                hint=f"See the quanta that can be executed: qgexec qgraph -g {path} --show workflow",
            ) from error
    codes = {label: code for code, label in enumerate(dimensions)}
    producer = {output: i for i, each in enumerate(quanta) for output in each.iter_output_dataset_ids()}
    edges = [
        (producer[needed], i)
        for i, each in enumerate(quanta)
        for needed in each.iter_input_dataset_ids()
        if needed in producer
    ]
    return Plan.from_edges(
        labels=dimensions,
        label_codes=[codes[each.task_label] for each in quanta],
        quantum_ids=b"".join(each.quantum_id.bytes for each in quanta),
        data_ids=DataIds.pack(each.data_coordinate for each in quanta),
        predecessors=[first for first, _ in edges],
        successors=[second for _, second in edges],
    )


def _read_quanta(path: Path, quantum_ids: dict[uuid.UUID, None]) -> list[PredictedQuantumDatasetsModel]:
    found: list[PredictedQuantumDatasetsModel] = []
    with closing(GraphSource(path)) as source:
        for quantum_id in quantum_ids:
            try:
                found.append(source.datasets(quantum_id))
            except UnknownQuantumError:
                raise GraphError(
                    f"{path} has no quantum {quantum_id}",
                    hint=f"See those that it has: qgexec qgraph -g {path} --show workflow",
                ) from None
    return found
