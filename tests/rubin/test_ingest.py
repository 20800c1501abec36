"""Ingester: the registry after one batch, after two, after a rerun, after a crash, behind a lock."""

from __future__ import annotations

import copy
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.registry.databases import sqlite as upstream_sqlite

from qgexec.errors import DatasetTypeError, IngestError, RepositoryError
from qgexec.rubin.ingest import Ingester, IngesterOpener
from tests.kit.butler.benchwork import Run, Site, datastore_rows, prepare_outputs, registered
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, copy_template
from tests.kit.processes import warm

LABELS = ("isr", "calibrate")


@pytest.fixture(scope="module")
def done(template: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> tuple[MockRepository, Run]:
    """A repository in which isr and calibrate were executed and nothing ingested; not to be written to."""
    folder = tmp_path_factory.mktemp("done")
    site = Site(copy_template(template, folder / "data"), folder / "run")
    prepare_outputs(site.repository)
    return site.repository, site.run(LABELS)


@pytest.fixture
def site(done: tuple[MockRepository, Run], tmp_path: Path) -> Site:
    """A copy of the test's own."""
    return Site(copy_template(done[0], tmp_path / "data"), tmp_path / "run")


@pytest.fixture
def details(done: tuple[MockRepository, Run]) -> list[dict[str, Any]]:
    """What the executed quanta left, in their order."""
    return list(done[1].details.values())


def state(site: Site) -> tuple[object, ...]:
    """Return all that an ingester could change: datasets, records, files."""
    return site.repository.dump(), datastore_rows(site.repository)


def n_outputs(details: list[dict[str, Any]]) -> int:
    return sum(len(detail["outputs"]) for detail in details)


def stretch(site: Site, detail: dict[str, Any]) -> None:
    """Make every file of a detail longer, as another attempt would, in the detail too."""
    for data in detail["records"].values():
        for by_id in data["records"].values():
            for tables in by_id.values():
                for records in tables.values():
                    for record in records:
                        path = next(p for p in site.repository.root.rglob(Path(record["path"]).name))
                        path.write_text(path.read_text().rstrip() + " " * 10 + "\n")
                        record["file_size"] = path.stat().st_size


def copied(detail: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(detail), **changes}


@pytest.mark.every(2)
@pytest.mark.parametrize("public_api", [False, True], ids=["private", "public"])
def test_all_is_registered_and_readable(site: Site, details: list[dict[str, Any]], public_api: bool) -> None:
    """Every output is in the registry with its records, sizes included, and can be read; both ways alike."""
    assert site.ingest(details, public_api=public_api) == n_outputs(details)
    found = registered(site.repository)
    assert len([key for key in found if key.startswith(("isr_log", "isr_metadata", "post_isr"))]) == 24
    rows = datastore_rows(site.repository)
    assert len(rows) >= 24
    assert not any('"file_size": -1' in row for row in rows)


def test_public_api_leaves_the_same(site: Site, details: list[dict[str, Any]], tmp_path: Path) -> None:
    """What the public fall-back leaves is, record by record, what the fast way leaves."""
    twin = Site(copy_template(site.repository, tmp_path / "twin"), tmp_path / "twin_run")
    site.ingest(details)
    twin.ingest(details, public_api=True)
    assert state(site) == state(twin)


@pytest.mark.every(2)
@pytest.mark.parametrize("public_api", [False, True], ids=["private", "public"])
def test_again_changes_nothing(site: Site, details: list[dict[str, Any]], public_api: bool) -> None:
    """A batch that was taken in by a driver that did not live to say so may come again, whole or in part."""
    site.ingest(details[:5], public_api=public_api)
    site.ingest(details, public_api=public_api)
    before = state(site)
    site.ingest(details, public_api=public_api)
    site.ingest(details[3:7], public_api=public_api)
    assert state(site) == before


def test_empty_batch(site: Site) -> None:
    """Details without outputs, as of a client's own executor, change nothing."""
    before = state(site)
    assert site.ingest([{}, {"traceback": "Traceback..."}]) == 0
    assert site.ingest([]) == 0
    assert state(site) == before


def test_records_of_a_rerun_replace_the_older_ones(site: Site, details: list[dict[str, Any]]) -> None:
    """After a rerun that wrote files of other sizes everything is readable and registered once."""
    site.ingest(details)
    datasets = site.repository.dump()["datasets"]
    again = copied(details[0], replaces=True)
    stretch(site, again)
    with pytest.raises(Exception, match="size"):
        registered(site.repository)
    site.ingest([again])
    registered(site.repository)
    assert site.repository.dump()["datasets"] == datasets


def test_the_later_attempt_of_a_batch_counts(site: Site, details: list[dict[str, Any]]) -> None:
    """Of two attempts at one quantum in one batch the later one counts."""
    again = copied(details[0], replaces=True)
    stretch(site, again)
    gone = again["outputs"].pop()
    again["absent"] = [gone[2]]
    site.ingest([details[0], again])
    ids = {row[2].replace("-", "") for row in _dataset_ids(site)}
    assert gone[2] not in ids
    assert {row[2] for row in again["outputs"]} <= ids


def _dataset_ids(site: Site) -> list[tuple[str, str, str]]:
    datasets: Any = site.repository.dump()["datasets"]
    return [(row[0], row[1], row[3]) for row in datasets]


def test_absent_datasets_leave_the_registry(site: Site, details: list[dict[str, Any]]) -> None:
    """What the last attempt did not make again is not registered any more; files are not touched."""
    site.ingest(details)
    before: Any = site.repository.dump()
    gone = details[0]["outputs"][0]
    site.ingest([{"absent": [gone[2], "0" * 32], "replaces": True}])
    after: Any = site.repository.dump()
    assert after["files"] == before["files"]
    assert len(after["datasets"]) == len(before["datasets"]) - 1
    assert gone[2] not in {row[3].replace("-", "") for row in after["datasets"]}
    site.ingest([{"absent": [gone[2]], "replaces": True}])
    assert site.repository.dump() == after


def test_all_or_nothing(site: Site, details: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the records cannot be written no dataset is registered either, and it can be tried again."""
    before = state(site)
    ingester = site.ingester()
    with monkeypatch.context() as patch:
        patch.setattr(FileDatastore, "import_records", _refuse)
        with pytest.raises(IngestError, match="no space"):
            ingester.ingest(details)
    assert state(site) == before
    assert ingester.ingest(details) == n_outputs(details)
    ingester.close()
    registered(site.repository)


def _refuse(datastore: FileDatastore, records: object) -> None:
    raise OSError("no space")


KILLED = """
import json, os, sys
from qgexec.rubin import ingest
repository, run, details = sys.argv[1:]
ingester = ingest.IngesterOpener(repository, run)()
datastore = ingest.datastore_of(ingester._butler)
write = datastore.import_records
def write_and_die(records):
    write(records)
    os.kill(os.getpid(), 9)
datastore.import_records = write_and_die
ingester.ingest(json.loads(details))
"""


def test_killed_in_the_middle(site: Site, details: list[dict[str, Any]]) -> None:
    """An ingester killed with everything written but not committed leaves nothing, and no lock."""
    before = state(site)
    command = [sys.executable, "-c", KILLED, str(site.repository.root), OUTPUT_RUN, json.dumps(details)]
    assert warm.run(command, timeout=120).returncode == -9
    assert state(site) == before
    site.ingest(details)
    registered(site.repository)


def test_other_dataset_with_the_same_data_id(site: Site, details: list[dict[str, Any]]) -> None:
    """Another dataset in the place of ours is a clear error that changes nothing."""
    site.ingest(details[:1])
    before = state(site)
    name, values, dataset_id = details[0]["outputs"][0]
    other = "f" * 32
    detail = copied(details[0], outputs=[[name, values, other]])
    for data in detail["records"].values():
        data["dataset_ids"] = [other]
        data["records"] = {
            each: {other: by_id[dataset_id]} for each, by_id in data["records"].items() if dataset_id in by_id
        }
    with pytest.raises(IngestError, match="ConflictingDefinitionError"):
        site.ingest([detail, *details[1:]])
    assert state(site) == before


def test_unregistered_dataset_type(site: Site, details: list[dict[str, Any]]) -> None:
    """A dataset type that is not registered is named, and nothing has changed."""
    before = state(site)
    detail = copied(details[0])
    detail["outputs"][0][0] = "nobody_knows"
    with pytest.raises(DatasetTypeError, match="nobody_knows"):
        site.ingest([*details[1:], detail])
    assert state(site) == before


def test_public_api_cannot_replace(site: Site, details: list[dict[str, Any]]) -> None:
    """Where upstream's private ways are gone, an extended RUN is refused rather than left wrong."""
    site.ingest(details)
    before = state(site)
    with pytest.raises(IngestError, match="replace"):
        site.ingest([copied(details[0], replaces=True)], public_api=True)
    assert state(site) == before


@pytest.mark.every(2)
@pytest.mark.parametrize("public_api", [False, True], ids=["private", "public"])
def test_later_attempts_in_a_new_run(site: Site, details: list[dict[str, Any]], public_api: bool) -> None:
    """What a later attempt says of datasets that the registry does not know is taken in either way."""
    again = [copied(detail, replaces=True) for detail in details]
    again[0]["absent"] = ["0" * 32]
    assert site.ingest(again, public_api=public_api) == n_outputs(details)
    site.ingest([{"absent": ["0" * 32], "replaces": True}], public_api=public_api)
    registered(site.repository)


class _Lock:
    """Another writer of a SQLite registry; an ingester's sleep can be its end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def take(self, site: Site, kind: str = "IMMEDIATE") -> None:
        self._connection = sqlite3.connect(site.repository.root / "gen3.sqlite3", isolation_level=None)
        self._connection.execute(f"BEGIN {kind}")

    def sleep_and_release(self, pause_s: float) -> None:
        self.sleep(pause_s)
        self.release()

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s

    def clock(self) -> float:
        return self.now

    def release(self) -> None:
        self._connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite does not wait itself, as upstream makes it do for 300 s."""
    connect = upstream_sqlite._onSqlite3Connect

    def connect_at_once(connection: sqlite3.Connection, record: Any) -> None:
        connect(connection, record)
        connection.execute("PRAGMA busy_timeout = 0")

    monkeypatch.setattr(upstream_sqlite, "_onSqlite3Connect", connect_at_once)


def opener(site: Site) -> IngesterOpener:
    return IngesterOpener(str(site.repository.root), OUTPUT_RUN, patience_s=60.0)


@pytest.mark.usefixtures("impatient")
def test_lock_is_waited_for(site: Site, details: list[dict[str, Any]]) -> None:
    """A registry that another process has locked is tried again until it is free."""
    lock = _Lock()
    ingester = Ingester(opener(site), sleep=lock.sleep_and_release, clock=lock.clock)
    lock.take(site)
    assert ingester.ingest(details) == n_outputs(details)
    assert len(lock.pauses) == 1
    ingester.close()
    registered(site.repository)


@pytest.mark.usefixtures("impatient")
def test_lock_is_waited_for_when_opened(site: Site, details: list[dict[str, Any]]) -> None:
    """A registry that not even readers may open is tried again, too."""
    lock = _Lock()
    lock.take(site, "EXCLUSIVE")
    ingester = Ingester(opener(site), sleep=lock.sleep_and_release, clock=lock.clock)
    assert len(lock.pauses) == 1
    assert ingester.ingest(details) == n_outputs(details)
    ingester.close()


@pytest.mark.usefixtures("impatient")
def test_lock_that_stays(site: Site, details: list[dict[str, Any]]) -> None:
    """A lock that stays is an error after the time given, with growing pauses; nothing has changed."""
    before = state(site)
    lock = _Lock()
    ingester = Ingester(opener(site), sleep=lock.sleep, clock=lock.clock)
    lock.take(site)
    with pytest.raises(IngestError, match="locked"):
        ingester.ingest(details)
    assert 30 < sum(lock.pauses) <= 60
    assert lock.pauses == sorted(lock.pauses)
    lock.release()
    ingester.close()
    ingester.close()
    assert state(site) == before


@pytest.mark.thorough
def test_no_mocks_are_needed(site: Site, details: list[dict[str, Any]]) -> None:
    """The ingester needs neither the tasks nor their storage classes: they need not be importable for it."""
    code = (
        "import json, sys; from qgexec.rubin.ingest import IngesterOpener\n"
        "print(IngesterOpener(*sys.argv[1:3])().ingest(json.loads(sys.argv[3])))\n"
        "assert 'lsst.pipe.base.tests' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(site.repository.root), OUTPUT_RUN, json.dumps(details)]
    result = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert result.stdout.strip() == str(n_outputs(details)), result.stderr
    registered(site.repository)


def test_missing_repository(tmp_path: Path) -> None:
    """A repository that does not exist is one clear error; none is made."""
    with pytest.raises(RepositoryError):
        IngesterOpener(str(tmp_path / "none"), OUTPUT_RUN)()
    assert not (tmp_path / "none").exists()
