"""Each run has a graph of its own: what others write, replace or remove does not change it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.commands.qgexec import Command, Moods, call, one_message

Start = Callable[..., Command]

FAILED = "isr{visit: 1, detector: 3}"


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.thorough
def test_plan_leaves_a_run_alone(building: list[object], moods: Moods, start: Start, folder: Path) -> None:
    """To plan an extension of the RUN that a run in progress writes changes no file, and harms no quantum."""
    moods.set({"isr 1,1": "wait"})
    options = [*building, "--output-run", "u/me/run", "--register-dataset-types"]
    running = start("run", *options)
    moods.wait_for(1)
    before = _files(folder / "qgexec-runs")
    call("plan", *options, "--extend-run")
    assert _files(folder / "qgexec-runs") == before
    moods.let_go()
    assert running.finish().code == 0


def test_plan_keeps_no_graph(building: list[object], folder: Path) -> None:
    """A graph that was only built to be planned with is kept where it is asked for, and nowhere else."""
    assert call("plan", *building, "--register-dataset-types").code == 0
    assert _files(folder) == []
    assert call("plan", *building, "--register-dataset-types", "-q", "kept.qg").code == 0
    assert _files(folder) == ["kept.qg"]


def test_graph_is_replaced_after_the_run(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """Resume, log and debug read what the run began with, whatever is in the file that was given by now."""
    moods.set({"isr 1,3": "raise"})
    given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    assert call("run", *given, "--run-dir", "books").code == 1
    shutil.copyfile(repository.bare_graph, repository.graph)
    assert call("log", "books", FAILED).code == 0
    repository.graph.unlink()
    assert call("log", "books", "isr{visit: 1, detector: 1}").code == 0
    moods.set({})
    assert call("debug", "books", FAILED).code == 0
    assert call("resume", "books").code == 0


def test_graph_of_an_old_run_was_replaced(repository: MockRepository, folder: Path) -> None:
    """Where a run has no graph of its own, and another one is in its place, that is said in one message."""
    given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types", "--only", "isr"]
    assert call("run", *given, "--run-dir", "books").code == 0
    settings = json.loads(Path("books/run.json").read_text())
    settings["context"]["graph_file"] = str(repository.bare_graph)
    Path("books/run.json").write_text(json.dumps(settings))
    quantum = "isr{visit: 1, detector: 1}"
    said = (str(repository.bare_graph), "not the graph that the run began with", "Bring that one back")
    one_message(call("log", "books", quantum), *said)
    one_message(call("debug", "books", quantum), *said)


def test_graph_of_a_run_that_did_not_begin(building: list[object], folder: Path) -> None:
    """It is kept under a name of its own: nothing that is there is replaced."""
    options = [*building, "--output-run", "u/me/run"]
    for _ in range(2):
        assert call("run", *options).code == 2
    assert _files(folder) == ["qgexec-runs/u/me/run.qg", "qgexec-runs/u/me/run_2.qg"]
    given = [*building[:2], "-g", "qgexec-runs/u/me/run.qg", "--register-dataset-types"]
    found = call("plan", *given)
    assert found.code == 0, found.out
    assert f"{N_QUANTA} quanta" in found.out
