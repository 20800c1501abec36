"""Datastore records in dictionaries: what upstream keeps in a database, for one process and its life.

Upstream's datastore asks two interfaces where its datasets are, and by
default both are SQL on a SQLite in memory: 2 to 4 ms a quantum for a few dozen rows
that nobody else sees. Here each call takes time by the rows of the datasets
that it names. A call does all or nothing; as upstream's without a registry,
it is no part of a larger database transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import sqlalchemy.exc
from lsst.daf.butler import DatasetId, DimensionUniverse
from lsst.daf.butler.datastore import DatastoreTransaction
from lsst.daf.butler.datastore.stored_file_info import StoredDatastoreItemInfo
from lsst.daf.butler.ddl import TableSpec
from lsst.daf.butler.registry.bridge.ephemeral import EphemeralDatastoreRegistryBridge
from lsst.daf.butler.registry.interfaces import (
    Database,
    DatasetIdRef,
    DatasetRecordStorageManager,
    DatastoreRegistryBridge,
    DatastoreRegistryBridgeManager,
    FakeDatasetRef,
    OpaqueTableStorage,
    OpaqueTableStorageManager,
    StaticTablesContext,
    VersionTuple,
)

__all__ = ["Locations", "LocationsManager", "RecordTable", "RecordTableManager"]

_Row = dict[str, Any]
_Key = tuple[Any, ...]


def _conflict(what: str) -> sqlalchemy.exc.IntegrityError:
    """Return what a database raises: upstream and its callers know no other exception."""
    return sqlalchemy.exc.IntegrityError(None, None, ValueError(what))


class RecordTable(OpaqueTableStorage):
    """The rows of one table, found by dataset and by each column that has an index of its own.

    Parameters
    ----------
    name
        Name of the table.
    spec
        Its columns; no unique constraints other than the primary key.
    """

    def __init__(self, name: str, spec: TableSpec) -> None:
        super().__init__(name)
        if spec.unique:
            raise NotImplementedError(f"table {name} has unique constraints")
        self._columns = tuple(field.name for field in spec.fields)
        self._known = frozenset(self._columns)
        self._required = tuple(field.name for field in spec.fields if not field.nullable)
        self._key = tuple(field.name for field in spec.fields if field.primaryKey)
        self._lengths = {field.name: field.length for field in spec.fields if field.isStringType()}
        self._rows: dict[_Key, _Row] = {}
        indexed = {index.columns[0] for index in spec.indexes if len(index.columns) == 1}
        self._indexes: dict[str, dict[Any, dict[_Key, _Row]]] = {
            column: {} for column in (*self._key[:1], *sorted(indexed - set(self._key[:1])))
        }

    def insert(self, *data: _Row, transaction: DatastoreTransaction | None = None) -> None:
        """Add rows.

        Raises
        ------
        sqlalchemy.exc.IntegrityError
            One of them is there already, lacks a value, or has too long a text; nothing has changed.
        """
        rows: dict[_Key, _Row] = {}
        for row in self._complete(data):
            key = self._key_of(row)
            if key in rows or key in self._rows:
                raise _conflict(f"table {self.name} has a row {key} already")
            rows[key] = row
        self._change(rows, transaction)

    def ensure(self, *data: _Row, transaction: DatastoreTransaction | None = None) -> None:
        """Add those rows that are not there."""
        rows: dict[_Key, _Row] = {}
        for row in self._complete(data):
            key = self._key_of(row)
            if key not in self._rows:
                rows.setdefault(key, row)
        self._change(rows, transaction)

    def replace(self, *data: _Row, transaction: DatastoreTransaction | None = None) -> None:
        """Add rows in place of those with their primary keys."""
        self._change({self._key_of(row): row for row in self._complete(data)}, transaction)

    def fetch(self, **where: Any) -> Iterator[Mapping[Any, Any]]:
        """Return the rows that have these values.

        As upstream's: a list, tuple or set means any of its elements, and a text
        that ends in ``%`` all texts that begin so.
        """
        return iter(self._find(where))

    def fetch_batches(self, **where: Any) -> Iterator[Sequence[Mapping[Any, Any]]]:
        """Return what `fetch` does, all at once."""
        if rows := self._find(where):
            yield rows

    def delete(self, columns: Iterable[str], *rows: _Row) -> None:
        """Remove the rows that have the values of one of these in all these columns."""
        names = tuple(columns)
        if not names:
            self._rows.clear()
            for index in self._indexes.values():
                index.clear()
        elif len(names) == 1:
            self._remove(self._find({names[0]: [row[names[0]] for row in rows]}))
        else:
            for row in rows:
                self._remove(self._find({name: [row[name]] for name in names}))

    def _complete(self, data: Iterable[_Row]) -> Iterator[_Row]:
        for given in data:
            if not given.keys() <= self._known:
                raise sqlalchemy.exc.CompileError(
                    f"table {self.name} has no columns {sorted(given.keys() - self._known)}"
                )
            row = {column: given.get(column) for column in self._columns}
            for column in self._required:
                if row[column] is None:
                    raise _conflict(f"column {column} of table {self.name} must have a value")
            # A registry would refuse it later, when the quantum has succeeded.
            for column, length in self._lengths.items():
                value = row[column]
                if value is not None and not 1 <= len(value) <= (length or sys.maxsize):
                    raise _conflict(f"column {column} of table {self.name} holds 1 to {length} characters")
            yield row

    def _key_of(self, row: Mapping[str, Any]) -> _Key:
        return tuple([row[column] for column in self._key])

    def _change(self, rows: Mapping[_Key, _Row], transaction: DatastoreTransaction | None) -> None:
        before = [old for key in rows if (old := self._rows.get(key)) is not None]
        self._remove(before)
        self._add(rows)
        if transaction is not None and rows:
            transaction.registerUndo("records", self._restore, tuple(rows.values()), before)

    def _restore(self, rows: Iterable[_Row], before: Iterable[_Row]) -> None:
        self._remove(rows)
        self._add({self._key_of(row): row for row in before})

    def _add(self, rows: Mapping[_Key, _Row]) -> None:
        self._rows.update(rows)
        for column, index in self._indexes.items():
            for key, row in rows.items():
                index.setdefault(row[column], {})[key] = row

    def _remove(self, rows: Iterable[_Row]) -> None:
        for row in rows:
            key = self._key_of(row)
            if self._rows.pop(key, None) is None:
                continue
            for column, index in self._indexes.items():
                same = index[row[column]]
                del same[key]
                if not same:
                    del index[row[column]]

    def _find(self, where: Mapping[str, Any]) -> list[_Row]:
        conditions = []
        candidates: Iterable[_Row] | None = None
        for column, value in where.items():
            if column not in self._known:
                raise KeyError(column)
            if isinstance(value, str) and value.endswith("%"):
                conditions.append(partial(_begins, column, value[:-1]))
                continue
            if isinstance(value, list | tuple | set | frozenset):
                wanted = dict.fromkeys(each for each in value if each is not None)
            else:
                wanted = {value: None}
            index = self._indexes.get(column)
            if index is not None and candidates is None:
                candidates = [row for each in wanted for row in index.get(each, {}).values()]
            else:
                conditions.append(partial(_is_one, column, wanted))
        found = self._rows.values() if candidates is None else candidates
        return [row for row in found if all(holds(row) for holds in conditions)]


def _begins(column: str, prefix: str, row: Mapping[str, Any]) -> bool:
    value = row[column]
    return value is not None and str(value).startswith(prefix)


def _is_one(column: str, wanted: Collection[Any], row: Mapping[str, Any]) -> bool:
    return row[column] in wanted


class RecordTableManager(OpaqueTableStorageManager):
    """The tables of one datastore, or of all in a chain; made by `initialize`."""

    def __init__(self, *, registry_schema_version: VersionTuple | None = None) -> None:
        super().__init__(registry_schema_version=registry_schema_version)
        self._tables: dict[str, RecordTable] = {}

    @classmethod
    def initialize(
        cls,
        db: Database,  # noqa: ARG003  upstream passes it
        context: StaticTablesContext,  # noqa: ARG003
        registry_schema_version: VersionTuple | None = None,
    ) -> Self:
        """Return a manager without tables; the database stays empty."""
        return cls(registry_schema_version=registry_schema_version)

    def get(self, name: str) -> OpaqueTableStorage | None:
        """Return a table that has been registered, or `None`."""
        return self._tables.get(name)

    def register(self, name: str, spec: TableSpec) -> OpaqueTableStorage:
        """Return a table; made when it is first asked for."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = RecordTable(name, spec)
        return table

    def clone(self, db: Database) -> RecordTableManager:
        """Return a manager of the same tables."""
        other = RecordTableManager(registry_schema_version=self._registry_schema_version)
        other._tables = self._tables
        return other

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:  # noqa: N802  upstream's name
        """Return no versions: nothing is stored that another process could read."""
        return []


