"""Disks, databases and other drivers that get in the way of a run: it breaks off, and is gone on with."""

from __future__ import annotations

import resource as limits
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Config
from lsst.daf.butler.registry.databases import sqlite as upstream_sqlite

from benchmarks.endstate import EndState
from qgexec.books.journal import Journal
from qgexec.reports.report import read_report
from qgexec.rubin.outage import Patience
from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import drop_powers
from tests.kit.crash.faults import (
    Fault,
    at_call,
    at_record,
    in_task,
    together,
)
from tests.kit.crash.sites import (
    Site,
    begin,
    check_end,
    make_site,
    make_small,
    resume,
    start,
    start_resume,
)
from tests.kit.processes.disks import fill, small_disk
from tests.kit.processes.forks import (
    KILLED,
    Flag,
    replace,
    start_fork,
)
from tests.kit.processes.postgres import PostgresServer
from tests.kit.runs.damage import move_away

_DISK_BYTES = 24 << 20
"""Room on a disk of a test's own: several times what a run needs."""

MODELS = ("inprocess", "pool")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A repository that nobody writes to."""
    return make_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def place(small: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A place that tests restore."""
    return make_site(small, tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def undisturbed(place: Site) -> EndState:
    """What a run leaves in which nothing happens."""
    place.restore()
    assert begin(place) == 0
    state, problems = place.end()
    assert problems == []
    return state


@pytest.fixture
def site(place: Site, undisturbed: EndState) -> Site:
    """A place in which nothing has run."""
    place.restore()
    return place


@pytest.fixture
def flags(tmp_path: Path) -> Iterator[Callable[[str], Flag]]:
    """Makes flags by name."""
    made: list[Flag] = []

    def make(name: str) -> Flag:
        made.append(Flag(tmp_path / f"{name}.flag"))
        return made[-1]

    yield make
    for flag in made:
        flag.close()


# --- disks ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own, where one may be mounted."""
    with small_disk(tmp_path / "disk", _DISK_BYTES) as folder:
        yield folder


def filling(ballast: Path) -> Fault:
    """Quanta fill a file system, each anew: SQLite gives room back when it removes its journal."""
    act = partial(fill, ballast)
    return in_task(calibrate=act, summary=act, final=act)


def succeeded(site: Site) -> dict[str, int]:
    """Return how many quanta of each task the report says have succeeded."""
    return {task.label: task.succeeded for task in read_report(site.run_dir).tasks}


@pytest.mark.thorough
@pytest.mark.every(2)
@pytest.mark.parametrize("model", MODELS)
def test_disk_of_the_repository_fills_up(
    small: MockRepository, undisturbed: EndState, disk: Path, tmp_path: Path, model: str
) -> None:
    """The run breaks off with one message, and no quantum has failed; when there is room, the rest is done.

    Whether a quantum or the registry is the first to find the disk full is a race.
    """
    site = make_site(small, tmp_path, place=disk / "site", run_dir=tmp_path / "run")
    assert begin(site, model, filling(disk / "ballast")) == 2
    assert f"the disk of the datastore {site.repository} is full: No space left on device" in site.said
    assert read_report(site.run_dir).failures == ()
    assert succeeded(site)["final"] == 0  # how many came before it depends on how fast each worker was
    (disk / "ballast").unlink()
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("model", MODELS)
def test_disk_of_a_scratch_folder_fills_up(site: Site, undisturbed: EndState, disk: Path, model: str) -> None:
    """That is the failure of the quantum that writes there, and others go on."""

    def write() -> None:
        fill(disk / "ballast")
        with (disk / "more").open("wb", buffering=0) as file:
            file.write(b"more")

    assert begin(site, model, in_task(calibrate=write)) == 1
    report = read_report(site.run_dir)
    (failure,) = report.failures
    assert "No space left on device" in (report.traceback(failure.attempts[-1]) or "")
    assert (succeeded(site)["pair"], succeeded(site)["calibrate"]) == (1, 0)
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.every(2)
@pytest.mark.parametrize("model", MODELS)
def test_disk_of_the_run_directory_fills_up(
    small: MockRepository, undisturbed: EndState, disk: Path, tmp_path: Path, model: str
) -> None:
    """The run breaks off, for what is done could not be recorded; when there is room again, it goes on."""
    site = make_site(small, tmp_path, run_dir=disk / "run")
    assert begin(site, model, filling(disk / "ballast")) == 2
    assert "No space left on device" in site.said
    assert resume(site, model) == 2
    (disk / "ballast").unlink()
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("model", MODELS)
def test_files_may_not_grow(site: Site, undisturbed: EndState, model: str) -> None:
    """With a limit on the size of files nothing gets done; when it is lifted, all is."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = limits.getrlimit(limits.RLIMIT_FSIZE)
        limits.setrlimit(limits.RLIMIT_FSIZE, (700, hard))

    assert begin(site, model, limit) in (1, 2)
    assert set(succeeded(site).values()) == {0}
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("model", MODELS)
def test_run_directory_becomes_read_only(site: Site, undisturbed: EndState, model: str) -> None:
    """A run whose directory takes no new files breaks off, and is not gone on with until it does again."""
    folders = [site.run_dir, *(path for path in site.run_dir.iterdir() if path.is_dir())]

    def lock() -> None:
        for folder in folders:
            folder.chmod(0o555)
        raise ValueError("no stars")

    fault = together(drop_powers, in_task(calibrate=lock))
    assert begin(site, model, fault) in (1, 2)
    before = {path: path.read_bytes() for path in site.run_dir.rglob("*") if path.is_file()}
    assert resume(site, model, drop_powers) == 2
    assert "Permission denied" in site.said
    assert {path: path.read_bytes() for path in site.run_dir.rglob("*") if path.is_file()} == before
    for folder in folders:
        folder.chmod(0o755)
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.thorough
def test_file_system_of_the_run_directory_is_read_only(
    small: MockRepository, undisturbed: EndState, disk: Path, tmp_path: Path
) -> None:
    """A run on a file system that was mounted to be read is not gone on with, and is as it was."""
    site = make_site(small, tmp_path, run_dir=disk / "run")
    assert begin(site, fault=at_record(5, "after")) == KILLED
    remount = ["mount", "-o", "remount,{}", str(disk)]
    subprocess.run([each.format("ro") for each in remount], check=True)
    try:
        assert resume(site) == 2
        assert "Read-only file system" in site.said
    finally:
        subprocess.run([each.format("rw") for each in remount], check=True)
    assert resume(site) == 0
    check_end(site, undisturbed)


# --- databases ------------------------------------------------------------------------------------------


def impatient() -> None:
    """Have SQLite not wait itself, as upstream makes it do for 300 s."""
    connect = upstream_sqlite._onSqlite3Connect

    def connect_at_once(connection: sqlite3.Connection, record: Any) -> None:
        connect(connection, record)
        connection.execute("PRAGMA busy_timeout = 0")

    replace(upstream_sqlite, "_onSqlite3Connect", connect_at_once)


def telling(flag: Flag) -> Fault:
    """Whoever waits for a database says so."""
    return at_call(Patience, "warn", "after", act=flag.raise_)


@pytest.fixture
def unlock(site: Site, flags: Callable[[str], Flag]) -> Iterator[Callable[[], None]]:
    """The registry is locked by another process; what is returned ends that."""
    locked, free = flags("locked"), flags("free")

    def keep() -> int:
        lock = sqlite3.connect(site.repository / "gen3.sqlite3", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        locked.raise_()
        free.wait()
        lock.execute("ROLLBACK")
        return 0

    process = start_fork(keep)
    locked.wait()
    yield free.raise_
    free.raise_()
    assert process.finish() == 0


@pytest.mark.every(2)
@pytest.mark.parametrize("model", MODELS)
def test_registry_is_locked_for_a_while(
    site: Site, undisturbed: EndState, unlock: Callable[[], None], flags: Callable[[str], Flag], model: str
) -> None:
    """It is waited for, and nobody notices."""
    waits = flags("waits")
    driver = start(site, model, together(impatient, telling(waits)))
    waits.wait()
    unlock()
    assert driver.finish() == 0
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.every(2)
@pytest.mark.parametrize("model", MODELS)
def test_registry_is_locked_for_too_long(
    site: Site, undisturbed: EndState, unlock: Callable[[], None], model: str
) -> None:
    """What was done is kept, and goes into the registry when it is free."""

    def give_up() -> None:
        retry = Patience.retry

        def once(patience: Patience, *args: Any, **kwargs: Any) -> Any:
            patience.patience_s = 0.0
            return retry(patience, *args, **kwargs)

        replace(Patience, "retry", once)

    assert begin(site, model, together(impatient, give_up)) == 2
    assert "is locked" in site.said
    unlock()
    assert resume(site, model) == 0
    check_end(site, undisturbed)


@pytest.mark.thorough
@pytest.mark.postgres
@pytest.mark.parametrize("model", MODELS)
def test_postgresql_is_started_anew(
    server: PostgresServer, undisturbed: EndState, tmp_path: Path, flags: Callable[[str], Flag], model: str
) -> None:
    """A server that is stopped in the middle of a run is waited for; all goes on when it is back."""
    began, stopped, waits = flags("began"), flags("stopped"), flags("waits")
    config = Config({"registry": {"db": server.url(server.make_database())}})
    site = make_site(make_small(tmp_path / "made", config), tmp_path)

    def meet() -> None:
        began.raise_()
        stopped.wait()

    driver = start(site, model, together(in_task(pair=meet), telling(waits)))
    began.wait()
    server.stop()
    try:
        stopped.raise_()
        waits.wait()
    finally:
        server.start()
    assert driver.finish() == 0
    assert resume(site, model) == 0
    check_alike(site, undisturbed)


@pytest.mark.thorough
@pytest.mark.postgres
def test_postgresql_is_away_when_a_run_is_gone_on_with(
    server: PostgresServer, undisturbed: EndState, tmp_path: Path
) -> None:
    """A run whose database does not answer is not gone on with; when it does, it is."""
    config = Config({"registry": {"db": server.url(server.make_database())}})
    site = make_site(make_small(tmp_path / "made", config), tmp_path)
    assert begin(site, fault=at_record(6, "before")) == KILLED
    server.stop()
    try:
        assert resume(site) == 2
    finally:
        server.start()
    assert resume(site) == 0
    check_alike(site, undisturbed)


def check_alike(site: Site, undisturbed: EndState) -> None:
    """Assert that all is as in a run of another graph of the same shape: only IDs differ."""
    state, problems = site.end()
    assert problems == []
    assert state.datasets.keys() == undisturbed.datasets.keys()
    assert (state.files, state.counts) == (undisturbed.files, undisturbed.counts)


# --- drivers --------------------------------------------------------------------------------------------


def books(site: Site) -> dict[str, bytes]:
    """Return what is in the journal's files and in the settings."""
    files = [site.run_dir / "run.json", *(site.run_dir / "journal").iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.every(2)
@pytest.mark.parametrize("model", MODELS)
def test_second_driver_is_refused(
    site: Site, undisturbed: EndState, flags: Callable[[str], Flag], model: str
) -> None:
    """While a driver lives no other one takes its run, forced or not; it says who holds it."""
    began, go = flags("began"), flags("go")

    def meet() -> None:
        began.raise_()
        go.wait()

    driver = start(site, model, in_task(calibrate=meet))
    began.wait()
    before = books(site)
    assert [resume(site, model), resume(site, model, force=True)] == [2, 2]
    assert site.said.count(f"is in the hands of process {driver.pid} on {socket.gethostname()}") == 2
    assert {name: content[: len(before[name])] for name, content in books(site).items()} == before
    go.raise_()
    assert driver.finish() == 0
    assert resume(site, model) == 0
    check_end(site, undisturbed)


def test_of_two_that_come_at_the_same_time_one_is_refused(
    site: Site, undisturbed: EndState, flags: Callable[[str], Flag]
) -> None:
    """Both have found the run free, and one gets it."""
    assert begin(site, fault=at_record(6, "after")) == KILLED
    arrived, go = flags("arrived"), flags("go")

    def meet() -> None:
        arrived.raise_()
        go.wait()

    both = [start_resume(site, fault=at_call(Journal, "create", act=meet)) for _ in range(2)]
    for _ in both:
        arrived.wait()
    for _ in both:
        go.raise_()
    assert sorted(driver.finish() for driver in both) == [0, 2]
    assert "took the run" in site.said
    check_end(site, undisturbed)


def test_driver_on_another_host(site: Site, undisturbed: EndState) -> None:
    """Whether it is gone cannot be seen: it takes --force, and the message says who that driver is."""
    assert begin(site, fault=at_record(6, "after")) == KILLED
    journal = site.run_dir / "journal" / "0001.jsonl"
    move_away(journal, "faraway")
    before = books(site)
    assert resume(site) == 2
    assert "on faraway" in site.said
    assert "--force" in site.said
    assert books(site) == before
    assert resume(site, force=True) == 0
    check_end(site, undisturbed)
