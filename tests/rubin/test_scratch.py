"""Tests of `qgexec.rubin.scratch` and `qgexec.rubin.logdataset`, on real repositories."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from lsst.daf.butler import Config

from qgexec.errors import RepositoryError
from qgexec.rubin.graphfile import read_plan
from qgexec.rubin.logdataset import read_log
from qgexec.rubin.scratch import Scratch, open_scratch
from qgexec.scheduling.plan import Plan
from tests.kit.butler.benchwork import Site, prepare_outputs
from tests.kit.butler.repos import (
    MockRepository,
    add_standard_tasks,
    copy_template,
    open_repository,
    save_graph,
)
from tests.kit.tasks.moods import MoodyTask, mood, raising

CHAIN = """
datastore:
  cls: lsst.daf.butler.datastores.chainedDatastore.ChainedDatastore
  datastores:
    - datastore: {cls: lsst.daf.butler.datastores.inMemoryDatastore.InMemoryDatastore}
    - datastore:
        cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
        root: ROOT
        records: {table: first_records}
        constraints: {reject: [final_report]}
    - datastore:
        cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
        root: <butlerRoot>/second
        records: {table: second_records}
"""


def make(folder: Path, config: Config | None = None) -> MockRepository:
    """Make the standard repository with tasks that have moods, outputs prepared."""
    repository = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(repository.root, config=config) as repo:
        add_standard_tasks(repo, task_classes={"isr": MoodyTask, "calibrate": MoodyTask})
        save_graph(repo, repository.graph)
    prepare_outputs(repository)
    return repository


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A repository that is not to be written to."""
    return make(tmp_path_factory.mktemp("moody"))


@pytest.fixture
def repository(moody: MockRepository, tmp_path: Path) -> MockRepository:
    """A copy of the test's own."""
    return copy_template(moody, tmp_path / "data")


def first(plan: Plan, label: str) -> int:
    return next(node.index for node in plan if node.task_label == label)


@contextlib.contextmanager
def scratch(repository: MockRepository, label: str, folder: Path) -> Iterator[Scratch]:
    """Open a scratch for the first quantum of a task."""
    folder.mkdir()
    plan = read_plan(repository.graph)
    quantum_id = plan.quantum_id(first(plan, label))
    with open_scratch(str(repository.root), str(repository.graph), label, quantum_id, folder) as opened:
        yield opened


def everything(repository: MockRepository) -> tuple[dict[str, object], dict[str, tuple[int, int]]]:
    """Return the registry, and every file with its size and time."""
    files = (path for path in sorted(repository.root.rglob("*")) if path.is_file())
    stats = {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
    return repository.dump(), stats


def test_overall_inputs(repository: MockRepository, tmp_path: Path) -> None:
    """They are read by the graph's records; outputs, metadata and log are in the folder, and nowhere else."""
    before = everything(repository)
    with scratch(repository, "isr", tmp_path / "s") as opened:
        assert opened.missing_inputs() == []
        opened.execute()
        outputs = opened.outputs()
    assert [name for name, _ in outputs] == ["isr_log", "isr_metadata", "post_isr"]
    for _, files in outputs:
        assert all(Path(file).is_relative_to(tmp_path / "s") and Path(file).exists() for file in files)
    assert everything(repository) == before


def test_inputs_from_the_same_run(repository: MockRepository, tmp_path: Path) -> None:
    """They are found in the datastore, though the registry does not know them yet."""
    Site(repository, tmp_path / "run").run(["isr"])
    before = everything(repository)
    with scratch(repository, "calibrate", tmp_path / "s") as opened:
        assert opened.missing_inputs() == []
        opened.execute()
        assert "calibrated" in dict(opened.outputs())
    assert everything(repository) == before


def test_outputs_that_exist_are_neither_read_nor_touched(repository: MockRepository, tmp_path: Path) -> None:
    """A quantum that succeeded can be tried again all the same."""
    Site(repository, tmp_path / "run").run(["isr"])
    before = everything(repository)
    with scratch(repository, "isr", tmp_path / "s") as opened:
        opened.execute()
        assert len(opened.outputs()) == 3
    assert everything(repository) == before


def test_missing_inputs(repository: MockRepository, tmp_path: Path) -> None:
    """They are named."""
    with scratch(repository, "calibrate", tmp_path / "s") as opened:
        (missing,) = opened.missing_inputs()
    assert missing.startswith("post_isr {")


def test_failure(repository: MockRepository, tmp_path: Path) -> None:
    """What the quantum raises comes out as it is; its log was written, and what it had put can be named."""
    before = everything(repository)
    with scratch(repository, "isr", tmp_path / "s") as opened:
        with mood(after_put=raising(ValueError("too late"))), pytest.raises(ValueError, match="too late"):
            opened.execute()
        assert [name for name, _ in opened.outputs()] == ["isr_log", "post_isr"]
    assert everything(repository) == before


def test_failure_at_construction(repository: MockRepository, tmp_path: Path) -> None:
    """What the construction of the task raises comes out as it is, too."""
    error = ValueError("not built")
    with scratch(repository, "isr", tmp_path / "s") as opened:
        with mood(at_construction=raising(error)), pytest.raises(ValueError, match="not built") as caught:
            opened.execute()
        assert caught.value is error


@pytest.mark.thorough
def test_chain_with_an_absolute_root(tmp_path: Path) -> None:
    """Of a chain of datastores with roots anywhere, nothing is written to any."""
    root = tmp_path / "elsewhere"
    repository = make(tmp_path / "data", Config.fromString(CHAIN.replace("ROOT", str(root))))
    Site(repository, tmp_path / "run").run()
    before = everything(repository), sorted(root.rglob("*"))
    with scratch(repository, "final", tmp_path / "s") as opened:
        assert opened.missing_inputs() == []
        opened.execute()
        assert "final_report" in dict(opened.outputs())
    assert (everything(repository), sorted(root.rglob("*"))) == before


def test_no_repository(repository: MockRepository, tmp_path: Path) -> None:
    """The error names it."""
    gone = MockRepository(tmp_path / "gone", repository.graph, repository.bare_graph)
    with pytest.raises(RepositoryError, match="gone"), scratch(gone, "isr", tmp_path / "s"):
        pass


def test_memory_alone(repository: MockRepository, tmp_path: Path) -> None:
    """A repository without files has no format to write in."""
    root = tmp_path / "memory"
    root.mkdir()
    (root / "butler.yaml").write_text(
        "datastore: {cls: lsst.daf.butler.datastores.inMemoryDatastore.InMemoryDatastore}\n"
    )
    memory = MockRepository(root, repository.graph, repository.bare_graph)
    with (
        pytest.raises(RepositoryError, match="no datastore of files"),
        scratch(memory, "isr", tmp_path / "s"),
    ):
        pass


def test_log_dataset(repository: MockRepository, tmp_path: Path) -> None:
    """It is read from the datastore, with or without the registry, as lines with time, level and logger."""
    plan = read_plan(repository.graph)
    index = first(plan, "isr")
    arguments = (str(repository.root), str(repository.graph), "isr", plan.quantum_id(index))
    with pytest.raises(RepositoryError, match="isr_log"):
        read_log(*arguments)
    with mood(before_put=lambda task: task.log.warning("so far, so good")):
        Site(repository, tmp_path / "run").run(["isr"])
    lines = read_log(*arguments).splitlines()
    (line,) = (line for line in lines if "so far, so good" in line)
    assert " WARNING tests.isr: " in line
    assert line.startswith("20")
