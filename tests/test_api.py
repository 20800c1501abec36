"""`GraphExecutor`: upstream's interface, on real repositories and real graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import networkx
import pytest
from lsst.daf.butler import Butler, ButlerConfig, Config, DataCoordinate
from lsst.pipe.base import QuantumGraph
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph._provenance import ProvenanceQuantumGraphReader
from lsst.pipe.base.quantum_reports import ExecutionStatus
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor

from qgexec import GraphExecutor
from qgexec.api import ImportedExecutor, Preparation, QuantaFailedError
from qgexec.books.journal import read_events
from qgexec.books.rundir import RunDir
from qgexec.errors import CollectionError, ModelError, RepositoryError, RunDirError, UsageError
from qgexec.events import AttemptStarted
from qgexec.offline import collect, execute_quanta
from qgexec.quantum import Quanta
from qgexec.reports.report import read_report
from qgexec.rubin.initoutputs import InitOutputs
from qgexec.rubin.provenance import write_provenance_graph
from tests.kit.butler.repos import (
    INPUT_CHAIN,
    N_QUANTA,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    connection,
    open_repository,
    save_graph,
    task_config,
)
from tests.kit.butler.sites import make_moody
from tests.kit.tasks.countingexecutor import CountingExecutor
from tests.kit.tasks.moods import mood, raising

EVERYTHING = Preparation(register_dataset_types=True)


def n_outputs(repository: MockRepository, dataset_type: str) -> int:
    """Return how many datasets of a type can be read from the output RUN."""
    with repository.butler(collections=OUTPUT_RUN) as butler:
        refs = butler.query_datasets(dataset_type, explain=False)
        assert all(butler.get(ref) is not None for ref in refs)
        return len(refs)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return where a run may keep its books."""
    return tmp_path / "run"


@pytest.mark.every(2)
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_executes_a_graph_file(repository: MockRepository, run_dir: Path, model: str) -> None:
    """All quanta succeed, and what they wrote is read through a plain butler."""
    executor = GraphExecutor(str(repository.root), model, processes=2, run_dir=run_dir, prepare=EVERYTHING)
    executor.execute(str(repository.graph))
    report = executor.getReport()
    assert report.status is ExecutionStatus.SUCCESS
    assert len(report.quantaReports) == N_QUANTA
    assert n_outputs(repository, "isr_metadata") == 8
    assert n_outputs(repository, "final_log") == 1
    assert read_report(run_dir).total.ingested == N_QUANTA


def test_executes_a_graph_in_memory(repository: MockRepository, run_dir: Path) -> None:
    """A graph object is as good as a file, with or without datastore records."""
    with PredictedQuantumGraph.open(str(repository.bare_graph)) as reader:
        reader.read_all()
        graph = reader.finish()
    GraphExecutor(str(repository.root), "inprocess", run_dir=run_dir, prepare=EVERYTHING).execute(graph)
    assert n_outputs(repository, "final_metadata") == 1


def test_executes_an_old_graph(repository: MockRepository, run_dir: Path, tmp_path: Path) -> None:
    """An old QuantumGraph is executed, as an object and as a file."""
    with PredictedQuantumGraph.open(str(repository.graph)) as reader:
        reader.read_all()
        old: QuantumGraph = reader.finish().to_old_quantum_graph()
    file = tmp_path / "old.qgraph"
    old.saveUri(str(file))
    GraphExecutor(str(repository.root), "inprocess", run_dir=run_dir, prepare=EVERYTHING).execute(old)
    with pytest.raises(CollectionError, match="exists already"):
        GraphExecutor(
            str(repository.root), "inprocess", run_dir=tmp_path / "again", prepare=EVERYTHING
        ).execute(str(file))
    assert not (tmp_path / "again").exists()


