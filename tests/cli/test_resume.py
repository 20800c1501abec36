"""`qgexec resume`: goes on with what a run has left, with the options it had or with others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qgexec.api import GraphExecutor
from qgexec.books.journal import journal_file
from qgexec.errors import UsageError
from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.commands.qgexec import Command, Moods, Result, call, datasets, one_message, report_of
from tests.kit.runs.damage import move_away

Start = Callable[..., Command]

DETECTORS = {f"{visit},{detector}" for visit in (1, 2) for detector in (1, 2, 3, 4)}


@pytest.fixture
def books(folder: Path) -> Path:
    """The run directory of the test's run."""
    return folder / "books"


def _run(repository: MockRepository, *options: object) -> Result:
    given = ["--register-dataset-types", "--run-dir", "books"]
    return call("run", "-b", repository.root, "-g", repository.graph, *given, *options)


def _options(books: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((books / "run.json").read_text())["options"]
    return options


def _journal(books: Path, epoch: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal_file(books / "journal", epoch).read_text().splitlines()]


@pytest.mark.every(2)
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_failures_are_run_again_and_nothing_else(
    repository: MockRepository, moods: Moods, books: Path, model: str
) -> None:
    """Only what failed, and what that had blocked, is executed; the report is that of one whole run."""
    moods.set({"isr 1,3": "raise"})
    assert _run(repository, "--model", model).code == 1
    assert report_of(books)["total"]["succeeded"] == N_QUANTA - 4
    moods.set({})
    again = call("resume", books, "--model", model)
    assert again.code == 0, again.err
    started = [event["i"] for event in _journal(books, 2) if event.get("e") == "start"]
    assert len(started) == len(set(started)) == 4
    total = report_of(books)["total"]
    assert (total["succeeded"], total["ingested"], total["failed"]) == (N_QUANTA, N_QUANTA, 0)
    for name in ("post_isr", "calibrated", "isr_log", "isr_metadata"):
        assert datasets(repository, name) == DETECTORS


def test_a_failure_that_stays(repository: MockRepository, moods: Moods, books: Path) -> None:
    """A quantum that fails again has failed again: exit code 1, and the command that goes on is the same."""
    moods.set({"isr 1,3": "raise"})
    assert _run(repository).code == 1
    again = call("resume", books)
    assert again.code == 1
    assert f"qgexec resume {books}" in again.err
    (failure,) = report_of(books)["failures"]
    assert len(failure["attempts"]) == 2


def test_nothing_left_to_do(repository: MockRepository, books: Path) -> None:
    """A run that has succeeded is found so, and nothing is executed."""
    assert _run(repository).code == 0
    before = repository.dump()
    again = call("resume", books)
    assert again.code == 0
    told = {event.get("e") for event in _journal(books, 2)}
    assert "run" in told
    assert "start" not in told
    assert repository.dump() == before


@pytest.mark.thorough
def test_options_stay_until_others_are_given(repository: MockRepository, moods: Moods, books: Path) -> None:
    """What is not given is as it was, also at the next resume; what is given holds from now on."""
    moods.set({"isr 1,3": "raise"})
    assert _run(repository, "--max-failures", "7", "--memory-per-quantum", "1GB").code == 1
    assert call("resume", books, "-j", 2, "--retries", 1, "--memory-per-quantum", "2GB").code == 1
    assert [event["a"] for event in _journal(books, 2) if event.get("e") == "fail"] == [2, 3]
    assert call("resume", books).code == 1
    assert [_journal(books, epoch)[1]["m"] for epoch in (1, 2, 3)] == ["inprocess", "pool", "pool"]
    options = _options(books)
    assert (options["max_failures"], options["processes"]) == ("7", 2)
    common = options["config"]["common"]
    assert (common["n_retries"], common["memory_bytes"]) == (1, 2_000_000_000)


def test_a_run_that_goes_on_is_left_alone(
    repository: MockRepository, moods: Moods, start: Start, books: Path
) -> None:
    """While a driver has the run in hand nobody else gets it; the message says who has it."""
    moods.set({"isr 1,1": "wait"})
    given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    command = start(*given, "--run-dir", books, "-j", 2)
    moods.wait_for(1)
    refused = call("resume", books, "--force")
    one_message(refused, "is in the hands of process")
    assert not journal_file(books / "journal", 2).exists()
    moods.let_go()
    assert command.finish().code == 0


def test_a_driver_on_another_host(repository: MockRepository, books: Path) -> None:
    """A run whose driver was elsewhere is taken over only by force."""
    assert _run(repository).code == 0
    # As if it had been killed: its last word is missing.
    file = journal_file(books / "journal", 1)
    move_away(file, "another-host", n_lines=-1)
    os.utime(file)
    one_message(call("resume", books, "--force"), "on another-host", "gave a sign of life")
    os.utime(file, (1e9, 1e9))
    refused = call("resume", books)
    one_message(refused, "on another-host", "--force")
    assert not journal_file(books / "journal", 2).exists()
    assert call("resume", books, "--force").code == 0


def test_a_run_directory_that_moved(repository: MockRepository, moods: Moods, books: Path) -> None:
    """A run directory may be moved, with what it holds."""
    moods.set({"isr 1,3": "raise"})
    bare = ["run", "-b", repository.root, "-g", repository.bare_graph, "--register-dataset-types"]
    assert call(*bare, "--run-dir", books).code == 1
    moved = books.with_name("elsewhere")
    books.rename(moved)
    moods.set({})
    assert call("resume", moved).code == 0
    assert datasets(repository, "calibrated") == DETECTORS


def test_a_graph_that_is_gone(repository: MockRepository, books: Path) -> None:
    """Without the graph there is nothing to go on with: one message, and nothing changed."""
    assert _run(repository).code == 0
    (books / "graph.qg").unlink()
    one_message(call("resume", books), "is not there any more", str(books / "graph.qg"))
    assert not journal_file(books / "journal", 2).exists()


def test_a_repository_that_is_gone(repository: MockRepository, books: Path) -> None:
    """Without the repository nothing is done, and the run can be resumed when it is back."""
    assert _run(repository).code == 0
    away = repository.root.with_name("away")
    shutil.move(repository.root, away)
    one_message(call("resume", books), str(repository.root))
    shutil.move(away, repository.root)
    assert call("resume", books).code == 0


@pytest.mark.thorough
def test_software_that_changed(
    repository: MockRepository, books: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What changed is named, and refused if that is asked for; what was refused has changed nothing."""
    assert _run(repository).code == 0
    with repository.butler(writeable=True) as butler:
        (ref,) = butler.query_datasets("packages", "*", find_first=False)
        packages = butler.get(ref)
        packages["numpy"] = "0.1"
        butler.pruneDatasets([ref], disassociate=True, unstore=True, purge=True)
        butler.put(packages, ref)
    one_message(call("resume", books, "--strict-versions"), "numpy", "0.1")
    assert not journal_file(books / "journal", 2).exists()
    assert call("resume", books).code == 0
    assert "numpy" in caplog.text
    assert call("resume", books, "--strict-versions").code == 0


def test_another_execution_model_that_is_none(repository: MockRepository, books: Path) -> None:
    """A name that no model has is refused, and nothing changed."""
    assert _run(repository).code == 0
    one_message(call("resume", books, "--model", "poool"), "poool", "pool")
    assert not journal_file(books / "journal", 2).exists()


def test_no_such_option_from_python(repository: MockRepository, books: Path) -> None:
    """An option that a run does not have is named."""
    assert _run(repository).code == 0
    with pytest.raises(UsageError, match="speed"):
        GraphExecutor.of_run(books, speed=11)


def test_resume_needs_a_run(repository: MockRepository) -> None:
    """An executor that was not made from a run directory has nothing to resume."""
    with pytest.raises(UsageError, match="no run to go on with"):
        GraphExecutor(str(repository.root)).resume()
