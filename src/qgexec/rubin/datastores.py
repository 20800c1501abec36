"""What a datastore remembers of datasets: found, and forgotten again; knows no quanta and no registry.

A worker keeps one datastore for its life. It must remember nothing of the
quanta that are done: what it knew of a dataset may not be true any more
when another worker has written it again, and memory is to stay flat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, cast

from lsst.daf.butler import DatasetRef
from lsst.daf.butler.datastore import Datastore
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore

__all__ = ["find_records", "forget", "leaf_datastores", "uncache"]


def leaf_datastores(datastore: Datastore) -> Iterator[Datastore]:
    """Yield a datastore, or what is in its chain."""
    children: Collection[Datastore] | None = getattr(datastore, "datastores", None)
    if children is None:
        yield datastore
    else:
        for child in children:
            yield from leaf_datastores(child)


def forget(datastore: Datastore, refs: Collection[DatasetRef]) -> None:
    """Make a datastore know nothing of these datasets; their files stay.

    Objects in an in-memory datastore go too: upstream's own ``forget``
    drops their records and keeps the objects for ever.
    """
    for leaf in leaf_datastores(datastore):
        if leaf.isEphemeral:
            for ref in refs:
                if leaf.knows(ref):
                    leaf.remove(ref)
        else:
            leaf.forget(refs)


def uncache(datastore: Datastore, refs: Collection[DatasetRef]) -> None:
    """Remove these datasets from the datastore's cache of local copies, where it has one."""
    for leaf in leaf_datastores(datastore):
        if isinstance(leaf, FileDatastore):
            leaf.cacheManager.remove_from_cache(refs)


def find_records(datastore: Datastore, refs: Collection[DatasetRef]) -> dict[str, DatastoreRecordData]:
    """Rebuild datastore records from the files of these datasets, looking where they would have been written.

    Returns
    -------
    records
        By datastore name, for those datasets that exist; a dataset exists
        where at least one of its files does. About 0.1 ms a local file.
    """
    found: dict[str, DatastoreRecordData] = {}
    for leaf in leaf_datastores(datastore):
        if not isinstance(leaf, FileDatastore):
            continue
        for name, predicted in leaf.export_predicted_records(refs).items():
            data = DatastoreRecordData()
            for dataset_id, tables in predicted.records.items():
                for table, infos in tables.items():
                    stored = (_as_stored(leaf, cast("StoredFileInfo", info)) for info in infos)
                    existing = [info for info in stored if info is not None]
                    if existing:
                        data.records.setdefault(dataset_id, {})[table] = cast("list[Any]", existing)
            found[name] = data
    return found


def _as_stored(datastore: FileDatastore, info: StoredFileInfo) -> StoredFileInfo | None:
    """Return a record with size and checksum of the file that it names, or `None` where there is none."""
    uri = info.file_location(datastore.locationFactory).uri
    with suppress(FileNotFoundError):
        size = uri.size()
        checksum = datastore.computeChecksum(uri) if datastore.useChecksum else None
        return info.update(file_size=size, checksum=checksum)
    return None