def test_a_start_that_was_cut_off_goes_on_with_its_own_graph_only(
    repository: MockRepository, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did to the registry is finished by the same graph, old or new; another one is refused."""

    def no_room(_self: object, _butler: Butler) -> None:
        raise OSError(28, "No space left on device")

    def executor() -> GraphExecutor:
        return GraphExecutor(str(repository.root), "inprocess", run_dir=run_dir, prepare=EVERYTHING)

    with monkeypatch.context() as patch:
        patch.setattr(InitOutputs, "write", no_room)
        with pytest.raises(RepositoryError, match="No space left") as caught:
            executor().execute(repository.graph)
    assert f"qgexec resume {run_dir}" in caught.value.hint
    before = (run_dir / "run.json").read_bytes()
    with pytest.raises(RunDirError, match="with another graph or repository"):
        executor().execute(repository.bare_graph)
    assert (run_dir / "run.json").read_bytes() == before
    with PredictedQuantumGraph.open(str(repository.graph)) as reader:
        reader.read_all()
        same = reader.finish()
    executor().execute(same)
    assert n_outputs(repository, "final_metadata") == 1
    assert [path.name for path in run_dir.glob(".*")] == []


@pytest.mark.every(3)
@pytest.mark.parametrize("given", ["path", "config", "butler"])
def test_butler_may_be_a_path_a_configuration_or_a_butler(
    repository: MockRepository, run_dir: Path, given: str
) -> None:
    """All three name the same repository, to workers too."""
    with repository.butler(writeable=True) as butler:
        config = ButlerConfig(str(repository.root))
        forms: dict[str, Path | Config | Butler] = {
            "path": repository.root,
            "config": config,
            "butler": butler,
        }
        GraphExecutor(forms[given], processes=1, run_dir=run_dir, prepare=EVERYTHING).execute(
            repository.graph
        )
    assert n_outputs(repository, "final_metadata") == 1


def test_default_run_dir_is_named_after_the_run(
    repository: MockRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books of a run are in qgexec-runs/RUN."""
    monkeypatch.chdir(tmp_path)
    executor = GraphExecutor(repository.root, "inprocess", prepare=EVERYTHING)
    executor.execute(repository.graph)
    assert executor.run_dir == tmp_path / "qgexec-runs" / OUTPUT_RUN


def test_neither_butler_nor_executor_is_one_clear_error() -> None:
    """There is nothing to execute quanta with."""
    with pytest.raises(UsageError, match="neither a butler nor a quantum_executor"):
        GraphExecutor()


@pytest.mark.parametrize("bad", [{"processes": 0}, {"timeout_s": 0.0}, {"timeout_s": -1.0}])
def test_senseless_numbers_are_refused(bad: dict[str, float]) -> None:
    """No processes, or no time, is an error before anything happens."""
    with pytest.raises(UsageError):
        GraphExecutor("repo", **bad)  # type: ignore[arg-type]


def test_report_before_execute_is_upstreams_error() -> None:
    """As upstream's executors."""
    with pytest.raises(RuntimeError, match="before execute"):
        GraphExecutor("repo").getReport()


def test_drops_into_separable_pipeline_executor(repository: MockRepository, run_dir: Path) -> None:
    """Upstream prepares the run and hands over the graph; all is in its butler afterwards."""
    with PredictedQuantumGraph.open(str(repository.graph)) as reader:
        reader.read_all()
        graph = reader.finish()
    with repository.butler(writeable=True, collections=INPUT_CHAIN, run=OUTPUT_RUN) as butler:
        separable = SeparablePipelineExecutor(butler)
        separable.pre_execute_qgraph(graph, register_dataset_types=True)
        executor = GraphExecutor(butler, "pool", processes=2, run_dir=run_dir)
        separable.run_pipeline(graph, graph_executor=executor)
    assert n_outputs(repository, "calibrate_metadata") == 8


def _failing_graph(tmp_path: Path, **config: object) -> MockRepository:
    """Return a repository and a graph a -> b over two detectors, of which the first fails."""
    repository = MockRepository(tmp_path / "repo", tmp_path / "graph.qg", tmp_path / "unused.qg")
    with open_repository(repository.root) as repo:
        repo.add_task(
            "a",
            dimensions=["detector"],
            config=task_config(fail_condition="detector = 1", **config),
            inputs={"raw": connection("raw", ["detector"])},
            outputs={"out": connection("mid", ["detector"])},
        )
        repo.add_task(
            "b",
            dimensions=["detector"],
            inputs={"mid": connection("mid", ["detector"])},
            outputs={"out": connection("end", ["detector"])},
        )
        save_graph(repo, repository.graph, register=False)
    return repository


@pytest.mark.every(2)
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_failures_raise_what_upstream_raises(tmp_path: Path, run_dir: Path, model: str) -> None:
    """The error is ours and upstream's, and says which quantum failed; the report counts upstream's way."""
    repository = _failing_graph(tmp_path)
    executor = GraphExecutor(repository.root, model, processes=2, run_dir=run_dir, prepare=EVERYTHING)
    said = r"1 of 8 quanta failed \(blocked by them: 1\).*a\{.*detector: 1"
    with pytest.raises(MPGraphExecutorError, match=said):
        executor.execute(repository.graph)
    statuses = [report.status for report in executor.getReport().quantaReports]
    assert sorted(status.value for status in statuses).count("failure") == 1
    assert statuses.count(ExecutionStatus.SKIPPED) == 1
    assert n_outputs(repository, "a_log") == 4


@pytest.mark.thorough
def test_time_out_raises_what_upstream_raises(tmp_path: Path, run_dir: Path) -> None:
    """A quantum over its limit is ended, and the error is upstream's MPTimeoutError."""
    repository = _failing_graph(tmp_path, sleep=30.0)
    with repository.butler(writeable=True) as butler:
        executor = GraphExecutor(butler, processes=4, timeout_s=0.5, run_dir=run_dir, prepare=EVERYTHING)
        with pytest.raises(MPTimeoutError):
            executor.execute(repository.graph)
    assert executor.getReport().status is ExecutionStatus.TIMEOUT


@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_own_quantum_executor(repository: MockRepository, tmp_path: Path, run_dir: Path, model: str) -> None:
    """A client's executor gets every quantum; its state lives on within a process; no butler is needed."""
    out = tmp_path / "out"
    out.mkdir()
    executor = GraphExecutor(
        model=model, processes=1, quantum_executor=CountingExecutor(out), run_dir=run_dir
    )
    executor.execute(repository.graph)
    counts = sorted(int(path.read_text().split()[1]) for path in out.iterdir())
    assert counts == list(range(1, N_QUANTA + 1))


def test_own_quantum_executor_that_fails(repository: MockRepository, tmp_path: Path, run_dir: Path) -> None:
    """Its exceptions are the quanta's failures."""
    executor = GraphExecutor(
        model="inprocess", quantum_executor=CountingExecutor(tmp_path, "calibrate"), run_dir=run_dir
    )
    with pytest.raises(QuantaFailedError, match=r"8 of 19 quanta failed \(blocked by them: 3\)"):
        executor.execute(repository.graph)


@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_an_executor_that_is_imported(
    repository: MockRepository, tmp_path: Path, run_dir: Path, model: str
) -> None:
    """Each process makes one; whoever goes on with the run need not bring it."""
    named = ImportedExecutor(
        "tests.kit.tasks.countingexecutor:CountingExecutor", {"folder": str(tmp_path), "fail": "final"}
    )
    executor = GraphExecutor(model=model, processes=1, quantum_executor=named, run_dir=run_dir)
    with pytest.raises(QuantaFailedError, match="1 of 19 quanta failed"):
        executor.execute(repository.graph)
    counts = sorted(int(path.read_text().split()[1]) for path in tmp_path.glob("*-*"))
    assert counts == list(range(1, N_QUANTA))
    with pytest.raises(QuantaFailedError, match="1 of 19 quanta failed"):
        GraphExecutor.of_run(run_dir).resume()
    attempts = [event for event in read_events(run_dir / "journal") if isinstance(event, AttemptStarted)]
    assert len(attempts) == N_QUANTA + 1


@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        ("no.such.module:Executor", {}, "No module named 'no'"),
        ("tests.kit.tasks.countingexecutor:Missing", {}, "no attribute 'Missing'"),
        ("os:system", {"command": "true"}, "os:system is no quantum executor"),
        ("subprocess:Popen", {"args": ["true"]}, "is no quantum executor"),
        ("tests.kit.tasks.countingexecutor:make_anything", {}, "is no quantum executor"),
        ("tests.kit.tasks.countingexecutor:CountingExecutor", {"folder": Path("/tmp")}, "written as JSON"),
        ("tests.kit.tasks.countingexecutor:CountingExecutor", {"folder": math.nan}, "written as JSON"),
    ],
)
def test_an_executor_that_cannot_be_imported(path: str, arguments: dict[str, object], said: str) -> None:
    """It is told before anything is begun."""
    with pytest.raises(UsageError, match=said):
        GraphExecutor(quantum_executor=ImportedExecutor(path, arguments))


