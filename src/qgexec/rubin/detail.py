"""The shape of a detail: what a bench leaves beside an `Outcome`, for people and for the ingester."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lsst.daf.butler import DatasetRef
from lsst.daf.butler.datastore.record_data import DatastoreRecordData, SerializedDatastoreRecordData
from lsst.utils.introspection import get_full_type_name

from qgexec.errors import JournalError
from qgexec.quantum import DataIdValue

__all__ = ["Detail", "OutputRow", "output_row", "records_from_json", "records_to_json"]

OutputRow = tuple[str, Sequence[DataIdValue], str]
"""One dataset: parent dataset type, required data ID values in the dimensions' order, UUID as 32 hex digits.

It says no RUN, since all are in the run's own, and no storage class: the registry knows it better.
"""


class Detail(TypedDict, total=False):
    """A detail as JSON; a key is left out where it would be empty."""

    traceback: str
    """Whole traceback of a failure."""

    message: str
    """Whole message of what was raised, where the summary has it cut."""

    outputs: list[OutputRow]
    """Datasets that the attempt put, or that were found after it."""

    records: Mapping[str, Mapping[str, Any]]
    """Datastore records of exactly those, by datastore: `SerializedDatastoreRecordData` as JSON."""

    absent: list[str]
    """Predicted outputs that do not exist after the attempt; only with `replaces`."""

    replaces: bool
    """The registry may hold older records of the outputs: of the RUN before, or of an earlier attempt."""


def output_row(ref: DatasetRef) -> OutputRow:
    """Return a dataset as a detail names it.

    A dataset that was put or predicted under a component's name does not
    exist: upstream's outputs are always whole datasets.
    """
    return (ref.datasetType.name, list(ref.dataId.required_values), ref.id.hex)


def records_to_json(records: Mapping[str, DatastoreRecordData]) -> dict[str, dict[str, Any]]:
    """Return datastore records as JSON, without datastores that hold none (about 3 us a dataset).

    Upstream's ``to_simple`` says the same, but validates each value of it (10 us).
    """
    return {name: _data_to_json(data) for name, data in records.items() if data.records}


def _data_to_json(data: DatastoreRecordData) -> dict[str, Any]:
    by_class: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for dataset_id, tables in data.records.items():
        for table, infos in tables.items():
            for info in infos:
                of_dataset = by_class.setdefault(get_full_type_name(info), {}).setdefault(dataset_id.hex, {})
                of_dataset.setdefault(table, []).append(info.to_record())
    return {"dataset_ids": [dataset_id.hex for dataset_id in data.records], "records": by_class}


def records_from_json(records: Mapping[str, Mapping[str, Any]]) -> dict[str, DatastoreRecordData]:
    """Return a detail's datastore records as upstream's objects.

    Raises
    ------
    qgexec.errors.JournalError
        They are none: the detail is damaged.
    """
    try:
        return {
            name: DatastoreRecordData.from_simple(SerializedDatastoreRecordData.direct(**simple))
            for name, simple in records.items()
        }
    except Exception as error:  # of damaged ones upstream may raise anything
        what = f"{type(error).__name__}: {error}"
        raise JournalError(f"datastore records in a segment are damaged: {what}") from error
