"""Records in dictionaries do what upstream's do in a database."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import pytest
import sqlalchemy.exc
from hypothesis import given, settings
from hypothesis import strategies as st
from lsst.daf.butler import DimensionUniverse, StorageClass
from lsst.daf.butler import ddl as butler_ddl
from lsst.daf.butler._standalone_datastore import _DatasetRecordStorageManagerDatastoreConstructionMimic
from lsst.daf.butler.datastore import DatastoreTransaction
from lsst.daf.butler.datastore.stored_file_info import NULLSTR, StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.registry.bridge.monolithic import MonolithicDatastoreRegistryBridgeManager
from lsst.daf.butler.registry.databases.sqlite import SqliteDatabase
from lsst.daf.butler.registry.interfaces import (
    DatastoreRegistryBridge,
    DatastoreRegistryBridgeManager,
    FakeDatasetRef,
    OpaqueTableStorage,
    OpaqueTableStorageManager,
)
from lsst.daf.butler.registry.opaque import ByNameOpaqueTableStorageManager

from qgexec.rubin.detail import records_to_json
from qgexec.rubin.recordtables import Locations, LocationsManager, RecordTable, RecordTableManager

IDS = [uuid.UUID(int=number) for number in range(1, 5)]
BY_ID = "datasets" in signature(DatastoreRegistryBridge.check).parameters
ASKED: Any = IDS if BY_ID else [FakeDatasetRef(each) for each in IDS]
"""What a bridge is asked about: daf_butler 30.0.1 asks by references."""
COMPONENTS = (NULLSTR, "wcs")
PATHS = ("a.zip", "b.zip", "a.zip#x", "a.zip#y")
DATASTORES = ("one", "two")


def row(
    dataset_id: uuid.UUID, component: str = NULLSTR, path: str = "a.zip", **others: Any
) -> dict[str, Any]:
    """Return a row as a file datastore writes it."""
    return {
        "dataset_id": dataset_id,
        "path": path,
        "formatter": "f",
        "storage_class": "s",
        "component": component,
        "checksum": None,
        "file_size": 7,
        **others,
    }


class Side:
    """One implementation: a table, and the bridges of two datastores."""

    def __init__(
        self, opaque: type[OpaqueTableStorageManager], bridges: type[DatastoreRegistryBridgeManager]
    ) -> None:
        self.database = SqliteDatabase.fromUri("sqlite://", origin=0)
        with self.database.declareStaticTables(create=True) as context:
            self.tables = opaque.initialize(self.database, context)
            self.manager = bridges.initialize(
                self.database,
                context,
                opaque=self.tables,
                datasets=_DatasetRecordStorageManagerDatastoreConstructionMimic,  # type: ignore[arg-type]
                universe=DimensionUniverse(),
            )
        self.table: OpaqueTableStorage = self.tables.register("records", FileDatastore.makeTableSpec())
        self.bridges: dict[str, DatastoreRegistryBridge] = {
            name: self.manager.register(name, ephemeral=False) for name in DATASTORES
        }

    def clear(self) -> None:
        """Remove everything."""
        self.table.delete([])
        refs = [FakeDatasetRef(each) for each in IDS]
        for name, bridge in self.bridges.items():
            bridge.forget(refs)
            if isinstance(bridge, Locations):
                continue
            self.database.delete(
                bridge._tables.dataset_location_trash,  # type: ignore[attr-defined]
                ["datastore_name"],
                {"datastore_name": name},
            )

    def look(self) -> list[Any]:
        """Return all that can be asked."""
        return [
            as_set(self.table.fetch()),
            [{getattr(each, "id", each) for each in bridge.check(ASKED)} for bridge in self.bridges.values()],
            [sorted(self.manager.findDatastores(FakeDatasetRef(each))) for each in IDS],
            [self.trash(name, None, dry_run=True) for name in DATASTORES],
        ]

    def trash(self, name: str, selected: set[uuid.UUID] | None, *, dry_run: bool) -> Any:
        """Empty the trash of a datastore and return what was in it."""
        with self.bridges[name].emptyTrash(
            self.table,
            record_class=StoredFileInfo,
            record_column="path",
            selected_ids=selected,
            dry_run=dry_run,
        ) as (items, kept):
            return sorted((str(ref.id), repr(info)) for ref, info in items), kept


def as_set(rows: Any) -> set[tuple[Any, ...]]:
    """Return rows without an order; none is promised."""
    rows = [tuple(sorted(dict(each).items(), key=lambda item: item[0])) for each in rows]
    assert len(set(rows)) == len(rows)
    return set(rows)


def outcome(call: Callable[[], Any]) -> Any:
    """Return a result, or the type of what was raised."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001
        return type(error)


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    """Upstream's implementation and ours."""
    both = (
        Side(ByNameOpaqueTableStorageManager, MonolithicDatastoreRegistryBridgeManager),
        Side(RecordTableManager, LocationsManager),
    )
    yield both
    for side in both:
        side.database.dispose()


