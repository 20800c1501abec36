"""Reads a quantum's log dataset where the datastore has it, whether or not the registry knows it yet."""

from __future__ import annotations

import uuid
from contextlib import closing
from pathlib import Path

from lsst.daf.butler import ButlerLogRecords

from qgexec.errors import RepositoryError
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.supply import Supply

__all__ = ["read_log"]

_FORMAT = "{asctime} {levelname} {name}: {message}"


def read_log(repository: str, graph_file: str, task_label: str, quantum_id: uuid.UUID) -> str:
    """Return the log of a quantum's last attempt that came to its own end, a line or more for each record.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias.
    graph_file
        Local ``.qg`` file.
    task_label, quantum_id
        The quantum.

    Raises
    ------
    qgexec.errors.GraphError
        The graph file cannot be read.
    qgexec.errors.RepositoryError
        The task has no log dataset, or it is not there, or cannot be read.
    """
    with closing(GraphSource(Path(graph_file), repository)) as source:
        quantum, output = source.quantum(quantum_id), source.task_node(task_label).log_output
        if output is None:
            raise RepositoryError(f"task {task_label} writes no log dataset")
        (ref,) = quantum.outputs[output.dataset_type_name]
        with closing(Supply.of_graph(repository, source)) as supply:
            try:
                records: ButlerLogRecords = supply.butler(quantum).get(ref)
            except Exception as error:  # whatever formatters and file systems raise
                raise RepositoryError(
                    f"the log dataset {ref.datasetType.name} {ref.dataId} cannot be read: "
                    f"{type(error).__name__}: {error}",
                    hint="Was it removed, or is the quantum one of an executor of your own?",
                ) from error
    return "\n".join(record.format(_FORMAT) for record in records)
