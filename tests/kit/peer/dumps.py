"""Everything that a run left in a repository, as plain values; and the first difference in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from lsst.daf.butler import Butler, ButlerLogRecords, DatasetRef
from lsst.daf.butler.tests import MetricsExample
from lsst.pex.config import Config
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.tests.mocks import MockDataset
from lsst.utils.packages import Packages

from qgexec.rubin.compat import export_records
from tests.kit.butler.repos import OUTPUT, OUTPUT_RUN

__all__ = ["Dump", "dump", "first_difference", "metadata_counts", "without_formats"]

Dump = dict[str, Any]

_VOLATILE_NAME = re.compile(
    r"(Utc|CpuTime|UserTime|SystemTime|MaxResidentSetSize|MinorPageFaults|MajorPageFaults|BlockInputs"
    r"|BlockOutputs|VoluntaryContextSwitches|InvoluntaryContextSwitches|time_in_\w+|gc_metrics|qg_read_time)$"
)
"""Items of a task's metadata that differ from run to run."""

_DURATION = re.compile(r"took \d+\.\d+ seconds")

_REMOVAL = re.compile(r"(Removing (?:partial|complete) outputs for \w+ .*?: )\[.*\]$")
"""Names what is removed in the order of a set."""

_ID = re.compile(r"id=[0-9a-f-]{36}")

_FRONT_ENDS = frozenset({"ctrl_mpexec", "qgexec", "wcwidth"})
"""Packages that only one of the two programs imports."""

_BUTLER_LOGGERS = "lsst.daf.butler"
"""A full butler says more than a quantum's own when it removes outputs that are in the way, and both say
once in a process, in whichever quantum comes first, which storage classes they cannot import."""


def dump(root: Path) -> Dump:
    """Return collections, dataset types, all datasets with contents and records, and files."""
    with Butler.from_config(str(root)) as butler:
        infos = butler.collections.query_info(
            "*", include_doc=True, include_parents=True, include_summary=True, flatten_chains=False
        )
        collections = {
            info.name: {
                "type": info.type.name,
                "members": list(info.children),
                "parents": sorted(info.parents or ()),
                "documentation": info.doc,
                "dataset types in its summary": sorted(info.dataset_types or ()),
            }
            for info in infos
        }
        outputs = butler.query_all_datasets(OUTPUT_RUN, find_first=False, limit=None)
        first = butler.query_all_datasets(OUTPUT, find_first=True, limit=None)
        return {
            "collection": collections,
            "dataset type": {t.name: str(t) for t in butler.registry.queryDatasetTypes()},
            "dataset": {f"{ref.datasetType.name} {ref.dataId}": _dataset(butler, ref) for ref in outputs},
            f"dataset found through {OUTPUT}": {
                f"{ref.datasetType.name} {ref.dataId}": str(ref.id) for ref in first
            },
            "file": {str(path.relative_to(root)): "there" for path in _files(root)},
        }


def metadata_counts(left: Dump) -> dict[str, int]:
    """Return for each task label how many quanta have a metadata dataset: those that succeeded."""
    names = [key.split()[0] for key in left["dataset"]]
    labels = [name.removesuffix("_metadata") for name in names if name.endswith("_metadata")]
    return {label: labels.count(label) for label in sorted(set(labels))}


def without_formats(left: Dump) -> Dump:
    """Leave out as what datasets are stored: storage classes in records, and so sizes and checksums."""
    formats = ("storage_class", "file_size", "checksum")

    def strip(dataset: Mapping[str, Any]) -> dict[str, Any]:
        records = {
            place: {key: value for key, value in record.items() if key not in formats}
            for place, record in dataset["records"].items()
        }
        return {**dataset, "records": records}

    return {**left, "dataset": {key: strip(dataset) for key, dataset in left["dataset"].items()}}