ids = st.sampled_from(IDS)
id_lists = st.lists(ids, max_size=3)
row_lists = st.lists(
    st.builds(
        row,
        ids,
        st.sampled_from([*COMPONENTS, *COMPONENTS, "", 33 * "x"]),
        st.sampled_from(PATHS),
        file_size=st.sampled_from([1, 2, None]),
        formatter=st.sampled_from(["f", "f", "f", None]),
    ),
    max_size=3,
)
paths = st.sampled_from(PATHS)
conditions = st.fixed_dictionaries(
    {},
    optional={
        "dataset_id": st.one_of(ids, id_lists, st.sets(ids)),
        "path": st.one_of(paths, st.lists(paths, max_size=2), st.sampled_from(["a.zip#%", "b%", "%"])),
        "component": st.sampled_from([NULLSTR, "wcs", [NULLSTR, "wcs"], ()]),
        "file_size": st.sampled_from([1, None, [1, 2]]),
        "nothing": st.just(1),
    },
)
names = st.sampled_from(DATASTORES)
operations = st.one_of(
    st.tuples(st.sampled_from(["insert", "ensure", "replace"]), row_lists),
    st.tuples(st.just("fetch"), conditions),
    st.tuples(st.just("delete"), id_lists),
    st.tuples(st.just("delete_component"), st.lists(st.tuples(ids, st.sampled_from(COMPONENTS)), max_size=3)),
    st.tuples(st.sampled_from(["hold", "hold_again", "trash", "forget"]), names, id_lists),
    st.tuples(st.just("empty"), names, st.one_of(st.none(), st.sets(ids, min_size=1)), st.booleans()),
)


def perform(side: Side, operation: tuple[Any, ...]) -> Any:
    """Perform one operation; what it returns can be compared."""
    what, *arguments = operation
    table = side.table
    if what in {"insert", "ensure", "replace"}:
        getattr(table, what)(*arguments[0])
    elif what == "fetch":
        fetched = as_set(table.fetch(**arguments[0]))
        if hasattr(table, "fetch_batches"):  # upstream's, after daf_butler 30.0.1
            assert as_set(each for batch in table.fetch_batches(**arguments[0]) for each in batch) == fetched
        return fetched
    elif what == "delete":
        table.delete(["dataset_id"], *[{"dataset_id": each} for each in arguments[0]])
    elif what == "delete_component":
        rows = [{"dataset_id": each, "component": component} for each, component in arguments[0]]
        table.delete(["dataset_id", "component"], *rows)
    elif what == "empty":
        return side.trash(arguments[0], arguments[1], dry_run=arguments[2])
    else:
        bridge = side.bridges[arguments[0]]
        refs = [FakeDatasetRef(each) for each in arguments[1]]
        match what:
            case "hold":
                bridge.insert(refs)
            case "hold_again":
                bridge.ensure(refs)
            case "trash":
                bridge.moveToTrash(refs, None)
            case "forget":
                bridge.forget(refs)
    return None


def trashed_ids(side: Side, name: str) -> set[uuid.UUID]:
    """Return what our bridge has in the trash."""
    bridge = side.bridges[name]
    assert isinstance(bridge, Locations)
    found = set()
    for each in IDS:
        without, ref = copy.deepcopy(bridge), FakeDatasetRef(each)
        without.forget([ref])
        if ref not in bridge and len(without) < len(bridge):
            found.add(each)
    return found


@settings(max_examples=60, deadline=None)
@given(history=st.lists(operations, max_size=14))
def test_same_as_the_database(sides: tuple[Side, Side], history: list[tuple[Any, ...]]) -> None:
    """Random operations return, raise and leave the same."""
    theirs, ours = sides
    for side in sides:
        side.clear()
    for operation in history:
        if operation[0] == "forget" and trashed_ids(ours, operation[1]).intersection(operation[2]):
            continue  # upstream's trash keeps what has been forgotten
        assert outcome(lambda: perform(ours, operation)) == outcome(  # noqa: B023
            lambda: perform(theirs, operation)  # noqa: B023
        )
        assert ours.look() == theirs.look(), operation


@pytest.fixture
def table() -> RecordTable:
    """A table with two rows of one dataset."""
    table = RecordTable("records", FileDatastore.makeTableSpec())
    table.insert(row(IDS[0]), row(IDS[0], "wcs", "b.zip"))
    return table


@pytest.mark.parametrize("method", ["insert", "ensure", "replace"])
def test_rollback_leaves_no_row(table: RecordTable, method: str) -> None:
    """A transaction that fails leaves rows and indexes as they were."""
    before = as_set(table.fetch())
    transaction = DatastoreTransaction()
    new = [row(IDS[1], path="new"), row(IDS[2], path="new")]
    if method != "insert":
        new.append(row(IDS[0], path="new"))
    getattr(table, method)(*new, transaction=transaction)
    assert as_set(table.fetch()) != before
    transaction.rollback()
    assert as_set(table.fetch()) == before
    assert not list(table.fetch(path="new"))
    assert len(list(table.fetch(path="a.zip"))) == 1


