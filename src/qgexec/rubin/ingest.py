"""Takes what benches left into the registry, datasets and records, batch by batch; knows no processes.

Afterwards the registry's records are those of the last attempt. A batch is
one transaction: all of it or nothing. No file is ever touched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy.exc
from lsst.daf.butler import (
    DataCoordinate,
    DatasetRef,
    DatasetType,
    MissingDatasetTypeError,
    QuantumBackedButler,
)
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.registry import ConflictingDefinitionError

from qgexec.errors import DatasetTypeError, IngestError, QgexecError
from qgexec.rubin.compat import datastore_of, has_fast_ingest, import_datasets, run_dataset_ids
from qgexec.rubin.detail import records_from_json
from qgexec.rubin.repository import open_butler

__all__ = ["PATIENCE_S", "Ingester", "IngesterOpener"]

PATIENCE_S = 600.0
"""Seconds for which a database that others have locked is tried again; SQLite waits 300 s each time."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0

_SQLITE_BUSY_CODES = frozenset({5, 6})
"""SQLITE_BUSY and SQLITE_LOCKED, https://www.sqlite.org/rescode.html."""

_POSTGRES_BUSY_CODES = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available:
https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""


@dataclass(frozen=True, slots=True)
class IngesterOpener:
    """Opens an ingester in the process that it is sent to."""

    repository: str
    """Butler repository: root, configuration file or alias."""

    output_run: str
    """The RUN collection that all outputs are in; it must exist."""

    patience_s: float = PATIENCE_S
    """Seconds for which a locked database is tried again."""

    public_api: bool = False
    """Go by `Butler.transfer_from` alone: slower, and only for a RUN that is new."""

    def __call__(self) -> Ingester:
        """Open the repository for writing.

        Raises
        ------
        qgexec.errors.RepositoryError
            It is missing, or may not be written.
        """
        return Ingester(self)


@dataclass(slots=True)
class _Batch:
    """Details added up; what a later one says of a dataset counts."""

    refs: dict[UUID, DatasetRef] = field(default_factory=dict)
    records: dict[str, DatastoreRecordData] = field(default_factory=dict)
    absent: set[UUID] = field(default_factory=set)
    replaces: bool = False

    def add(
        self, detail: Mapping[str, Any], make_ref: Callable[[str, Sequence[Any], UUID], DatasetRef]
    ) -> None:
        for name, values, id_text in detail.get("outputs", ()):
            dataset_id = UUID(id_text)
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
        self.replaces = self.replaces or bool(detail.get("replaces")) or bool(self.absent)


class Ingester:
    """Takes details of quanta that have ended for good into one repository's registry.

    Parameters
    ----------
    opener
        What to open.
    sleep, clock
        How to wait for a locked database; seconds.
    """

    def __init__(
        self,
        opener: IngesterOpener,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._sleep = sleep
        self._clock = clock
        self._dataset_types: dict[str, DatasetType] = {}
        self._known: set[UUID] | None = None
        with contextlib.ExitStack() as stack:
            self._butler = stack.enter_context(open_butler(opener.repository, writeable=True))
            # Collections do not change under an ingester; looking them up takes most of a small batch.
            stack.enter_context(self._butler.registry.caching_context())
            self._open = stack.pop_all()
        self._public_api = opener.public_api or not has_fast_ingest(self._butler)

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
            The registry refuses, or was locked for too long; nothing has changed.
        """
        until = self._clock() + self._opener.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._ingest(details)
            except sqlalchemy.exc.OperationalError as error:
                if not _is_busy(error) or self._clock() + pause_s > until:
                    raise self._refused(details, error) from error
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Close the repository; may be called twice."""
        self._open.close()

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
        data_id = DataCoordinate.from_required_values(dataset_type.dimensions, tuple(values))
        return DatasetRef(dataset_type, data_id, run=self._opener.output_run, id=dataset_id)

    def _ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        batch = _Batch()
        try:
            for detail in details:
                batch.add(detail, self._make_ref)
            if batch.refs or batch.absent:
                write = self._transfer if self._public_api else self._write
                write(batch)
        except (sqlalchemy.exc.OperationalError, QgexecError):
            raise
        except Exception as error:
            raise self._refused(details, error) from error
        return len(batch.refs)

    def _refused(self, details: Sequence[Mapping[str, Any]], error: Exception) -> IngestError:
        locked = isinstance(error, sqlalchemy.exc.OperationalError) and _is_busy(error)
        return IngestError(
            f"the outputs of {len(details)} quanta could not be taken into the registry of "
            f"{self._opener.repository}, "
            f"RUN {self._opener.output_run}: {type(error).__name__}: {error}",
            hint="Another process keeps the registry locked: end it, then go on."
            if locked
            else "The files are written and nothing is lost; go on when the reason is gone.",
        )

    def _write(self, batch: _Batch) -> None:
        if self._known is None and not batch.replaces:
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
        if self._known is None:
            self._known = set(run_dataset_ids(self._butler, self._opener.output_run))
        known = self._known
        registered = [ref for dataset_id, ref in batch.refs.items() if dataset_id in known]
        new = [ref for dataset_id, ref in batch.refs.items() if dataset_id not in known]
        gone = [ref for each in batch.absent & known if (ref := self._butler.get_dataset(each)) is not None]
        datastore = datastore_of(self._butler)
        with self._butler.registry.transaction():
            if registered or gone:
                datastore.forget([*registered, *gone])
            if gone:
                self._butler.registry.removeDatasets(gone)
            import_datasets(self._butler, new)
            datastore.import_records(batch.records)
        known.update(batch.refs)
        known -= batch.absent

    def _transfer(self, batch: _Batch) -> None:
        """Write a batch with nothing but what upstream documents; it skips what is there already."""
        if batch.replaces:
            raise IngestError(
                "this version of lsst-daf-butler has no way to replace the records of datasets",
                hint="Use a new output RUN, or another version of lsst-daf-butler.",
            )
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


def _is_busy(error: sqlalchemy.exc.OperationalError) -> bool:
    """Tell whether the database may be free a little later."""
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return sqlite_code & 0xFF in _SQLITE_BUSY_CODES  # the low byte is the primary code
    return getattr(error.orig, "pgcode", None) in _POSTGRES_BUSY_CODES