def test_a_function_that_makes_executors(tmp_path: Path) -> None:
    """It is taken where it says that it does."""
    named = ImportedExecutor("tests.kit.tasks.countingexecutor:make_executor", {"folder": str(tmp_path)})
    assert isinstance(named.make(), CountingExecutor)


class _DetectorsInTurn(ExecutionGraphFixup):
    """Orders isr by data ID: each waits for the one before."""

    def fixupQuanta(self, graph: QuantumGraph) -> QuantumGraph:  # noqa: N802 - upstream's name
        raise NotImplementedError

    def fixup_graph(
        self, xgraph: networkx.DiGraph, quanta_by_task: Mapping[str, Mapping[DataCoordinate, UUID]]
    ) -> None:
        quanta = [quanta_by_task["isr"][data_id] for data_id in sorted(quanta_by_task["isr"])]
        xgraph.add_edges_from(pairwise(quanta))


def test_fixup_orders_quanta(repository: MockRepository, run_dir: Path) -> None:
    """Extra ordering is prerequisites in the plan."""
    GraphExecutor(
        repository.root,
        "inprocess",
        execution_graph_fixup=_DetectorsInTurn(),
        run_dir=run_dir,
        prepare=EVERYTHING,
    ).execute(repository.graph)
    plan = RunDir.open(run_dir).load_plan()
    waiting = [node for node in plan if node.task_label == "isr" and node.prerequisites]
    assert len(waiting) == 7


