"""Takes what benches left into the registry, datasets and records, batch by batch; knows no processes.

Afterwards the registry's records are those of the last attempt. A batch is
one transaction: all of it or nothing. It touches no file; `Ingester.discard` is
there for attempts that left files and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy.exc
from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    MissingDatasetTypeError,
    QuantumBackedButler,
)
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.registry import ConflictingDefinitionError

from qgexec.errors import DatasetTypeError, IngestError, QgexecError
from qgexec.rubin.compat import datastore_of, has_fast_ingest, import_datasets
from qgexec.rubin.detail import records_from_json
from qgexec.rubin.discard import Discarder
from qgexec.rubin.outage import Patience, in_words, is_full, is_gone, is_locked
from qgexec.rubin.repository import open_butler

__all__ = ["PATIENCE_S", "Ingester", "IngesterOpener"]

_T = TypeVar("_T")

PATIENCE_S = 600.0
"""Seconds for which a database is tried again that others have locked, or that cannot be reached; SQLite
waits 300 s each time.
"""


@dataclass(frozen=True, slots=True)
class IngesterOpener:
    """Opens an ingester in the process that it is sent to."""

    repository: str
    """Butler repository: root, configuration file or alias."""

    output_run: str
    """The RUN collection that all outputs are in; it must exist."""

    patience_s: float = PATIENCE_S
    """Seconds for which a database that is locked or out of reach is tried again, here and later."""

    public_api: bool = False
    """Go by `Butler.transfer_from` alone: slower, and it can replace nothing that is registered."""

    run_dir: str = ""
    """Run directory: `Ingester.discard` finds the quanta there; without it, it cannot be called."""

    run_began_at: float = -math.inf
    """When the run began, UNIX seconds: what was written before was left by no attempt of this run,
    and `Ingester.discard` leaves it. By default, for a RUN that was new, everything was."""

    def __call__(self) -> Ingester:
        """Open the repository for writing.

        Raises
        ------
        qgexec.errors.RepositoryError
            It is missing, may not be written, or was locked or out of reach for too long.
        """
        return Ingester(self)


@dataclass(slots=True)
class _Batch:
    """Details added up; what a later one says of a dataset counts."""

    refs: dict[UUID, DatasetRef] = field(default_factory=dict)
    records: dict[str, DatastoreRecordData] = field(default_factory=dict)
    absent: set[UUID] = field(default_factory=set)
    rewritten: set[UUID] = field(default_factory=set)
    """Those, absent ones included, that the registry may know from before."""

    def add(
        self, detail: Mapping[str, Any], make_ref: Callable[[str, Sequence[Any], UUID], DatasetRef]
    ) -> None:
        replaces = detail.get("replaces", False)
        for name, values, id_text in detail.get("outputs", ()):
            dataset_id = UUID(id_text)
            if replaces:
                self.rewritten.add(dataset_id)
            self.refs[dataset_id] = make_ref(name, values, dataset_id)
            self.absent.discard(dataset_id)
        for datastore, data in records_from_json(detail.get("records", {})).items():
            self.records.setdefault(datastore, DatastoreRecordData()).records.update(data.records)
        for id_text in detail.get("absent", ()):
            dataset_id = UUID(id_text)
            self.absent.add(dataset_id)
            self.refs.pop(dataset_id, None)
            for data in self.records.values():
                data.records.pop(dataset_id, None)
        self.rewritten |= self.absent


class Ingester:
    """Takes details of quanta that have ended for good into one repository's registry.

    Parameters
    ----------
    opener
        What to open.
    sleep, clock
        How to wait for a database; seconds.
    """

    def __init__(
        self,
        opener: IngesterOpener,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._patience = Patience(opener.patience_s, sleep=sleep, clock=clock)
        self._dataset_types: dict[str, DatasetType] = {}
        self._discarder: Discarder | None = None
        self._open = contextlib.ExitStack()
        self._connected: Butler | None = None
        self._patience.retry(lambda: self._butler, disconnect=self.close)
        self._public_api = opener.public_api or not has_fast_ingest(self._butler)

    @property
    def _butler(self) -> Butler:
        """The repository; opened again where the database had gone away."""
        if self._connected is None:
            with contextlib.ExitStack() as stack:
                butler = stack.enter_context(open_butler(self._opener.repository, writeable=True))
                # Collections do not change under an ingester; looking them up takes most of a small batch.
                stack.enter_context(butler.registry.caching_context())
                self._open = stack.pop_all()
            self._connected = butler
        return self._connected

    def ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        """Take details into the registry, in one transaction; about 0.15 ms a dataset.

        Doing it again changes nothing.

        Parameters
        ----------
        details
            As `qgexec.rubin.detail.Detail`, in the order in which the
            attempts ended.

        Returns
        -------
        n_datasets
            Datasets that were taken in or whose records were replaced.

        Raises
        ------
        qgexec.errors.DatasetTypeError
            A dataset type is not registered; nothing has changed.
        qgexec.errors.IngestError
            The registry refuses, or was locked or out of reach for too long; nothing has changed.
        """
        return self._persist(
            partial(self._ingest, details), f"the outputs of {len(details)} quanta could not be taken into"
        )

    def discard(self, indices: Sequence[int]) -> None:
        """Remove what attempts at these quanta left that came to no end of their own; about 1 ms a quantum.

        Files of predicted outputs that the registry does not know are removed, temporary files too. What
        it knows stays if the files are those that it knows; else dataset, records and files are removed. No
        attempt at these quanta may be running. Doing it again changes nothing.

        Parameters
        ----------
        indices
            Quanta, by their index in the plan.

        Raises
        ------
        qgexec.errors.IngestError
            The registry refuses, or was locked or out of reach for too long, or a file cannot be removed.
        qgexec.errors.RunDirError, qgexec.errors.GraphError
            Plan or graph cannot be read.
        """
        self._persist(
            partial(self._discard, indices),
            f"what attempts at {len(indices)} quanta left that were lost could not be removed from",
        )

    def _discard(self, indices: Sequence[int]) -> None:
        if self._discarder is None:
            self._discarder = Discarder(self._opener.run_dir, self._opener.run_began_at)
        self._discarder.discard(self._butler, self._make_ref, indices)

    def _persist(self, action: Callable[[], _T], failure: str) -> _T:
        try:
            return self._patience.retry(action, disconnect=self._disconnect)
        except QgexecError:
            raise
        except Exception as error:
            raise IngestError(
                f"{failure} the registry of {self._opener.repository}, "
                f"RUN {self._opener.output_run}: {in_words(error)}",
                hint=_advice(error),
            ) from error

    def _disconnect(self) -> None:
        """Let go of a database that has gone away."""
        with contextlib.suppress(Exception):  # closing may write to it
            self._open.close()
        self._connected = None

    def close(self) -> None:
        """Close the repository and the graph; may be called twice."""
        if self._discarder is not None:
            self._discarder.close()
        self._open.close()
        self._connected = None

    def _make_ref(self, name: str, values: Sequence[Any], dataset_id: UUID) -> DatasetRef:
        """Build a reference with the registry's own definition: the graph's may differ in storage class."""
        dataset_type = self._dataset_types.get(name)
        if dataset_type is None:
            try:
                dataset_type = self._butler.get_dataset_type(name)
            except MissingDatasetTypeError as error:
                raise DatasetTypeError(
                    f"dataset type {name} is not registered in {self._opener.repository}",
                    hint="Register the graph's dataset types (--register-dataset-types) and go on.",
                ) from error
            self._dataset_types[name] = dataset_type
        dimensions = dataset_type.dimensions
        # Values of implied dimensions may follow.
        data_id = DataCoordinate.from_required_values(dimensions, tuple(values[: len(dimensions.required)]))
        return DatasetRef(dataset_type, data_id, run=self._opener.output_run, id=dataset_id)

    def _ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        batch = _Batch()
        for detail in details:
            batch.add(detail, self._make_ref)
        if batch.refs or batch.absent:
            write = self._transfer if self._public_api else self._write
            write(batch)
        return len(batch.refs)

    def _write(self, batch: _Batch) -> None:
        if not batch.rewritten:
            # Taken in by a driver that did not live to say so; or a real conflict, which shows again.
            with contextlib.suppress(ConflictingDefinitionError, sqlalchemy.exc.IntegrityError):
                self._write_new(batch)
                return
        self._write_over(batch)

    def _write_new(self, batch: _Batch) -> None:
        with self._butler.registry.transaction():
            import_datasets(self._butler, batch.refs.values())
            datastore_of(self._butler).import_records(batch.records)

    def _write_over(self, batch: _Batch) -> None:
        known = {ref.id: ref for ref in self._butler.get_many_datasets([*batch.refs, *batch.absent])}
        registered = [ref for dataset_id, ref in batch.refs.items() if dataset_id in known]
        new = [ref for dataset_id, ref in batch.refs.items() if dataset_id not in known]
        gone = [known[each] for each in batch.absent if each in known]
        datastore = datastore_of(self._butler)
        with self._butler.registry.transaction():
            if registered or gone:
                datastore.forget([*registered, *gone])
            if gone:
                self._butler.registry.removeDatasets(gone)
            import_datasets(self._butler, new)
            datastore.import_records(batch.records)

    def _transfer(self, batch: _Batch) -> None:
        """Write a batch with nothing but what upstream documents; it skips what is there already."""
        if batch.rewritten and self._butler.get_many_datasets(batch.rewritten):
            raise IngestError(
                "this version of lsst-daf-butler has no way to replace the records of datasets",
                hint="Use a new output RUN, or another version of lsst-daf-butler.",
            )
        if not batch.refs:
            return
        refs = [ref.expanded(self._butler.registry.expandDataId(ref.dataId)) for ref in batch.refs.values()]
        source = QuantumBackedButler.from_predicted(
            self._opener.repository,
            predicted_inputs=batch.refs,
            predicted_outputs=(),
            dimensions=self._butler.dimensions,
            datastore_records=batch.records,
            dataset_types=self._dataset_types,
        )
        with contextlib.closing(source), self._butler.transaction():
            self._butler.transfer_from(source, refs, transfer="auto")


def _advice(error: Exception) -> str:
    if is_locked(error):
        return "Another process keeps the registry locked: end it, then go on."
    if is_full(error):
        return "The disk of the registry is full: make room there, then go on."
    if is_gone(error):
        return "The database cannot be reached: see that it runs, then go on."
    return "The files are written and nothing is lost; go on when the reason is gone."
