"""Addresses where paths are wanted, and files at addresses that cannot be reached: one message each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import call, one_message


@pytest.mark.parametrize("option", ["--run-dir", "--resources"])
def test_address_instead_of_a_path(option: str, repository: MockRepository, folder: Path) -> None:
    """It is refused, and no folder of that name is made."""
    given = ["-b", repository.root, "-g", repository.graph]
    one_message(call("run", *given, option, "s3://bucket/name"), "s3://bucket/name", "of this machine")
    assert list(folder.iterdir()) == []


def test_address_of_this_machine(repository: MockRepository, folder: Path) -> None:
    """``file://`` is a path."""
    (folder / "site.yaml").touch()
    given = ["-b", repository.root, "-g", repository.graph, "--resources", f"file://{folder}/site.yaml"]
    assert call("plan", *given, "--run-dir", f"file://{folder}/run").code in (0, 2)
    assert [path.name for path in folder.iterdir()] == ["site.yaml"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere://bucket/graph", "cannot be reached"),
        ("resource://qgexec/graph", "does not exist"),
    ],
)
@pytest.mark.parametrize("suffix", [".qg", ".qgraph"])
def test_graph(address: str, suffix: str, said: str, repository: MockRepository, folder: Path) -> None:
    """Whatever upstream, or the library of an object store, raises for it."""
    graph = address + suffix
    one_message(call("run", "-b", repository.root, "-g", graph), f"graph file {graph} {said}")
    one_message(call("qgraph", "-g", graph, "--show", "workflow"), f"graph file {graph} {said}")
    planned = call("plan", "-b", repository.root, "-g", graph)
    assert (planned.code, planned.err) == (2, "")
    assert said in " ".join(planned.out.split())
    assert list(folder.iterdir()) == []


def test_one_name_in_two_repositories(
    repository: MockRepository, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second run is told whose the run directory without a number is."""
    other = shutil.copytree(repository.root, folder / "other")
    given = ["-g", repository.graph, "--register-dataset-types", "--only", "isr{visit: 1, detector: 1}"]
    assert call("run", "-b", repository.root, *given).code == 0
    assert "another repository" not in caplog.text
    assert call("run", "-b", other, *given).code == 0
    assert f"run on another repository, {repository.root}" in caplog.text