def statuses_in(file: Path) -> Counter[tuple[str, str]]:
    """Return how many quanta of each task upstream finds in each state in a provenance graph."""
    with ProvenanceQuantumGraphReader.open(file) as reader:
        reader.read_quanta()
        nodes = reader.graph.quantum_only_xgraph.nodes(data=True)
    return Counter((info["task_label"], info["status"].name) for _, info in nodes)


@pytest.mark.every(2)
@pytest.mark.parametrize("model", ["inprocess", "pool"])
def test_provenance_graph_is_written(
    repository: MockRepository, run_dir: Path, tmp_path: Path, model: str
) -> None:
    """Upstream reads the provenance graph, and finds every quantum in it, whichever model ran."""
    file = tmp_path / "provenance.qg"
    executor = GraphExecutor(repository.root, model, processes=2, run_dir=run_dir, prepare=EVERYTHING)
    executor.execute(repository.graph, provenance_graph_file=str(file))
    statuses = statuses_in(file)
    assert {status for _, status in statuses} == {"SUCCESSFUL"}
    assert statuses.total() == N_QUANTA


@pytest.mark.every(2)
@pytest.mark.parametrize("lost", [False, True], ids=["failed", "lost"])
def test_provenance_of_failures(tmp_path: Path, run_dir: Path, lost: bool) -> None:
    """Upstream finds one quantum that failed, with or without a log, and one that was blocked by it."""
    repository = _failing_graph(tmp_path)
    file = tmp_path / "provenance.qg"
    executor = GraphExecutor(repository.root, run_dir=run_dir, prepare=EVERYTHING)
    with pytest.raises(MPGraphExecutorError):
        executor.execute(repository.graph, provenance_graph_file=str(file))
    if lost:
        with repository.butler(writeable=True) as butler:
            logs = butler.query_datasets("a_log", OUTPUT_RUN, data_id={"instrument": "Cam1", "detector": 1})
            butler.pruneDatasets(logs, purge=True, unstore=True, disassociate=True)
        write_provenance_graph(str(repository.graph), str(repository.root), str(file))
    assert statuses_in(file) == {
        ("a", "SUCCESSFUL"): 3, ("a", "FAILED"): 1, ("b", "SUCCESSFUL"): 3, ("b", "BLOCKED"): 1,
    }  # fmt: skip


