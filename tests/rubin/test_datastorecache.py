"""Tests of `qgexec.rubin.datastorecache`, and runs whose files are in an object store."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from lsst.daf.butler import Quantum
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor

from qgexec.api import GraphExecutor
from qgexec.processes.births import KERNEL
from qgexec.rubin.datastorecache import VARIABLE, shared_cache
from qgexec.rubin.graphfile import GraphSource, read_plan
from tests.kit.batch.submitted import wait_until
from tests.kit.butler.benchwork import Site, attempts, later, registered
from tests.kit.butler.objectstore import ObjectStore, object_store
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.tasks.moods import mood


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; the environment names no cache."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / "tmp"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server for all tests here."""
    with object_store() as store:
        yield store


@pytest.fixture
def site(store: ObjectStore, tmp_path: Path) -> Site:
    """A repository whose files are in the object store."""
    return Site(store.repository(tmp_path / f"data{len(store.requests)}"), tmp_path / "run")


def test_a_folder_of_this_user_for_a_while(parent: Path) -> None:
    """Nobody else may read it, and nothing stays."""
    with shared_cache():
        folder = Path(os.environ[VARIABLE])
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "copy").touch()
    assert VARIABLE not in os.environ
    assert list(parent.iterdir()) == []


def test_one_that_is_named_already(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the user's, or that of a run around this one."""
    monkeypatch.setenv(VARIABLE, str(parent / "mine"))
    (parent / "mine").mkdir()
    with shared_cache():
        assert os.environ[VARIABLE] == str(parent / "mine")
    assert (parent / "mine").exists()


def test_no_place(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own then, as upstream has it."""
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "nowhere"))
    with shared_cache():
        assert VARIABLE not in os.environ


def test_of_killed_processes(parent: Path) -> None:
    """What a killed driver left goes at the next start; that of one that lives, or is elsewhere, stays."""
    child = os.fork()
    if child == 0:
        with shared_cache():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = parent.iterdir()
    birth = KERNEL.birth(os.getpid())
    assert birth is not None
    where, _, rest = left.name.removeprefix("qgexec-cache-").partition("-")
    living = parent / f"qgexec-cache-{where}-{os.getpid()}-{birth.start_ticks}-x"
    elsewhere = parent / f"qgexec-cache-0123456789ab-{rest}"
    for folder in (living, elsewhere):
        folder.mkdir()
    with shared_cache():
        assert not left.exists()
    assert sorted(parent.iterdir()) == sorted((living, elsewhere))


class TellsFolder(QuantumExecutor):
    """Notes in a file of each process where copies would be kept."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def execute(self, task_node: TaskNode, /, quantum: Quantum, quantum_id: object = None) -> Quantum:  # type: ignore[override]
        """Execute nothing, and be busy until another process is, too."""
        (self._notes / str(os.getpid())).write_text(os.environ.get(VARIABLE, "none"))
        wait_until(lambda: len(list(self._notes.iterdir())) > 1)
        return quantum


@pytest.mark.thorough
def test_all_workers_have_the_same(template: MockRepository, tmp_path: Path) -> None:
    """As long as the run lasts."""
    (tmp_path / "notes").mkdir()
    mine = TellsFolder(tmp_path / "notes")
    GraphExecutor(model="pool", processes=2, quantum_executor=mine, run_dir=tmp_path / "run").execute(
        template.graph
    )
    notes = list((tmp_path / "notes").iterdir())
    (folder,) = {note.read_text() for note in notes}
    assert not Path(folder).exists()
    assert Path(folder).name.startswith("qgexec-cache-")
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("shared", [True, False])
def test_a_calibration_is_fetched_once(site: Site, store: ObjectStore, shared: bool) -> None:
    """By whichever process is the first to need it."""
    exposures = attempts(read_plan(site.repository.graph), ("isr",))
    store.requests.clear()
    with shared_cache() if shared else mood():
        for attempt in exposures:  # each in a datastore that knows nothing, as that of another process
            with site.bench() as bench:
                bench.execute(attempt)
    n_flats = len(exposures) // 2
    assert store.n_fetched("flat") == (n_flats if shared else 2 * n_flats)
    assert store.n_fetched("raw") == len(exposures)


@pytest.mark.thorough
def test_copy_of_an_attempt_that_was_killed(site: Site) -> None:
    """It is not what the next attempt wrote: nobody may read it."""
    plan = read_plan(site.repository.graph)
    follower = attempts(plan, ("calibrate",))[0]
    (first,) = (attempt for attempt in attempts(plan) if attempt.index in plan.prerequisites(follower.index))
    with closing(GraphSource(site.repository.graph)) as source:
        (output,) = source.quantum(first.quantum_id).outputs["post_isr"]
    kept = site.run_dir.with_name("kept")

    def keep() -> None:
        shutil.copytree(os.environ[VARIABLE], kept)

    with shared_cache():
        folder = Path(os.environ[VARIABLE])
        with site.bench() as bench, mood(after_put=lambda _task: keep()):
            bench.execute(first)
        (copy,) = kept.rglob(f"{output.id}*")
        (folder / copy.relative_to(kept)).write_text("what another attempt wrote")
        for attempt in (later(first), follower):
            with site.bench() as bench:
                assert bench.execute(attempt).outcome.exception is None  # type: ignore[union-attr]


@pytest.mark.thorough
def test_run(site: Site, store: ObjectStore, tmp_path: Path) -> None:
    """A graph is executed to the end where all files are in an object store, by several processes."""
    run = GraphExecutor(site.repository.root, model="pool", processes=2, run_dir=tmp_path / "run")
    run.execute(site.repository.graph)
    assert any(request.startswith("PUT /bucket/") and OUTPUT_RUN in request for request in store.requests)
    found = registered(site.repository)
    assert len([name for name in found if "_metadata" in name]) == len(read_plan(site.repository.graph))