class Locations(DatastoreRegistryBridge):
    """The datasets that one datastore holds, and those in its trash.

    Parameters
    ----------
    name
        Name of the datastore.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._held: set[DatasetId] = set()
        self._trash: set[DatasetId] = set()

    def __contains__(self, ref: DatasetIdRef) -> bool:
        return ref.id in self._held

    def __len__(self) -> int:
        return len(self._held) + len(self._trash)

    def insert(self, refs: Iterable[DatasetIdRef]) -> None:
        """Note datasets.

        Raises
        ------
        sqlalchemy.exc.IntegrityError
            One of them is held already, or named twice; nothing has changed.
        """
        dataset_ids = [ref.id for ref in refs]
        new = set(dataset_ids)
        if len(new) < len(dataset_ids) or not self._held.isdisjoint(new):
            raise _conflict(f"datastore {self.datastoreName} holds one of these datasets already")
        self._held |= new

    def ensure(self, refs: Iterable[DatasetIdRef]) -> None:
        """Note datasets that may be held already."""
        self._held.update(ref.id for ref in refs)

    def forget(self, refs: Iterable[DatasetIdRef]) -> None:
        """Know nothing of these datasets any more.

        Other than upstream's, not even that they are in the trash: without
        records they would stay there for ever, and in the way of a second removal.
        """
        dataset_ids = {ref.id for ref in refs}
        self._held -= dataset_ids
        self._trash -= dataset_ids

    def moveToTrash(  # noqa: N802  upstream's name
        self, refs: Iterable[DatasetIdRef], transaction: DatastoreTransaction | None
    ) -> None:
        """Move those of these datasets that are held to the trash.

        Raises
        ------
        sqlalchemy.exc.IntegrityError
            One of them is in the trash already and was put again since; nothing has changed.
        """
        moved = self._held.intersection([ref.id for ref in refs])
        if not self._trash.isdisjoint(moved):
            raise _conflict(f"one of these datasets is in the trash of {self.datastoreName} already")
        self._held -= moved
        self._trash |= moved
        if transaction is not None and moved:
            transaction.registerUndo("trash", self._take_back, moved)

    def _take_back(self, dataset_ids: Collection[DatasetId]) -> None:
        self._trash.difference_update(dataset_ids)
        self._held.update(dataset_ids)

    def check(self, datasets: Iterable[DatasetId]) -> set[DatasetId]:
        """Return those that are held; of daf_butler 30.0.1, references instead of IDs."""
        return {each for each in datasets if getattr(each, "id", each) in self._held}

    @contextmanager
    def emptyTrash(  # noqa: N802  upstream's name
        self,
        records_table: OpaqueTableStorage | None = None,
        record_class: type[StoredDatastoreItemInfo] | None = None,
        record_column: str | None = None,
        selected_ids: Collection[DatasetId] | None = None,
        dry_run: bool = False,
    ) -> Iterator[tuple[Iterable[tuple[DatasetIdRef, StoredDatastoreItemInfo | None]], set[str] | None]]:
        """Give out what is in the trash, and forget it and its records after that unless it fails.

        Raises
        ------
        ValueError
            Table or class of the records are not given.
        """
        if records_table is None or record_class is None:
            raise ValueError("The table and the class of the records must be given.")
        chosen = self._trash if selected_ids is None else self._trash.intersection(selected_ids)
        rows = list(records_table.fetch(dataset_id=list(chosen)))
        kept: set[str] | None = None
        if record_column is not None:
            trashed = {row[record_column] for row in rows}
            same = records_table.fetch(**{record_column: trashed})
            kept = {row[record_column] for row in same if row["dataset_id"] in self._held}
        yield ((FakeDatasetRef(row["dataset_id"]), record_class.from_record(row)) for row in rows), kept
        if rows and not dry_run:
            dataset_ids = {row["dataset_id"] for row in rows}
            records_table.delete(["dataset_id"], *[{"dataset_id": each} for each in dataset_ids])
            self._trash -= dataset_ids


class LocationsManager(DatastoreRegistryBridgeManager):
    """The datasets of one datastore, or of all in a chain; made by `initialize`."""

    def __init__(
        self,
        *,
        opaque: OpaqueTableStorageManager,
        universe: DimensionUniverse,
        registry_schema_version: VersionTuple | None = None,
    ) -> None:
        super().__init__(opaque=opaque, universe=universe, registry_schema_version=registry_schema_version)
        self._bridges: dict[str, Locations] = {}
        self._ephemeral: dict[str, EphemeralDatastoreRegistryBridge] = {}

    @classmethod
    def initialize(
        cls,
        db: Database,  # noqa: ARG003  upstream passes it
        context: StaticTablesContext,  # noqa: ARG003
        *,
        opaque: OpaqueTableStorageManager,
        datasets: type[DatasetRecordStorageManager],  # noqa: ARG003
        universe: DimensionUniverse,
        registry_schema_version: VersionTuple | None = None,
    ) -> Self:
        """Return a manager that knows no datastore; the database stays empty."""
        return cls(opaque=opaque, universe=universe, registry_schema_version=registry_schema_version)

    def clone(self, *, db: Database, opaque: OpaqueTableStorageManager) -> LocationsManager:
        """Return a manager of the same datasets; ephemeral ones are its own, as upstream's."""
        other = LocationsManager(
            opaque=opaque, universe=self.universe, registry_schema_version=self._registry_schema_version
        )
        other._bridges = self._bridges
        return other

    def refresh(self) -> None:
        """Do nothing: nobody else changes anything."""

    def register(self, name: str, *, ephemeral: bool = False) -> DatastoreRegistryBridge:
        """Return the datasets of a datastore."""
        if ephemeral:
            return self._ephemeral.setdefault(name, EphemeralDatastoreRegistryBridge(name))
        return self._bridges.setdefault(name, Locations(name))

    def findDatastores(self, ref: DatasetIdRef) -> Iterable[str]:  # noqa: N802  upstream's name
        """Return the names of the datastores that hold a dataset."""
        found = [name for name, bridge in self._bridges.items() if ref in bridge]
        return found + [name for name, bridge in self._ephemeral.items() if ref in bridge]

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:  # noqa: N802  upstream's name
        """Return no versions: nothing is stored that another process could read."""
        return []
