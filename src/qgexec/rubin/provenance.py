"""Upstream's provenance graph of a run: made of the metadata and logs that its quanta left, kept in its RUN.

Upstream writes it while it executes in one process; reading it back from the
datasets works for any execution model. Unlike ``butler ingest-graph``, which puts metadata and logs into
the graph's file and ends all work in the RUN, this leaves them where they are: `qgexec resume` needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetRef,
    FileDataset,
    MissingCollectionError,
    MissingDatasetTypeError,
    QuantumBackedButler,
)
from lsst.pipe.base import QuantumAttemptStatus
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
from lsst.pipe.base.quantum_graph.formatter import ProvenanceFormatter

from qgexec.errors import CollectionError
from qgexec.rubin.compat import provenance_dataset_type, provenance_name
from qgexec.rubin.repository import open_butler

__all__ = ["check_provenance", "ingest_provenance_graph", "write_provenance_graph"]

_logger = logging.getLogger(__name__)

_PARTIAL_SUFFIX = "partial"


def write_provenance_graph(
    graph_file: str, repository: str, destination: str, *, executed: Collection[UUID] | None = None
) -> Collection[UUID]:
    """Write the provenance graph of a finished run.

    Parameters
    ----------
    graph_file
        The predicted graph (``.qg``) that was executed.
    repository
        Butler repository that holds the outputs' files.
    destination
        Path of the provenance graph; written aside and renamed.
    executed
        Quanta that were executed, or found to be done; `None` where that is not known. Of another one that
        left nothing upstream's ``UNKNOWN`` is said, and not that it failed.

    Returns
    -------
    quanta
        IDs of all quanta of the graph.

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
            _write_quanta(writer, components, butler, executed)
            writer.write_overall_inputs()
            writer.write_packages()
            writer.write_init_outputs(assume_existence=True)
        aside.replace(destination)
    finally:
        aside.unlink(missing_ok=True)
    return components.quantum_datasets.keys()


def _write_quanta(
    writer: ProvenanceQuantumGraphWriter,
    components: PredictedQuantumGraphComponents,
    butler: QuantumBackedButler,
    executed: Collection[UUID] | None,
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
        if metadata is None and logs is None and executed is not None and quantum.quantum_id not in executed:
            models.attempts[-1].status = QuantumAttemptStatus.UNKNOWN
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


def check_provenance(butler: Butler, output_run: str, quanta: Callable[[], Collection[UUID]]) -> None:
    """Check that a provenance graph of these quanta can take the place of the one that a RUN has.

    Parameters
    ----------
    butler
        A butler on the repository.
    output_run
        The RUN; it need not exist.
    quanta
        Tells the IDs of all quanta of the graph.

    Raises
    ------
    qgexec.errors.CollectionError
        The RUN's has other quanta, of which nothing would be known any more; or metadata are inside of it.
    """
    old = _find_provenance(butler, output_run)
    if old is None:
        return
    graph = butler.get(old, parameters={"datasets": [], "read_init_quanta": False})
    if set(graph.quantum_only_xgraph) - set(quanta()):
        raise CollectionError(
            f"the RUN {output_run!r} has the provenance graph of another graph, which it would lose",
            hint="A RUN has one only. Write into another RUN, or leave --provenance out.",
        )
    file = butler.getURI(old)
    for task in graph.pipeline_graph.tasks.values():
        name = task.metadata_output.dataset_type_name
        for ref in butler.query_datasets(name, output_run, find_first=False, limit=1, explain=False):
            if butler.getURI(ref) == file:
                raise CollectionError(
                    f"the RUN {output_run!r} was closed by 'butler ingest-graph': "
                    "its metadata are inside of its provenance graph",
                    hint="Write into another RUN, or leave --provenance out.",
                )


def ingest_provenance_graph(file: Path, repository: str, output_run: str, quanta: Collection[UUID]) -> None:
    """Move a provenance graph into a repository, as dataset ``run_provenance``, in place of an earlier one.

    Parameters
    ----------
    file
        The graph.
    repository
        Butler repository.
    output_run
        The RUN that it is about.
    quanta
        IDs of all its quanta.

    Raises
    ------
    qgexec.errors.RepositoryError
        See `check_provenance`; or the repository cannot be opened.
    """
    with open_butler(repository, writeable=True) as butler:
        dataset_type = provenance_dataset_type(butler.dimensions)
        butler.registry.registerDatasetType(dataset_type)
        check_provenance(butler, output_run, lambda: quanta)
        if (old := _find_provenance(butler, output_run)) is not None:
            butler.pruneDatasets([old], purge=True, unstore=True, disassociate=True)
        ref = DatasetRef(dataset_type, DataCoordinate.make_empty(butler.dimensions), run=output_run)
        dataset = FileDataset(path=str(file.absolute()), refs=[ref], formatter=ProvenanceFormatter)
        butler.ingest(dataset, transfer="move")


def _find_provenance(butler: Butler, output_run: str) -> DatasetRef | None:
    try:
        return butler.find_dataset(provenance_name(), collections=output_run)
    except (MissingDatasetTypeError, MissingCollectionError):
        return None
