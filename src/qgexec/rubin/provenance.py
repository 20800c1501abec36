"""Writes upstream's provenance graph of a run, from the metadata and log datasets that its quanta left.

Upstream writes it while it executes in one process; reading it back from the
datasets works for any execution model.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from lsst.daf.butler import DatasetRef, QuantumBackedButler
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.log_on_close import LogOnClose
from lsst.pipe.base.quantum_graph import (
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
    ProvenanceQuantumGraphWriter,
    ProvenanceQuantumScanData,
    ProvenanceQuantumScanModels,
    ProvenanceQuantumScanStatus,
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
            _write_quanta(writer, components, butler)
            writer.write_overall_inputs()
            writer.write_packages()
            writer.write_init_outputs(assume_existence=True)
        aside.replace(destination)
    finally:
        aside.unlink(missing_ok=True)


def _write_quanta(
    writer: ProvenanceQuantumGraphWriter,
    components: PredictedQuantumGraphComponents,
    butler: QuantumBackedButler,
) -> None:
    """Write what became of each; who left nothing, and waited for one without success, is blocked.

    Upstream's own executor says so too (30.2026.4300; that of 30.2026.500 left such quanta out), and its
    aggregator, which also looks for the outputs of failed quanta.
    """
    lacking: set[UUID] = set()  # outputs of quanta without success
    place = {label: number for number, label in enumerate(components.pipeline_graph.tasks)}
    for quantum in sorted(components.quantum_datasets.values(), key=lambda each: place[each.task_label]):
        (metadata_output,) = quantum.outputs[acc.METADATA_OUTPUT_CONNECTION_NAME]
        (log_output,) = quantum.outputs[acc.LOG_OUTPUT_CONNECTION_NAME]
        metadata = _get(butler, components.make_dataset_ref(metadata_output))
        logs = _get(butler, components.make_dataset_ref(log_output))
        if metadata is None:
            lacking.update(each.dataset_id for each in chain.from_iterable(quantum.outputs.values()))
        inputs = chain.from_iterable(quantum.inputs.values())
        if metadata is None and logs is None and any(each.dataset_id in lacking for each in inputs):
            blocked = ProvenanceQuantumScanStatus.BLOCKED
            writer.write_scan_data(ProvenanceQuantumScanData(quantum.quantum_id, blocked))
            continue
        models = ProvenanceQuantumScanModels.from_metadata_and_logs(quantum, metadata, logs)
        # Neither may name the outputs: where the task could not be constructed, or the process was killed.
        for output in chain.from_iterable(quantum.outputs.values()):
            if output.dataset_id not in models.output_existence:
                models.output_existence[output.dataset_id] = butler.stored(
                    components.make_dataset_ref(output)
                )
        writer.write_scan_data(models.to_scan_data(quantum, compressor=writer.compressor))


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
