"""Paths with bytes that are not UTF-8, as they are on old disks, under any locale."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qgexec.processes.interpreter import module_command
from tests.kit.butler.repos import MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import call, one_message
from tests.kit.runs.handbooks import HandBooks, write_mixed

ODD = os.fsdecode(b"caf\xe9")
SAID = "bytes in this name that are not UTF-8"


@pytest.fixture
def odd(folder: Path) -> Path:
    path = folder / ODD
    path.mkdir()
    return path


def test_run_directory(odd: Path, repository: MockRepository) -> None:
    """The stack could not open the graph in it: nothing is left of one; what others have made is read."""
    given = ("-b", repository.root, "-g", repository.graph, "--register-dataset-types", "-j", "1")
    one_message(call("run", *given, "--run-dir", odd / "run"), "caf", SAID)
    assert [*odd.iterdir()] == []
    write_mixed(HandBooks(odd / "run"))
    for command in (["status"], ["report"], ["log", "3"]):
        said = call(command[0], odd / "run", *command[1:])
        assert (said.code, "Error" in said.err) == (command[0] != "log", False)


@pytest.mark.parametrize("command", ["run", "plan", "qgraph"])
def test_graph(command: str, odd: Path, repository: MockRepository) -> None:
    """The stack takes none: it is said which name, and what to do."""
    graph = odd / "graph.qg"
    graph.write_bytes(repository.graph.read_bytes())
    one_message(call(command, "-b", repository.root, "-g", graph), "caf", SAID)


def test_others(odd: Path, repository: MockRepository, building: list[object]) -> None:
    """Nor does it for a repository, a pipeline or a collection."""
    pipeline = odd / "pipeline.yaml"
    pipeline.write_bytes(repository.graph.with_name("pipeline.yaml").read_bytes())
    one_message(call("build", "-p", pipeline, "--show", "pipeline"), "caf", SAID)
    one_message(call("run", "-b", odd, "-g", repository.graph), "caf", SAID)
    one_message(call("run", *building[:-1], f"u/{ODD}"), "caf", SAID)


def test_current_folder(odd: Path, repository: MockRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack asks for it whatever it is to open."""
    monkeypatch.chdir(odd)
    one_message(call("run", "-b", repository.root, "-g", repository.graph), "caf", SAID)


def test_c_locale(tmp_path: Path) -> None:
    """Where all but ASCII is undecodable a path is what it is elsewhere."""
    write_mixed(HandBooks(tmp_path / "d\u00e9j\u00e0 vu"))
    done = subprocess.run(
        module_command("qgexec", "report", str(tmp_path / "d\u00e9j\u00e0 vu"), "--json"),
        env={
            **os.environ,
            "PYTHONPATH": PYTHONPATH,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert json.loads(done.stdout)["total"]["failed"] == 4
