"""Removes what attempts left that came to no end of their own: registry and files agree; runs nothing.

Such an attempt may have left temporary files, some or all of its outputs, or
fewer of them than there were before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from lsst.daf.butler import Butler, DatasetRef
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.resources import ResourcePath

from qgexec.books.rundir import RunDir
from qgexec.errors import UsageError
from qgexec.rubin.compat import datastore_of, export_records
from qgexec.rubin.datastores import StoredFile, modified_at, recorded_files, remove_files
from qgexec.rubin.graphfile import GraphSource
from qgexec.scheduling.plan import Plan

__all__ = ["Discarder"]

MakeRef = Callable[[str, Sequence[Any], UUID], DatasetRef]
"""Builds a reference, by the registry's definitions, from dataset type name, data ID values and ID."""


class Discarder:
    """Knows the quanta of one run, and removes what is left of some.

    Parameters
    ----------
    run_dir
        The run directory, with plan and graph; read when first needed.
    since
        When the run began, UNIX seconds: files written before stay.
    """

    def __init__(self, run_dir: str, since: float) -> None:
        self._run_dir = run_dir
        self._since = since
        self._quanta: tuple[Plan, GraphSource] | None = None

    def discard(self, butler: Butler, make_ref: MakeRef, indices: Iterable[int]) -> None:
        """Remove what attempts at these quanta left; see `qgexec.rubin.ingest.Ingester.discard`.

        Parameters
        ----------
        butler
            Full butler on the repository, for writing.
        make_ref
            Builds references.
        indices
            Quanta, by their index in the plan.
        """
        refs = {ref.id: ref for index in indices for ref in self._outputs(butler, make_ref, index)}
        if not refs:
            return
        datastore = datastore_of(butler)
        known = {ref.id: ref for ref in butler.get_many_datasets(refs)}
        records = export_records(butler, known.values()) if known else {}
        kept = self._recorded_as_they_are(butler, records, known)
        broken = [refs[dataset_id] for dataset_id in known if dataset_id not in kept]
        if broken:
            # Before their files: what is not registered and has files is found again, should this be the end.
            with butler.registry.transaction():
                datastore.forget(broken)
                butler.registry.removeDatasets(broken)
            remove_files(datastore, broken)
        kept_files = {uri for uris in kept.values() for uri in uris}
        remove_files(datastore, list(refs.values()), since=self._since, keep=kept_files)

    def _outputs(self, butler: Butler, make_ref: MakeRef, index: int) -> Iterable[DatasetRef]:
        plan, source = self._open_quanta()
        for datasets in source.datasets(plan.quantum_id(index)).outputs.values():
            for dataset in datasets:
                ref = make_ref(dataset.dataset_type_name, dataset.data_coordinate, dataset.dataset_id)
                # File names are made from the whole data ID.
                yield ref.expanded(butler.registry.expandDataId(ref.dataId))

    def _recorded_as_they_are(
        self, butler: Butler, records: Mapping[str, DatastoreRecordData], known: Collection[UUID]
    ) -> dict[UUID, list[ResourcePath]]:
        """Return the datasets whose files are those that the registry knows, and these."""
        files: dict[UUID, list[StoredFile]] = {dataset_id: [] for dataset_id in known}
        for file in recorded_files(datastore_of(butler), records):
            files[file.dataset_id].append(file)
        return {
            dataset_id: [file.uri for file in of_dataset]
            for dataset_id, of_dataset in files.items()
            if of_dataset and all(self._is_the_one(file) for file in of_dataset)
        }

    def _is_the_one(self, file: StoredFile) -> bool:
        written_at = modified_at(file.uri)
        if written_at is None or written_at < self._since:
            # Older than the run: whatever is wrong with it, no attempt did it.
            return written_at is not None
        checksum = file.info.checksum
        return file.size() == file.info.file_size and (
            checksum is None or checksum == file.datastore.computeChecksum(file.uri)
        )

    def _open_quanta(self) -> tuple[Plan, GraphSource]:
        if self._quanta is None:
            if not self._run_dir:
                raise UsageError("no run directory was given, whose quanta could be cleaned up")
            run_dir = RunDir.open(Path(self._run_dir))
            context = run_dir.read_settings().context
            source = GraphSource(Path(context.graph_file), context.repository)
            _ = source.pipeline_graph  # imports the task classes: with them may come storage classes
            self._quanta = run_dir.load_plan(), source
        return self._quanta

    def close(self) -> None:
        """Close the graph file; may be called twice."""
        if self._quanta is not None:
            self._quanta[1].close()
