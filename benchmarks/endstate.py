"""What a run left behind, read from registry, files and journal; and what is wrong with it; runs nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, ButlerLogRecords, DatasetRef
from lsst.pipe.base import TaskMetadata
from lsst.utils.packages import Packages

from qgexec.books.journal import read_events
from qgexec.events import AttemptSkipped, AttemptStarted, AttemptSucceeded
from qgexec.reports.report import read_report
from qgexec.rubin.compat import export_records

__all__ = ["EndState", "Work", "read_end_state", "read_work"]

_REGISTRY_FILES = ("gen3.sqlite3", "gen3.sqlite3-journal", "gen3.sqlite3-wal", "gen3.sqlite3-shm")

_COUNTS = ("n_quanta", "succeeded", "skipped", "failed", "blocked", "running", "not_run", "ingested")


@dataclass(frozen=True, slots=True)
class EndState:
    """All that must be equal after an undisturbed run and after one that was killed and resumed."""

    collections: Mapping[str, object]
    """Type and members by name."""
    dataset_types: frozenset[str]
    datasets: Mapping[str, object]
    """By type and data ID: ID, records and, where it is always the same, a digest of what is in the files."""
    files: frozenset[str]
    """Relative to the repository's root, the registry's own left out."""
    counts: Mapping[str, tuple[int, ...]]
    """Of the report, by task label."""
    run_state: str
    """Of the report."""

    def differences(self, other: EndState) -> list[str]:
        """Say in words where another one differs, the first few of each kind."""
        found = []
        for name in (field.name for field in fields(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours == theirs:
                continue
            if isinstance(ours, frozenset):
                found += [f"{name}: missing {each}" for each in sorted(ours - theirs)[:5]]
                found += [f"{name}: too many: {each}" for each in sorted(theirs - ours)[:5]]
            elif isinstance(ours, Mapping):
                keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
                found += [f"{name}: {key}: {ours.get(key)} became {theirs.get(key)}" for key in keys[:5]]
            else:
                found.append(f"{name}: {ours} became {theirs}")
        return found


def read_end_state(repository: Path, output_run: str, run_dir: Path) -> tuple[EndState, list[str]]:
    """Read everything that a run left, as any user would: through a butler of its own.

    Parameters
    ----------
    repository
        Root of the repository.
    output_run
        RUN collection.
    run_dir
        Run directory.

    Returns
    -------
    state
        What is there.
    problems
        What must not be, in words: datasets that are there twice or cannot be read, files that are
        missing, of another size than recorded, or nobody's. About 10 ms a dataset.
    """
    problems: list[str] = []
    with Butler.from_config(str(repository)) as butler:
        refs = list(butler.query_all_datasets(output_run, find_first=False, limit=None))
        by_name: dict[str, list[DatasetRef]] = {}
        for ref in refs:
            by_name.setdefault(f"{ref.datasetType.name} {dict(ref.dataId.mapping)}", []).append(ref)
        problems += [f"{name} is there {len(found)} times" for name, found in by_name.items() if found[1:]]
        owned: set[Path] = set()
        datasets = {
            name: _dataset(butler, repository, found[0], owned, problems) for name, found in by_name.items()
        }
        infos = butler.collections.query_info("*", include_parents=False)
        collections = {info.name: (info.type.name, tuple(info.children)) for info in infos}
        dataset_types = frozenset(map(str, butler.registry.queryDatasetTypes()))
    files = frozenset(_files(repository))
    names = {str(path.relative_to(repository)) for path in owned}
    problems += [f"{file} is nobody's" for file in sorted(files - names) if file.startswith(f"{output_run}/")]
    report = read_report(run_dir)
    counts = {task.label: tuple(getattr(task, name) for name in _COUNTS) for task in report.tasks}
    return EndState(collections, dataset_types, datasets, files, counts, report.state.value), problems


def _dataset(
    butler: Butler, repository: Path, ref: DatasetRef, owned: set[Path], problems: list[str]
) -> dict[str, Any]:
    """Return one dataset as plain values; note its files, and what is wrong with it."""
    content: object = None
    try:
        content = butler.get(ref)
    except Exception as error:  # noqa: BLE001 - that it cannot be read is what is looked for
        problems.append(f"{ref} cannot be read: {type(error).__name__}: {error}")
    # These have times in them, or no content at all.
    differs = content is None or isinstance(content, TaskMetadata | ButlerLogRecords | Packages)
    places = []
    for data in export_records(butler, [ref]).values():
        for infos in data.records.get(ref.id, {}).values():
            for record in (info.to_record() for info in infos):
                path = repository / record["path"]
                owned.add(path)
                size = path.stat().st_size if path.exists() else None
                if size != record["file_size"]:
                    problems.append(f"{ref}: {path.name} has {size} bytes, not {record['file_size']}")
                digest = "" if differs or size is None else _digest(path)
                places.append((record["path"], record["component"], record["formatter"], digest))
    if not places:
        problems.append(f"{ref} has no datastore record")
    return {"id": str(ref.id), "places": tuple(sorted(places))}


def _digest(path: Path) -> str:
    """Return a digest of what is in a file; the order in which JSON has the members of objects is chance."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(json.loads(content), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        if path.is_file() and path.name not in _REGISTRY_FILES:
            yield str(path.relative_to(root))


@dataclass(frozen=True, slots=True)
class Work:
    """What the journal says was done to get there."""

    attempts: Mapping[int, int]
    """Attempts that were handed out, by quantum."""
    done: Mapping[int, int]
    """How often a quantum succeeded, or was found done, by quantum."""

    @property
    def n_repeated(self) -> int:
        """Quanta that were handed out more than once."""
        return sum(n > 1 for n in self.attempts.values())


def read_work(run_dir: Path) -> Work:
    """Count what was done in a run, by all its drivers."""
    attempts: Counter[int] = Counter()
    done: Counter[int] = Counter()
    for event in read_events(run_dir / "journal", damaged=[]):
        match event:
            case AttemptStarted(index=index):
                attempts[index] += 1
            case AttemptSucceeded(outcome=outcome) | AttemptSkipped(outcome=outcome):
                done[outcome.index] += 1
            case _:
                pass
    return Work(attempts, done)
