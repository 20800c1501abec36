"""A PostgreSQL server of the tests' own, on a socket in a folder of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

__all__ = ["PostgresServer", "find_programs", "start_server"]

_USER = "postgres"
_DRIVER = "psycopg" if find_spec("psycopg") else "psycopg2"
"""What ``lsst-daf-butler[postgres]`` brings: its versions of 30.0 the older one."""
_START_S = 60.0


def find_programs() -> Path | None:
    """Return the folder of the newest server's programs; `None` where it cannot be run."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found or shutil.which("setpriv") is None:
        return None
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return None
    return found[-1].parent


class PostgresServer:
    """A server; made by `start_server`, and running then.

    Parameters
    ----------
    programs
        Folder of ``psql`` and the others.
    folder
        Where its socket is.
    command
        What runs it.
    """

    def __init__(self, programs: Path, folder: Path, command: list[str | Path]) -> None:
        self._programs = programs
        self._folder = folder
        self._command = command
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(self._command, stdout=log, stderr=log, cwd="/")
        try:
            _wait_until_ready(self._programs, self._server, self._folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and all connections to it; may be called twice."""
        server, self._server = self._server, None
        if server is not None:
            _end(server)

    def url(self, database: str) -> str:
        """Return the address of a database, for SQLAlchemy."""
        return f"postgresql+{_DRIVER}://{_USER}@/{database}?host={quote(str(self._folder), safe='')}"

    def make_database(self, template: str = "template1") -> str:
        """Make a database, as a copy of another one that nobody is connected to; it goes with the server."""
        name = f"peer{next(self._numbers)}"
        self._sql("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        self._sql(name, "CREATE EXTENSION IF NOT EXISTS btree_gist")
        return name

    def _sql(self, database: str, statement: str) -> None:
        psql: list[str | Path] = [self._programs / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        address = [f"--host={self._folder}", f"--username={_USER}", f"--dbname={database}"]
        subprocess.run([*psql, *address, f"--command={statement}"], check=True, timeout=_START_S)


@contextlib.contextmanager
def start_server(programs: Path) -> Iterator[PostgresServer]:
    """Start a server that nobody else can reach, and end it."""
    # Not below pytest's own folder: that one is root's alone, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="peer-pg-"))
    try:
        # The kernel ends the server when this process is gone, whatever kills it.
        run_as: list[str | Path] = ["setpriv", "--pdeathsig=INT"]
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
            run_as += [f"--reuid={_USER}", f"--regid={_USER}", "--init-groups"]
        data = folder / "data"
        initdb: list[str | Path] = [
            programs / "initdb",
            f"--pgdata={data}",
            f"--username={_USER}",
            "--auth=trust",
            "--no-sync",
        ]
        with (folder / "log").open("wb") as log:
            subprocess.run([*run_as, *initdb], check=True, stdout=log, cwd="/", timeout=_START_S)
            options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
            settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        server = PostgresServer(programs, folder, [*run_as, programs / "postgres", "-D", data, *settings])
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _wait_until_ready(programs: Path, server: subprocess.Popen[bytes], folder: Path) -> None:
    """Ask with PostgreSQL's own program, some milliseconds a time, until the server answers."""
    ready: list[str | Path] = [programs / "pg_isready", f"--host={folder}", "--quiet"]
    until = time.monotonic() + _START_S
    while subprocess.run(ready, check=False, timeout=_START_S).returncode != 0:
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"PostgreSQL did not start:\n{(folder / 'log').read_text()}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # "fast shutdown": connections are ended
    try:
        server.wait(_START_S)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)  # "immediate shutdown"; it takes its children along
        server.wait(_START_S)