def first_difference(theirs: Any, ours: Any, *, what: str = "") -> str | None:
    """Say in words where two dumps differ first; `None` where they do not.

    Parameters
    ----------
    theirs, ours
        What pipetask and qgexec left.
    what
        Name of what is compared.
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            name = f"{what} {key}" if what else str(key)
            if key not in ours:
                return f"{name}: only pipetask has it: {theirs[key]!r:.2000}"
            if key not in theirs:
                return f"{name}: only qgexec has it: {ours[key]!r:.2000}"
            if (found := first_difference(theirs[key], ours[key], what=name)) is not None:
                return found
        return None
    if isinstance(theirs, list) and isinstance(ours, list):
        for number, (their, our) in enumerate(zip(theirs, ours, strict=False)):
            if (found := first_difference(their, our, what=f"{what} [{number}]")) is not None:
                return found
        if len(theirs) != len(ours):
            name, longer = ("pipetask", theirs) if len(theirs) > len(ours) else ("qgexec", ours)
            return f"{what}: only {name} goes on with {longer[min(len(theirs), len(ours))]!r:.2000}"
        return None
    if theirs != ours:
        return f"{what}: pipetask has {theirs!r:.2000}, qgexec has {ours!r:.2000}"
    return None


def _files(root: Path) -> list[Path]:
    registry = ("gen3.sqlite3", "gen3.sqlite3-journal", "gen3.sqlite3-wal", "gen3.sqlite3-shm")
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name not in registry)


def _dataset(butler: Butler, ref: DatasetRef) -> dict[str, Any]:
    try:
        obj = butler.get(ref)
    except Exception as error:  # noqa: BLE001  what cannot be read is what is looked for
        # As plots, which are only ever written.
        content: object = {"cannot be read": type(error).__name__, "SHA-256": _digests(butler, ref)}
        obj = None
    else:
        content = _stable(obj)
    # A log or metadata dataset has times in it; the packages differ in the program's own name.
    same_bytes = not isinstance(obj, TaskMetadata | ButlerLogRecords | Packages)
    return {
        "type": str(ref.datasetType),
        "UUID": str(ref.id),
        "existence": str(butler.exists(ref, full_check=True)),
        "content": content,
        "records": _records(butler, ref, same_bytes=same_bytes),
    }


def _digests(butler: Butler, ref: DatasetRef) -> dict[str, str]:
    """Return the digest of each file of a dataset by component, which is empty for the whole."""
    if not butler.stored(ref):
        return {}
    uris = butler.getURIs(ref)
    files = {**uris.componentURIs, **({"": uris.primaryURI} if uris.primaryURI else {})}
    return {component: sha256(uri.read()).hexdigest() for component, uri in files.items()}


def _records(butler: Butler, ref: DatasetRef, *, same_bytes: bool) -> dict[str, Any]:
    """Return the datastore records of one dataset by datastore and component."""
    found: dict[str, Any] = {}
    for datastore, data in export_records(butler, [ref]).items():
        for table, infos in data.records.get(ref.id, {}).items():
            for info in infos:
                record = info.to_record()
                if not same_bytes:
                    record["file_size"] = record["file_size"] > 0
                    record["checksum"] = record["checksum"] is not None
                # Its root's full path is part of a datastore's name.
                place = f"in {datastore.split('@')[0]} {table} {record.get('component')}"
                found[place] = {key: value for key, value in record.items() if key != "dataset_id"}
    return found


def _stable(obj: Any) -> Any:
    """Return an object as plain values, without what differs from run to run."""
    match obj:
        case TaskMetadata():
            return _stable_metadata(obj.to_dict())
        case ButlerLogRecords():
            return _stable_log(obj)
        case MockDataset():
            return obj.model_dump(mode="json")
        case Packages():
            return {name: version for name, version in sorted(obj.items()) if name not in _FRONT_ENDS}
        case Config():
            return obj.toDict()
        case MetricsExample():
            return obj.exportAsDict()
        case np.ndarray():
            return {"shape": obj.shape, "type": str(obj.dtype), "SHA-256": sha256(obj.tobytes()).hexdigest()}
        case Table():
            return {name: _stable(np.asarray(obj[name])) for name in obj.colnames}
        case _ if is_dataclass(obj):
            return {field.name: _stable(getattr(obj, field.name)) for field in fields(obj)}
        case _:
            return obj


def _stable_metadata(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("outputs"), list):
        value = {**value, "outputs": sorted(value["outputs"])}  # upstream takes them from a set
    return {
        key: f"{len(item) if isinstance(item, list) else 1} measured"
        if _VOLATILE_NAME.search(key)
        else _stable_metadata(item)
        for key, item in value.items()
    }


def _stable_log(log: ButlerLogRecords) -> dict[str, Any]:
    extra: dict[str, Any] = dict(log.extra or {})
    # What else ran in the same process is a matter of who ran it: pipetask's own `-j 2` differs, too.
    extra.pop("previous_process_quanta", None)
    extra["metadata"] = _stable_metadata(_plain(extra.get("metadata")))
    extra["previous_attempts"] = [
        {
            "exception": attempt["exception"],
            "messages": _stable_messages(attempt["logs"]),
            "metadata": _stable_metadata(_plain(attempt["metadata"])),
        }
        for attempt in extra.get("previous_attempts", ())
    ]
    return {"messages": _stable_messages([record.model_dump() for record in log]), "extra": extra}


def _stable_messages(records: list[dict[str, Any]]) -> list[Any]:
    return [_stable_record(r) for r in records if not r["name"].startswith(_BUTLER_LOGGERS)]


def _plain(metadata: Any) -> Any:
    """Return metadata as `TaskMetadata.to_dict` does, from what a log's extra holds of it."""
    return TaskMetadata.model_validate(metadata).to_dict() if metadata is not None else None


def _stable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "levelname", "message", "funcName", "filename", "MDC")
    stable = {key: _DURATION.sub("took some seconds", str(record[key])) for key in kept}
    if (match := _REMOVAL.fullmatch(stable["message"])) is not None:
        stable["message"] = match[1] + " ".join(sorted(_ID.findall(stable["message"])))
    return stable
