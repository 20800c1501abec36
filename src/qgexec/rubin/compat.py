"""What upstream keeps private, and what moved between its versions; the only module that may know either."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    LimitedButler,
    QuantumBackedButler,
)
from lsst.daf.butler.datastore import Datastore
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import PipelineTask, QgraphSummary, TaskFactory
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, PredictedQuantumGraphComponents
from lsst.pipe.base.quantum_graph_builder import QuantumGraphBuilder
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.resources import ResourcePath

from qgexec.errors import UsageError
from qgexec.processes.apart import end_if_child
from qgexec.rubin.taskguard import guard_task

__all__ = [
    "QuantumExecutor",
    "builder_arguments",
    "butler_config",
    "datastore_of",
    "export_records",
    "graph_components",
    "graph_summary",
    "has_fast_ingest",
    "import_datasets",
    "is_half_registered",
    "keeping_package_metadata",
    "provenance_dataset_type",
    "provenance_name",
    "put_refs",
    "registry_file",
    "temporary_file_pattern",
]


@contextmanager
def keeping_package_metadata() -> Iterator[None]:
    """Let `importlib.metadata` work after configurations of tasks have been read.

    While `lsst.pex.config` reads one, `sys.meta_path` is another list, which is thrown away afterwards. The
    package importlib_metadata, which much of the field still imports, puts its finder there when it is first
    imported, and takes the standard library's away: from then on no package would have a version or an
    entry point.
    """
    try:
        yield
    finally:
        backport = sys.modules.get("importlib_metadata")
        if backport and not any(isinstance(each, backport.MetadataPathFinder) for each in sys.meta_path):
            sys.meta_path.append(backport.MetadataPathFinder())


def export_records(butler: Butler, refs: Iterable[DatasetRef]) -> Mapping[str, DatastoreRecordData]:
    """Return the datastore records of datasets by datastore name; datasets that are not stored have none.

    Upstream's graph builder reads them in the same way when it attaches them.
    """
    datastore: Any = butler._datastore
    records: Mapping[str, DatastoreRecordData] = datastore.export_records(list(refs))
    return records


def graph_components(graph: PredictedQuantumGraph) -> PredictedQuantumGraphComponents:
    """Return what a graph in memory was made of, as far as it is loaded; shared with it, not copied.

    Upstream writes the components of a graph only, and does not hand them out.
    """
    components = PredictedQuantumGraphComponents(
        header=graph.header.model_copy(),
        pipeline_graph=graph.pipeline_graph,
        dimension_data=graph.dimension_data,
        quantum_datasets=dict(graph._quantum_datasets),
    )
    components.init_quanta.root = list(graph._init_quanta.values())
    components.set_thin_graph()
    components.set_header_counts()
    return components


def builder_arguments(options: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments of upstream's graph builder that it has in newer versions only.

    Parameters
    ----------
    options
        Arguments by name; those that are `None` were not asked for.

    Raises
    ------
    qgexec.errors.UsageError
        The installed version has no such argument.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    lacking = asked.keys() - inspect.signature(QuantumGraphBuilder).parameters.keys()
    if lacking:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(lacking))
        raise UsageError(
            f"{named}: the installed lsst-pipe-base cannot do that.",
            hint="30.0.9 and 30.2026.2800, and what came after them, can: use one of those, or leave it out.",
        )
    return asked


def provenance_dataset_type(universe: DimensionUniverse) -> DatasetType:
    """Return the type of the dataset that holds a RUN's provenance graph; raises as `provenance_name`."""
    return DatasetType(provenance_name(), universe.empty, acc.PROVENANCE_STORAGE_CLASS)


def provenance_name() -> str:
    """Return the name of that type.

    Raises
    ------
    qgexec.errors.UsageError
        The installed version has none.
    """
    name: str | None = getattr(acc, "PROVENANCE_DATASET_TYPE_NAME", None)
    if name is None:
        raise UsageError(
            "--provenance: the installed lsst-pipe-base has no provenance graphs in repositories.",
            hint="30.0.1 and 30.2026.400, and what came after them, have: use one of those, or leave it out.",
        )
    return name


def graph_summary(graph: PredictedQuantumGraph) -> QgraphSummary:
    """Return upstream's summary of a graph: quanta by task, inputs and outputs by dataset type.

    ``pipetask qgraph --summary`` writes it; upstream's public way to it needs a graph of the old kind.
    """
    return graph._make_summary()


def registry_file(butler: Butler) -> Path | None:
    """Return the file of a SQLite registry; `None` for any other registry."""
    database: Any = getattr(getattr(butler, "_registry", None), "_db", None)
    filename = getattr(database, "filename", None)
    return Path(filename) if filename else None