def test_failed_insert_leaves_no_row(table: RecordTable) -> None:
    """A duplicate refuses all rows of its call."""
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="already"):
        table.insert(row(IDS[1]), row(IDS[0]))
    assert not list(table.fetch(dataset_id=IDS[1]))
    with pytest.raises(sqlalchemy.exc.CompileError, match="colour"):
        table.insert(row(IDS[1], colour="red"))


def test_nothing_is_left_of_deleted_rows(table: RecordTable) -> None:
    """The table is as a new one: its indexes do not grow."""
    table.delete(["dataset_id"], {"dataset_id": IDS[0]}, {"dataset_id": IDS[1]})
    assert vars(table) == vars(RecordTable("records", FileDatastore.makeTableSpec()))


def test_rows_are_copies(table: RecordTable) -> None:
    """What the caller does with its rows afterwards changes nothing."""
    mine = row(IDS[1])
    table.insert(mine)
    mine["path"] = "elsewhere"
    assert next(table.fetch(dataset_id=IDS[1]))["path"] == "a.zip"


def test_unique_constraints_are_refused() -> None:
    """A table that cannot be kept faithfully is not kept."""
    spec = butler_ddl.TableSpec(FileDatastore.makeTableSpec().fields, unique=[("path",)])
    with pytest.raises(NotImplementedError, match="unique"):
        RecordTable("records", spec)


def test_trash_is_taken_back() -> None:
    """A transaction that fails takes datasets out of the trash; what is forgotten is not in the trash."""
    bridge = Locations("one")
    refs = [FakeDatasetRef(each) for each in IDS[:2]]
    bridge.insert(refs)
    transaction = DatastoreTransaction()
    bridge.moveToTrash([refs[0]], transaction)
    assert bridge.check(IDS) == {IDS[1]}
    transaction.rollback()
    assert bridge.check(IDS) == set(IDS[:2])
    assert bridge.check(refs) == set(refs), "as daf_butler 30.0.1 asks"  # type: ignore[arg-type]
    bridge.moveToTrash(refs, None)
    bridge.forget(refs)
    assert len(bridge) == 0


def test_failure_while_emptying_keeps_the_trash(table: RecordTable) -> None:
    """Files that could not be removed stay in the trash."""
    bridge = Locations("one")
    bridge.insert([FakeDatasetRef(IDS[0])])
    bridge.moveToTrash([FakeDatasetRef(IDS[0])], None)
    with (
        pytest.raises(OSError, match="disk"),
        bridge.emptyTrash(table, record_class=StoredFileInfo, record_column="path"),
    ):
        raise OSError("disk")
    with bridge.emptyTrash(table, record_class=StoredFileInfo, selected_ids=set()) as (items, kept):
        assert (list(items), kept) == ([], None)
    assert len(bridge) == 1
    assert len(list(table.fetch())) == 2
    with (
        pytest.raises(ValueError, match="class"),
        bridge.emptyTrash(table),
    ):
        pass


def test_managers(sides: tuple[Side, Side]) -> None:
    """Tables and datastores are the same for all who ask; those of ephemeral datastores are upstream's."""
    ours = sides[1]
    ours.clear()
    assert ours.tables["records"] is ours.table
    with pytest.raises(LookupError):
        ours.tables["others"]
    ephemeral = ours.manager.register("memory", ephemeral=True)
    ephemeral.insert([FakeDatasetRef(IDS[0])])
    assert list(ours.manager.findDatastores(FakeDatasetRef(IDS[0]))) == ["memory"]
    assert ours.manager.register("memory", ephemeral=True) is ephemeral
    ours.bridges["one"].insert([FakeDatasetRef(IDS[0])])
    tables = ours.tables.clone(ours.database)
    copy = ours.manager.clone(db=ours.database, opaque=tables)
    copy.refresh()
    assert tables["records"] is ours.table
    assert list(copy.findDatastores(FakeDatasetRef(IDS[0]))) == ["one"]
    assert ours.tables.newSchemaVersion() is None
    assert ours.manager.newSchemaVersion() is None


def test_json_of_records_is_upstreams() -> None:
    """Records become the JSON that upstream's own model writes."""
    from lsst.daf.butler.datastore.record_data import DatastoreRecordData

    infos = [
        StoredFileInfo("f", path, StorageClass("s"), component, None, 3)
        for path, component in (("a", None), ("b", "wcs"))
    ]
    data = DatastoreRecordData({IDS[0]: {"records": [*infos]}, IDS[1]: {"records": [infos[0]]}})
    simple = data.to_simple()
    assert records_to_json({"one": data, "none": DatastoreRecordData()}) == {
        "one": {"dataset_ids": [each.hex for each in simple.dataset_ids], "records": simple.records}
    }
