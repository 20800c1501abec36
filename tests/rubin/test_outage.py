"""Patience: which errors of databases pass, and an ingester whose PostgreSQL is stopped and started."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Config
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError

from qgexec.errors import IngestError, RepositoryError
from qgexec.rubin.ingest import Ingester, IngesterOpener
from qgexec.rubin.outage import Patience, in_words, is_full, is_gone, is_locked
from tests.kit.butler.benchwork import Site, prepare_outputs, registered
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, add_standard_tasks, open_repository, save_graph
from tests.kit.processes.postgres import PostgresServer


class FakeDriverError(Exception):
    """What psycopg raises, as far as anybody looks."""

    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database trouble")
    error.sqlite_errorcode = code
    return error


def operational(cause: BaseException, **kwargs: Any) -> OperationalError:
    return OperationalError("SELECT 1", None, cause, **kwargs)


@pytest.mark.parametrize(
    ("cause", "full"),
    [(sqlite_error(13), True), (sqlite_error(5), False), (FakeDriverError("full", "53100"), True)],
)
def test_database_without_room(cause: Exception, full: bool) -> None:
    """A full disk below a database is told from all else that it may refuse for."""
    error = ValueError("upstream's words")
    error.__cause__ = operational(cause)
    assert is_full(error) is full


@pytest.mark.parametrize(
    ("error", "locked", "gone"),
    [
        (operational(sqlite_error(5)), True, False),
        (operational(sqlite_error(6 | 1 << 8)), True, False),
        (operational(sqlite_error(13)), False, False),
        (operational(sqlite3.OperationalError("no code")), False, False),
        (operational(FakeDriverError("deadlock", "40P01")), True, False),
        (operational(FakeDriverError("terminating connection", "57P01")), False, True),
        (operational(FakeDriverError("starting up", "57P03")), False, True),
        (operational(FakeDriverError("connection failure", "08006")), False, True),
        (operational(FakeDriverError("disk full", "53100")), False, False),
        (operational(FakeDriverError("Connection refused")), False, True),
        (operational(FakeDriverError('FATAL: database "x" does not exist')), False, False),
        (operational(FakeDriverError("FATAL: password authentication failed")), False, False),
        (operational(FakeDriverError("?", "42601"), connection_invalidated=True), False, True),
        (InterfaceError("SELECT 1", None, FakeDriverError("connection already closed")), False, True),
        (IntegrityError("INSERT", None, FakeDriverError("unique", "23505")), False, False),
        (ProgrammingError("SELEC", None, FakeDriverError("syntax", "42601")), False, False),
        (ValueError("no database"), False, False),
    ],
)
def test_what_passes(error: Exception, locked: bool, gone: bool) -> None:
    """Locked, gone, or for good; also where upstream has wrapped it."""
    wrapped = RepositoryError("cannot be opened")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert (is_locked(each), is_gone(each)) == (locked, gone)


def test_what_an_error_says() -> None:
    """Statements with the values of a thousand datasets are not for the eye."""
    plain = OperationalError("INSERT", [1] * 1000, sqlite3.OperationalError("disk is full"))
    wrapped = RuntimeError(f"upstream's words: {plain}")
    wrapped.__cause__ = plain
    assert in_words(plain) == "OperationalError: disk is full"
    assert in_words(wrapped).startswith("RuntimeError: upstream's words: ")
    assert in_words(wrapped).endswith(" (disk is full)")
    assert "INSERT" not in in_words(wrapped)
    assert in_words(ValueError("no database")) == "ValueError: no database"


class Clock:
    """A clock that only sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s

    def read(self) -> float:
        return self.now


def test_connection_is_let_go_before_another_try() -> None:
    """A database that has gone is connected to anew; one that is locked is not."""
    errors: list[Exception] = [
        operational(sqlite_error(5)),
        operational(FakeDriverError("gone", "57P01")),
        operational(FakeDriverError("Connection refused")),
    ]
    told: list[str] = []

    def act() -> str:
        told.append("try")
        if errors:
            raise errors.pop(0)
        return "done"

    clock = Clock()
    patience = Patience(60.0, sleep=clock.sleep, clock=clock.read)
    assert patience.retry(act, disconnect=lambda: told.append("let go")) == "done"
    assert told == ["try", "try", "let go", "try", "let go", "try"]
    assert clock.pauses == sorted(clock.pauses)


