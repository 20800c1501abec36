"""Package versions when a run goes on: what changed since it began, taken over into the RUN's dataset."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType
from lsst.utils.packages import Packages
from sqlalchemy.exc import SQLAlchemyError

from qgexec.errors import InitOutputsError, RepositoryError
from qgexec.rubin.compat import datastore_of, export_records
from qgexec.rubin.datastores import find_records, remove_files
from qgexec.rubin.detail import records_to_json
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.initoutputs import describe_changes
from qgexec.rubin.qgfile import QgFile, reading
from qgexec.rubin.repository import open_butler
from qgexec.rubin.supply import Supply
from qgexec.storedvalues import parse_json

__all__ = ["changed_versions", "update_versions"]


def update_versions(repository: str, graph_file: Path, *, strict: bool) -> tuple[str, ...]:
    """Compare the packages of this process with those that a RUN was made with so far.

    Versions that changed, and packages that were not there before, are taken over into the RUN's
    ``packages`` dataset. Only what is imported has a version, so the graph's task classes are imported first.
    Being killed at any moment does no harm: what is done later puts it right.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias.
    graph_file
        Local ``.qg`` file.
    strict
        Refuse versions that changed.

    Returns
    -------
    changes
        Such as ``numpy 2.4.0, was 2.3.1``, by name; empty if nothing changed, or if
        the RUN has no such dataset.

    Raises
    ------
    qgexec.errors.InitOutputsError
        Versions changed, and that is to be refused; nothing was written.
    qgexec.errors.RepositoryError
        The repository is missing or cannot be written.
    qgexec.errors.GraphError
        The graph cannot be read, or a task class not be imported.
    """
    with ExitStack() as stack:
        source = stack.enter_context(closing(GraphSource(graph_file, repository)))
        dataset_type = source.pipeline_graph.packages_dataset_type  # this imports the tasks
        butler = stack.enter_context(open_butler(repository, writeable=True))
        ref = _packages_ref(graph_file, dataset_type)
        if ref is None or butler.get_dataset(ref.id) is None:
            return ()
        supply = stack.enter_context(
            closing(Supply(repository, butler.dimensions, {ref.datasetType.name: dataset_type}))
        )
        # A driver that was killed as it wrote them may have left a temporary file.
        remove_files(supply.datastore, [ref], since=math.inf)
        before = _read(supply, ref)
        now = Packages.fromSystem()
        changes = describe_changes(now, before)
        if changes and strict:
            raise InitOutputsError(
                f"package versions are not those that the run began with: {'; '.join(changes)}",
                hint="Set those up again, or leave out --strict-versions to go on with the new ones.",
            )
        try:
            if changes or now.keys() - before.keys():
                before.update(now)
                with closing(supply.butler_of((), [ref.id])) as writer:
                    writer.put(before, ref)
            _register_as_it_is(butler, supply, ref)
        except (SQLAlchemyError, OSError) as error:
            raise RepositoryError(
                f"the package versions of {ref.run} cannot be written: {type(error).__name__}: {error}",
                hint="Check permissions, quota and free space, and whether the database answers.",
            ) from error
    return changes


def changed_versions(supply: Supply, source: GraphSource, graph_file: Path) -> tuple[str, ...]:
    """Compare the packages of this process with those of a RUN, as `update_versions`; writes nothing.

    Asks no registry: reads the ``packages`` dataset from where it lies. About 0.3 s.

    Parameters
    ----------
    supply
        The RUN's datastore.
    source, graph_file
        The graph, whose task classes have been imported.
    """
    ref = _packages_ref(graph_file, source.pipeline_graph.packages_dataset_type)
    before = _read(supply, ref) if ref is not None else Packages()
    return describe_changes(Packages.fromSystem(), before) if before else ()


def _packages_ref(graph_file: Path, dataset_type: DatasetType) -> DatasetRef | None:
    """Return the dataset that the graph has for package versions."""
    with QgFile(graph_file) as file, reading(graph_file):
        for quantum in parse_json(file.block("init_quanta")):
            if quantum["task_label"]:
                continue
            for datasets in quantum["outputs"].values():
                for dataset in datasets:
                    data_id = DataCoordinate.make_empty(dataset_type.dimensions.universe)
                    return DatasetRef(
                        dataset_type, data_id, run=dataset["run"], id=UUID(dataset["dataset_id"])
                    )
    return None


def _read(supply: Supply, ref: DatasetRef) -> Packages:
    """Return what is in the file, whatever the registry says of its size; nothing if it is damaged."""
    with closing(supply.butler_of([ref.id], ())) as reader:
        try:
            packages = reader.get(ref)
        except Exception:  # noqa: BLE001 - whatever a formatter raises about a damaged file
            return Packages()
    return packages if isinstance(packages, Packages) else Packages()


def _register_as_it_is(butler: Butler, supply: Supply, ref: DatasetRef) -> None:
    """Make the registry's records those of the file."""
    found = find_records(supply.datastore, [ref])
    if records_to_json(found) == records_to_json(export_records(butler, [ref])):
        return
    datastore = datastore_of(butler)
    with butler.registry.transaction():
        datastore.forget([ref])
        datastore.import_records(found)
