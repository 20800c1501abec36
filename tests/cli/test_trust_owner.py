"""Commands on run directories that others could have written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qgexec.batch.rounds import Round
from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import call, one_message
from tests.kit.runs.handbooks import HandBooks, write_mixed

ACTING = (
    ["resume"],
    ["collect"],
    ["collect", "--round", "1"],
    ["cancel"],
    ["worker", "--quantum", "0"],
    ["worker", "--job", "0"],
    ["submit"],
    ["debug", "0"],
)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A run directory to which everybody may write."""
    made = HandBooks(tmp_path / "run")
    write_mixed(made)
    made.run_dir.settings_file.chmod(0o666)
    return tmp_path / "run"


def _words(command: list[str], run_dir: Path) -> list[str | Path]:
    return [command[0], run_dir, *command[1:]]


@pytest.mark.parametrize("command", ACTING, ids=" ".join)
def test_acting(command: list[str], books: Path) -> None:
    """All that acts refuses it before anything is read; with --trust-owner it comes to the next fault."""
    before = {path: path.stat().st_mtime_ns for path in books.rglob("*")}
    refused = call(*_words(command, books))
    one_message(refused, f"{books / 'run.json'} can be written by everybody", "--trust-owner", "chmod o-w")
    assert {path: path.stat().st_mtime_ns for path in books.rglob("*")} == before
    (books / "run.json").write_text("{}")
    one_message(call(*_words(command, books), "--trust-owner"), f"{books / 'run.json'} is damaged")


@pytest.mark.parametrize("command", [["status"], ["report"], ["log", "3"]])
def test_reading(command: list[str], books: Path) -> None:
    """What only reads takes anybody's."""
    said = call(*_words(command, books))
    assert (said.code, said.err.startswith("Error")) == (command[0] != "log", False)


def test_log_in_the_repository(books: Path) -> None:
    """The repository is one that the run directory names: nothing of it is opened."""
    one_message_of = call("log", books, "0")
    assert one_message_of.code == 2
    assert "can be written by everybody" in one_message_of.err
    assert "graph file /graph.qg does not exist" in call("log", books, "0", "--trust-owner").err


@pytest.mark.parametrize("command", [["resume", "-j", "1"], ["worker", "--quantum", "0"]])
def test_what_is_named_as_executor(
    command: list[str], repository: MockRepository, folder: Path, tmp_path: Path
) -> None:
    """Also in a directory of one's own nothing is called that makes no executors."""
    given = ("-b", repository.root, "-g", repository.graph, "--register-dataset-types", "--only", "isr")
    assert call("run", *given, "-j", "1", "--run-dir", folder / "run").code == 0
    settings = folder / "run" / "run.json"
    values = json.loads(settings.read_text())
    values["options"]["own_executor"] = {
        "path": "os:system",
        "arguments": {"command": f"touch {tmp_path}/called"},
    }
    settings.write_text(json.dumps(values))
    one_message(call(*_words(command, folder / "run")), "os:system is no quantum executor")
    assert not (tmp_path / "called").exists()


def test_new_run_where_others_could_have_begun_one(repository: MockRepository, folder: Path) -> None:
    """What looks like a start that was killed is taken up by nobody whom it might deceive."""
    (folder / "run" / "journal").mkdir(parents=True)
    (folder / "run").chmod(0o777)
    given = ("-b", repository.root, "-g", repository.graph)
    one_message(call("run", *given, "--run-dir", folder / "run"), "can be written by everybody")


def test_no_run_directory_to_trust(repository: MockRepository) -> None:
    """A new run has none."""
    given = ("-b", repository.root, "-g", repository.graph, "--model", "slurm")
    one_message(call("submit", *given, "--trust-owner"), "--trust-owner is about a run directory")


def test_jobs_are_told(books: Path) -> None:
    """Who was told to trust a run directory tells its jobs; otherwise they check for themselves."""
    batch_round = Round(books / "batch" / "0001", 1, "name", "slurm", None, None, ("qgexec",))  # type: ignore[arg-type]
    assert batch_round.job_command("7")[3:] == ("--trust-owner", "--round", "1", "--job", "7")
    assert batch_round.closing_command()[3:] == ("--trust-owner", "--round", "1")
    (books / "run.json").chmod(0o644)
    assert batch_round.job_command("7")[3:] == ("--round", "1", "--job", "7")