@pytest.fixture
def site(server: PostgresServer, tmp_path: Path) -> Iterator[Site]:
    """The standard repository on PostgreSQL, outputs prepared; the server runs before and after."""
    repository = MockRepository(tmp_path / "repo", tmp_path / "graph.qg", tmp_path / "bare.qg")
    config = Config({"registry": {"db": server.url(server.make_database())}})
    with open_repository(repository.root, config=config) as repo:
        add_standard_tasks(repo)
        save_graph(repo, repository.graph)
    prepare_outputs(repository)
    yield Site(repository, tmp_path / "run")
    server.stop()
    server.start()


def opener(site: Site) -> IngesterOpener:
    return IngesterOpener(str(site.repository.root), OUTPUT_RUN, patience_s=60.0, run_dir=str(site.run_dir))


class Restart(Clock):
    """Waiting, in which somebody starts the server again the third time."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self._start = server.start

    def sleep(self, pause_s: float) -> None:
        super().sleep(pause_s)
        if len(self.pauses) == 3:
            self._start()


@pytest.mark.thorough
@pytest.mark.postgres
def test_server_that_is_started_again(site: Site, server: PostgresServer) -> None:
    """Outputs are taken in, and what was lost is removed, when the server is back; each exactly once."""
    site.keep_books()
    details = list(site.run(("isr", "calibrate")).details.values())
    clock = Restart(server)
    ingester = Ingester(opener(site), sleep=clock.sleep, clock=clock.read)
    assert ingester.ingest(details[:5]) > 0
    server.stop()
    ingester.ingest(details[5:12])
    assert len(clock.pauses) == 3
    clock.pauses.clear()
    server.stop()
    ingester.discard(range(12, 19))
    assert len(clock.pauses) == 3
    ingester.ingest(details[:12])
    ingester.close()
    assert len([name for name in registered(site.repository) if "_log" in name]) == 12


@pytest.mark.thorough
@pytest.mark.postgres
def test_server_that_is_started_again_while_it_is_opened(site: Site, server: PostgresServer) -> None:
    """An ingester that is opened while the server is down waits for it."""
    details = list(site.run(("isr",)).details.values())
    clock = Restart(server)
    server.stop()
    ingester = Ingester(opener(site), sleep=clock.sleep, clock=clock.read)
    assert len(clock.pauses) == 3
    assert ingester.ingest(details) > 0
    ingester.close()
    registered(site.repository)


@pytest.mark.thorough
@pytest.mark.postgres
def test_server_that_stays_away(site: Site, server: PostgresServer) -> None:
    """A server that stays away is an error after the time given, when opening and when ingesting."""
    details = list(site.run(("isr",)).details.values())
    clock = Clock()
    ingester = Ingester(opener(site), sleep=clock.sleep, clock=clock.read)
    server.stop()
    attempts: list[tuple[type[Exception], Callable[[], object]]] = [
        ((IngestError, RepositoryError), lambda: ingester.ingest(details)),  # type: ignore[list-item]
        (RepositoryError, lambda: Ingester(opener(site), sleep=clock.sleep, clock=clock.read)),
    ]
    for expected, attempt in attempts:
        clock.pauses.clear()
        with pytest.raises(expected, match=r"cannot be (opened|reached)"):
            attempt()
        assert 30 < sum(clock.pauses) <= 60
    ingester.close()
    server.start()
    assert "isr_log" not in str(registered(site.repository).keys())


@pytest.mark.thorough
@pytest.mark.postgres
def test_database_that_does_not_exist(site: Site, server: PostgresServer) -> None:
    """What will not pass is an error at once."""
    config = site.repository.root / "butler.yaml"
    config.write_text(config.read_text().replace("/peer", "/nowhere"))
    clock = Clock()
    with pytest.raises(RepositoryError, match="nowhere"):
        Ingester(opener(site), sleep=clock.sleep, clock=clock.read)
    assert clock.pauses == []