def is_half_registered(butler: Butler, run: str) -> bool:
    """Tell whether a RUN has no row of its own: no dataset can be put into it, and to register it is no help.

    Upstream registers a RUN in two transactions, first as a collection, then as a RUN. Whoever is killed
    between them leaves the first, and from then on upstream takes the RUN for registered.
    """
    manager: Any = getattr(
        getattr(getattr(butler, "_registry", None), "_managers", None), "collections", None
    )
    if manager is None:  # a server's registry, which registers on its side
        return False
    key, table = manager._collectionIdName, manager._tables.run
    found = sqlalchemy.select(table.columns[key]).where(table.columns[key] == manager.find(run).key)
    with manager._db.query(found) as rows:
        return rows.fetchone() is None


def datastore_of(butler: LimitedButler) -> Datastore:
    """Return a butler's datastore."""
    return butler._datastore


def put_refs(butler: QuantumBackedButler) -> Collection[DatasetRef]:
    """Return what was put with this butler and not removed again.

    The public way, ``extract_provenance_data``, also logs a warning about
    every overall input, since upstream's executor never checks those.
    """
    return butler._actual_output_refs


def has_fast_ingest(butler: Butler) -> bool:
    """Tell whether datasets can be taken into the registry as upstream's own aggregator does it."""
    return hasattr(butler, "_datastore") and hasattr(butler.registry, "_importDatasets")


_MANY_DATASETS = 64
"""From here on upstream's guarded import is faster.

The other one converts the same time of ingest anew for each dataset (0.1 ms);
the guarded one makes a temporary table first (5 ms).
"""


def import_datasets(butler: Butler, refs: Iterable[DatasetRef]) -> None:
    """Take new datasets, all of one RUN, into the registry (not their datastore records).

    Datasets that are there already may be let pass, or not: it is their
    datastore records that cannot be imported twice.

    Raises
    ------
    lsst.daf.butler.registry.ConflictingDefinitionError
        Another dataset of its type and data ID is there already, or perhaps
        it is itself.
    """
    registry: Any = butler.registry
    by_dimensions: dict[object, list[DatasetRef]] = {}
    for ref in refs:
        by_dimensions.setdefault(ref.datasetType.dimensions, []).append(ref)
    # Only an ObsCore table looks at more of a data ID than its required values.
    expand = butler.registry.obsCoreTableManager is not None
    for group in by_dimensions.values():
        registry._importDatasets(group, expand=expand, assume_new=len(group) < _MANY_DATASETS)


def butler_config(butler: Butler) -> ButlerConfig:
    """Return the configuration that a butler was made from."""
    config: Any = getattr(butler, "_config", None)
    if not isinstance(config, ButlerConfig):
        raise TypeError(f"{type(butler).__name__} does not know its configuration")
    return config


def temporary_file_pattern(uri: ResourcePath) -> re.Pattern[str]:
    """Return what the names of temporary files look like that a local dataset is written to before its own.

    Upstream (`TemporaryForIngest`) puts 16 random characters before the name and
    ``.tmp`` before the extension. Its own search for them also finds those of
    datasets whose names end in the same way: ``detector_11`` for ``detector_1``.
    """
    extension = uri.getExtension()
    name = uri.basename().removesuffix(extension)
    return re.compile(r"[a-z0-9_]{16}" + re.escape(f"{name}.tmp{extension}"))


class QuantumExecutor(SingleQuantumExecutor):
    """Upstream's executor, out of which comes what the construction of a task raises.

    From 30.0.6 and 30.2026.1000 on upstream's own raises an `UnboundLocalError` instead, whatever
    it was, an interrupt too: it asks the task, which there is not, for its metadata.
    """

    def __init__(self, **options: Any) -> None:
        self._factory = _TaskFactory()
        super().__init__(task_factory=self._factory, **options)

    def execute(self, *quantum: Any, **options: Any) -> QuantumExecutionResult:
        """Execute a quantum: see upstream."""
        self._factory.error = None
        try:
            return super().execute(*quantum, **options)
        except UnboundLocalError:
            if self._factory.error is None:
                raise
        raise self._factory.error


class _TaskFactory(TaskFactory):
    """Remembers what the last construction of a task raised."""

    error: BaseException | None = None

    def makeTask(self, *arguments: Any) -> PipelineTask:  # noqa: N802 - upstream's name
        pid = os.getpid()
        try:
            task = super().makeTask(*arguments)
        except BaseException as error:
            end_if_child(pid, error)
            self.error = error
            raise
        end_if_child(pid)
        guard_task(task)
        return task
