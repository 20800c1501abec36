"""`qgexec.rubin.preflight`: every problem of a run at once, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from qgexec.rubin import preflight as preflight_module
from qgexec.rubin.graphfile import prepare_graph
from qgexec.rubin.preexec import Preparation, prepare_run
from qgexec.rubin.preflight import Check, Preflight, preflight
from tests.kit.butler.brokengraphs import without_task_class
from tests.kit.butler.repos import INPUT_CHAIN, N_QUANTA, OUTPUT_RUN, MockRepository

REGISTER = Preparation(register_dataset_types=True)


def _look(
    repository: MockRepository, folder: Path, asked: Preparation = REGISTER, graph: Path | None = None
) -> Preflight:
    """Look, and see that nothing has changed."""
    (folder / "scratch").mkdir(exist_ok=True)
    before = repository.dump()
    found = preflight(
        str(repository.root), graph or repository.graph, folder / "scratch", folder / "runs" / "run", asked
    )
    assert repository.dump() == before
    assert not (folder / "runs").exists()
    return found


def _wrong(found: Preflight) -> dict[str, Check]:
    return {check.about: check for check in found.checks if not check.is_well}


def test_all_is_well(repository: MockRepository, tmp_path: Path) -> None:
    """What would be done is said."""
    found = _look(repository, tmp_path)
    assert found.is_well
    words = {check.about: check.words for check in found.checks}
    assert list(words) == [
        *("repository", "graph", "collections", "dataset types", "init-outputs"),
        *("run directory", "datastore"),
    ]
    assert f"{N_QUANTA} quanta of 4 tasks" in words["graph"]
    assert words["collections"].startswith(f"output RUN {OUTPUT_RUN} is new")
    assert words["dataset types"].startswith("to be registered: ")
    assert "to be written" in words["init-outputs"]


def test_a_run_that_is_extended(repository: MockRepository, tmp_path: Path) -> None:
    """What is there already is compared."""
    prepare_run(str(repository.root), prepare_graph(repository.graph, tmp_path, None), REGISTER)
    found = _look(repository, tmp_path, Preparation(extend_run=True))
    assert found.is_well
    words = {check.about: check.words for check in found.checks}
    assert "is extended" in words["collections"]
    assert words["dataset types"] == "all are registered"
    assert words["init-outputs"] == "all are there, and agree"


def test_all_problems_at_once(repository: MockRepository, tmp_path: Path) -> None:
    """One does not hide the others."""
    asked = Preparation(inputs=("no_such_input", INPUT_CHAIN), extend_run=True)
    graph = without_task_class(repository.graph, tmp_path / "graph.qg")
    wrong = _wrong(_look(repository, tmp_path, asked, graph))
    assert "no_such_package.NoSuchTask" in wrong["graph"].words
    assert "does not exist and cannot be extended" in wrong["collections"].words
    assert "are not registered" in wrong["dataset types"].words
    assert all(check.hint for check in wrong.values())


def test_no_repository(repository: MockRepository, tmp_path: Path) -> None:
    """The graph is looked at even so."""
    found = preflight(str(tmp_path / "nowhere"), repository.graph, tmp_path, tmp_path / "run", REGISTER)
    assert "no butler repository" in _wrong(found)["repository"].words
    assert found.graph is not None
    assert found.collections is None


@pytest.mark.parametrize("name", ["missing.qg", "missing.qgraph"])
def test_no_graph(repository: MockRepository, tmp_path: Path, name: str) -> None:
    """There is nothing to say of the registry then."""
    found = _look(repository, tmp_path, graph=tmp_path / name)
    assert "does not exist" in _wrong(found)["graph"].words
    assert found.graph is None
    assert "collections" not in {check.about for check in found.checks}


def test_no_room(repository: MockRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is named, with what it has and what is needed."""
    full = SimpleNamespace(disk_usage=lambda _: shutil._ntuple_diskusage(10, 10, 0))
    monkeypatch.setattr(preflight_module, "shutil", full)
    wrong = _wrong(_look(repository, tmp_path))
    assert list(wrong) == ["run directory", "datastore"]
    assert str(tmp_path / "runs" / "run") in wrong["run directory"].words
    assert "are needed" in wrong["run directory"].words
