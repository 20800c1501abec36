"""What a datastore holds and remembers of datasets: found, removed, forgotten; knows no registry.

A worker keeps one datastore for its life. It must remember nothing of the
quanta that are done: what it knew of a dataset may not be true any more
when another worker has written it again, and memory is to stay flat.

A put makes the folder, writes a temporary file beside the dataset's own,
renames it, and only then notes a record. So a process that is killed leaves a
temporary file, or whole files without a record: of some datastores of a chain
perhaps and not of others, and of some components of a composite.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast
from uuid import UUID

from lsst.daf.butler import DatasetRef
from lsst.daf.butler.datastore import Datastore
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.resources import ResourcePath

from qgexec.rubin.compat import temporary_file_pattern

__all__ = [
    "StoredFile",
    "find_records",
    "forget",
    "is_whole",
    "leaf_datastores",
    "modified_at",
    "predicted_files",
    "recorded_files",
    "remove_files",
    "uncache",
]


class StoredFile(NamedTuple):
    """A file that a datastore holds of a dataset, or would hold."""

    datastore: FileDatastore
    dataset_id: UUID
    table: str
    """Name of the datastore's table of records."""
    info: StoredFileInfo
    """Record; size and checksum are those of the file only where somebody has looked at it."""

    @property
    def uri(self) -> ResourcePath:
        """Where it is."""
        return self.info.file_location(self.datastore.locationFactory).uri

    def size(self) -> int | None:
        """Return the size of the file as it is now, bytes; `None` where there is none."""
        with suppress(FileNotFoundError):
            return self.uri.size()
        return None


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


def predicted_files(datastore: Datastore, refs: Collection[DatasetRef]) -> Iterator[StoredFile]:
    """Yield the files that these datasets would be written to, whether they exist or not; 50 us each."""
    for leaf in leaf_datastores(datastore):
        if isinstance(leaf, FileDatastore):
            yield from _files(leaf, leaf.export_predicted_records(refs).values())


def recorded_files(datastore: Datastore, records: Mapping[str, DatastoreRecordData]) -> Iterator[StoredFile]:
    """Yield the files that these records, by datastore name, are about."""
    for leaf in leaf_datastores(datastore):
        if isinstance(leaf, FileDatastore) and leaf.name in records:
            yield from _files(leaf, [records[leaf.name]])


def _files(datastore: FileDatastore, records: Iterable[DatastoreRecordData]) -> Iterator[StoredFile]:
    for data in records:
        for dataset_id, tables in data.records.items():
            for table, infos in tables.items():
                for info in infos:
                    yield StoredFile(datastore, dataset_id, table, cast("StoredFileInfo", info))


def find_records(datastore: Datastore, refs: Collection[DatasetRef]) -> dict[str, DatastoreRecordData]:
    """Rebuild datastore records from the files of these datasets, looking where they would have been written.

    Returns
    -------
    records
        By datastore name, for those datasets that exist; a dataset exists
        where at least one of its files does. About 0.1 ms a local file.
    """
    found: dict[str, DatastoreRecordData] = {}
    for file in predicted_files(datastore, refs):
        data = found.setdefault(file.datastore.name, DatastoreRecordData())
        if (info := _as_stored(file)) is not None:
            tables = data.records.setdefault(file.dataset_id, {})
            cast("list[Any]", tables.setdefault(file.table, [])).append(info)
    return found


def _as_stored(file: StoredFile) -> StoredFileInfo | None:
    """Return a record with size and checksum of the file that it names, or `None` where there is none."""
    with suppress(FileNotFoundError):
        size = file.uri.size()
        checksum = file.datastore.computeChecksum(file.uri) if file.datastore.useChecksum else None
        return file.info.update(file_size=size, checksum=checksum)
    return None


def is_whole(datastore: Datastore, ref: DatasetRef) -> bool:
    """Tell whether a dataset that is never disassembled is in every datastore that would have taken it."""
    if not datastore.constraints.isAcceptable(ref):
        return True
    children: Collection[Datastore] | None = getattr(datastore, "datastores", None)
    if children is not None:
        constraints = getattr(datastore, "datastoreConstraints", None) or [None] * len(children)
        return all(
            is_whole(child, ref)
            for child, constraint in zip(children, constraints, strict=True)
            if constraint is None or constraint.isAcceptable(ref)
        )
    return all(file.size() for file in predicted_files(datastore, [ref]))


def modified_at(uri: ResourcePath) -> float | None:
    """Return when a file was written, UNIX seconds; `None` if there is none, infinity if nobody knows."""
    with suppress(FileNotFoundError):
        if uri.isLocal:
            return os.stat(uri.ospath).st_mtime  # noqa: PTH116 - a third of the time that a Path takes
        written = uri.get_info().last_modified
        return written.timestamp() if written is not None else math.inf
    return None


def remove_files(
    datastore: Datastore,
    refs: Collection[DatasetRef],
    *,
    since: float = -math.inf,
    keep: Collection[ResourcePath] = (),
) -> set[UUID]:
    """Remove the files that datasets would be written to, and what was left of writing them.

    Nobody may be writing these datasets. Records, if any, stay.

    Parameters
    ----------
    datastore
        Where.
    refs
        The datasets.
    since
        Leave files that were written before, UNIX seconds; temporary files go all the same.
    keep
        Leave these files.

    Returns
    -------
    removed
        IDs of the datasets of which a file was removed.
    """
    removed: set[UUID] = set()
    listings: dict[str, list[str]] = {}
    for file in predicted_files(datastore, refs):
        uri = file.uri
        if uri.isLocal:
            _remove_temporaries(uri, listings)
        written_at = modified_at(uri)
        if written_at is not None and written_at >= since and uri not in keep:
            with suppress(FileNotFoundError):
                uri.remove()
            removed.add(file.dataset_id)
    return removed


def _remove_temporaries(uri: ResourcePath, listings: dict[str, list[str]]) -> None:
    """Remove what attempts at writing a local file left beside it."""
    folder = uri.dirname().ospath
    if folder not in listings:
        try:
            listings[folder] = os.listdir(folder)  # noqa: PTH208 - names are what is wanted
        except (FileNotFoundError, NotADirectoryError):
            listings[folder] = []
    pattern = temporary_file_pattern(uri)
    for name in listings[folder]:
        if pattern.fullmatch(name):
            with suppress(FileNotFoundError):
                uri.dirname().join(name).remove()
