"""Every command once as users start it, in an interpreter of its own; all other tests start forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qgexec.cli.main import SECTIONS
from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import DEADLINE_S, datasets


def program(folder: Path, *arguments: object, code: int = 0) -> str:
    """Run `qgexec` in a new interpreter, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "qgexec", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_run_and_report(repository: MockRepository, folder: Path) -> None:
    """A run in workers of a new server, and what is said of it."""
    given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types", "-j", 2]
    assert f"{N_QUANTA}/{N_QUANTA} succeeded" in program(folder, "run", *given, "--run-dir", "books")
    assert str(N_QUANTA) in program(folder, "status", "books")
    assert "isr" in program(folder, "report", "books")
    assert len(datasets(repository, "calibrated")) == 8


@pytest.mark.thorough
def test_all(building: list[object], repository: MockRepository, folder: Path) -> None:
    """Each of the commands ends well; none is forgotten here."""
    graph = ["-b", repository.root, "-g", "new.qg"]
    ended: set[str] = set()

    def call(command: str, *arguments: object, code: int = 0) -> str:
        ended.add(command)
        return program(folder, command, *arguments, code=code)

    assert "isr" in call("build", "-p", building[3], "--show", "pipeline")
    call("qgraph", *building, "--save-qgraph", "new.qg")
    call("update-graph-run", "new.qg", "u/me/other", "other.qg")
    assert f"{N_QUANTA}" in call("plan", *graph, "--register-dataset-types")
    call("init", *graph, "--register-dataset-types")
    call("run", *graph, "--extend-run", "--run-dir", "books", "-j", 2)
    call("resume", "books")
    call("cancel", "books")
    call("collect", "books")
    call("status", "books")
    call("report", *graph, "--full-output-filename", "report.json")
    call("aggregate-reports", "report.json")
    assert "isr" in call("log", "books", 0)
    call("debug", "books", 0)
    call("worker", "books", "--quantum", 0)
    call("cleanup", "-b", repository.root, "--no-confirm", "u/me")
    call("purge", "-b", repository.root, "--no-confirm", "u/me")
    with repository.butler() as butler:
        assert not butler.collections.query("u/me*")
    assert "slurm" in call("models")
    assert "Slurm" in call(
        "submit", "-b", repository.root, "-g", repository.graph, "--model", "slurm", code=2
    )
    call("demo", "no such folder", "--visits", 0, code=2)
    assert ended == {name for commands in SECTIONS.values() for name in commands}