@pytest.mark.thorough
def test_provenance_without_a_task(tmp_path: Path, run_dir: Path) -> None:
    """Quanta whose task could not be constructed have failed, and their outputs are not there."""
    repository = make_moody(tmp_path)
    file = tmp_path / "provenance.qg"
    executor = GraphExecutor(repository.root, "inprocess", run_dir=run_dir)
    with mood(at_construction=raising(ValueError("not built"))), pytest.raises(MPGraphExecutorError):
        executor.execute(repository.graph, provenance_graph_file=str(file))
    assert statuses_in(file) == {
        ("isr", "FAILED"): 8, ("calibrate", "BLOCKED"): 8, ("summary", "BLOCKED"): 2, ("final", "BLOCKED"): 1,
    }  # fmt: skip


def test_provenance_needs_a_butler(repository: MockRepository, tmp_path: Path) -> None:
    """Without a repository there is nothing to make provenance from; nothing is run."""
    executor = GraphExecutor(model="inprocess", quantum_executor=CountingExecutor(tmp_path))
    with pytest.raises(UsageError, match="no butler"):
        executor.execute(repository.graph, provenance_graph_file=str(tmp_path / "p.qg"))
    assert executor.run_dir is None


def test_simple_client_is_handed_the_quanta(repository: MockRepository, run_dir: Path) -> None:
    """Each quantum comes after its prerequisites, with all that is needed to run it."""
    seen: list[int] = []

    class Client:
        def execute(self, quanta: Quanta) -> None:
            for node in quanta:
                assert set(node.prerequisites) <= set(seen)
                assert node.quantum().outputs
                assert node.task_node.label == node.task_label
                seen.append(node.index)

    GraphExecutor(repository.root, Client(), run_dir=run_dir, prepare=EVERYTHING).execute(repository.graph)
    assert seen == list(range(N_QUANTA))


def test_simple_client_with_an_executor_that_is_imported(
    repository: MockRepository, tmp_path: Path, run_dir: Path
) -> None:
    """What it has executed elsewhere, by index, is executed so too; nothing of it is taken in."""

    class Client:
        def execute(self, quanta: Quanta) -> None:
            books = Path(quanta.context.run_dir)
            assert execute_quanta(books, [node.index for node in quanta])

    out = tmp_path / "out"
    out.mkdir()
    named = ImportedExecutor("tests.kit.tasks.countingexecutor:CountingExecutor", {"folder": str(out)})
    executor = GraphExecutor(
        repository.root, Client(), quantum_executor=named, run_dir=run_dir, prepare=EVERYTHING
    )
    executor.execute(repository.graph)
    assert len(list(out.iterdir())) == N_QUANTA
    assert collect(run_dir) == 0
    assert read_report(run_dir).all_succeeded


def test_unknown_model_changes_nothing(repository: MockRepository, run_dir: Path) -> None:
    """The error lists the models; there is no run directory and the repository is as it was."""
    before = repository.dump()
    with pytest.raises(ModelError, match="no execution model 'slrm'"):
        GraphExecutor(repository.root, "slrm", run_dir=run_dir, prepare=EVERYTHING).execute(repository.graph)
    assert not run_dir.exists()
    assert repository.dump() == before


def test_wrong_output_chain_is_refused(repository: MockRepository, run_dir: Path) -> None:
    """What the registry cannot be prepared for leaves no run directory behind."""
    with repository.butler(writeable=True) as butler:
        butler.collections.register(OUTPUT)
    with pytest.raises(CollectionError, match="not CHAINED"):
        GraphExecutor(repository.root, "inprocess", run_dir=run_dir, prepare=EVERYTHING).execute(
            repository.graph
        )
    assert not run_dir.exists()
