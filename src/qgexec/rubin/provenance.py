"""Writes upstream's provenance graph of a run, from the metadata and log datasets that its quanta left.

Upstream writes it while it executes in one process; reading it back from the
datasets works for any execution model.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lsst.daf.butler import DatasetRef, QuantumBackedButler
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.log_on_close import LogOnClose
from lsst.pipe.base.quantum_graph import (
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
    ProvenanceQuantumGraphWriter,
)

__all__ = ["write_provenance_graph"]

_logger = logging.getLogger(__name__)

_PARTIAL_SUFFIX = "partial"


def write_provenance_graph(graph_file: str, repository: str, destination: str) -> None:
    """Write the provenance graph of a finished run.

    Parameters
    ----------
    graph_file
        The predicted graph (``.qg``) that was executed.
    repository
        Butler repository that holds the outputs' files.
    destination
        Path of the provenance graph; written aside and renamed.

    Notes
    -----
    The whole graph is in memory meanwhile: about 5 kB per quantum.
    """
    with PredictedQuantumGraph.open(graph_file) as reader:
        reader.read_all()
        components = reader.components
    aside = Path(f"{destination}.{_PARTIAL_SUFFIX}")
    try:
        with ExitStack() as stack:
            butler = stack.enter_context(_open_outputs(components, repository))
            writer = ProvenanceQuantumGraphWriter(
                str(aside), exit_stack=stack, log_on_close=LogOnClose(_logger.log), predicted=components
            )
            for quantum_id, quantum in components.quantum_datasets.items():
                (metadata_output,) = quantum.outputs[acc.METADATA_OUTPUT_CONNECTION_NAME]
                (log_output,) = quantum.outputs[acc.LOG_OUTPUT_CONNECTION_NAME]
                writer.write_quantum_provenance(
                    quantum_id,
                    metadata=_get(butler, components.make_dataset_ref(metadata_output)),
                    logs=_get(butler, components.make_dataset_ref(log_output)),
                )
            writer.write_overall_inputs()
            writer.write_packages()
            writer.write_init_outputs(assume_existence=True)
        aside.replace(destination)
    finally:
        aside.unlink(missing_ok=True)


def _open_outputs(components: PredictedQuantumGraphComponents, repository: str) -> QuantumBackedButler:
    pipeline_graph = components.pipeline_graph
    return QuantumBackedButler.from_predicted(
        repository,
        predicted_inputs=(),
        predicted_outputs=(),
        dimensions=pipeline_graph.universe,
        # Logs and metadata are never overall inputs, so they need no records of the graph's.
        datastore_records={},
        dataset_types={node.name: node.dataset_type for node in pipeline_graph.dataset_types.values()},
    )


def _get(butler: QuantumBackedButler, ref: DatasetRef) -> Any:
    try:
        return butler.get(ref)
    except FileNotFoundError:
        return None
