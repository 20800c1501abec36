"""`qgexec worker` and `qgexec collect`, wrongly used or unlucky; what they do is tested with the examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import DEADLINE_S, call, one_message
from tests.kit.processes import warm


@pytest.fixture
def books(repository: MockRepository, folder: Path) -> Path:
    """The books of a run that has ended."""
    given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    assert call(*given, "--run-dir", "books").code == 0
    return folder / "books"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--quantum", "19"), "19"),
        (("--quantum", "-1"), "--quantum"),
        (("--quantum", "isr"), "--quantum"),
        ((), "--quantum"),
    ],
)
def test_no_such_quantum(books: Path, arguments: tuple[str, ...], said: str) -> None:
    """It is named; nothing is executed."""
    before = sorted(books.rglob("*"))
    one_message(call("worker", books, *arguments), said)
    assert sorted(books.rglob("*")) == before


@pytest.mark.parametrize("command", [["worker", "--quantum", "0"], ["collect"]])
def test_no_run(command: list[str], folder: Path) -> None:
    """A run directory that is not there is named."""
    one_message(call(*command, "nowhere"), "nowhere", "does not exist")


def test_collecting_again(books: Path) -> None:
    """Where all is in the registry already nothing is taken in, and nothing goes wrong."""
    assert call("collect", books).out == "0 datasets were taken into the registry.\n"


def test_demo_in_the_way(folder: Path) -> None:
    """A folder that holds something else is never replaced."""
    (folder / "thesis.tex").touch()
    one_message(call("demo", folder, "--overwrite"), "is not empty", "Choose another folder")
    assert [*folder.iterdir()] == [folder / "thesis.tex"]


@pytest.mark.parametrize("command", [["worker", "nowhere", "--job", "0"], ["collect", "nowhere"], ["models"]])
def test_nobody_can_be_told(command: list[str]) -> None:
    """On a full disk what went wrong cannot be printed; that is no verdict over quanta, whose code is 1."""
    with Path("/dev/full").open("w") as full:
        process = [sys.executable, "-m", "qgexec", *command]
        done = warm.run(process, stdout=full, stderr=full, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2


def test_what_nobody_has_foreseen(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """It is shown whole, and is no verdict either."""

    def broken(run_dir: Path, *, force: bool, trust_owner: bool) -> int:
        raise ZeroDivisionError("no quanta at all")

    monkeypatch.setattr("qgexec.offline.collect", broken)
    result = call("collect", folder)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "no quanta at all" in result.err
