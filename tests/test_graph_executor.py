"""`GraphExecutor` in the place of upstream's graph executor: what upstream's tests of that one assert."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lsst.pipe.base import mp_graph_executor
from lsst.pipe.base.exec_fixup_data_id import ExecFixupDataId
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor, QuantumGraphExecutor
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport, Report
from lsst.pipe.base.tests import mocks
from lsst.pipe.base.tests.mocks import (
    DynamicConnectionConfig,
    DynamicTestPipelineTask,
    DynamicTestPipelineTaskConfig,
)

from qgexec import GraphExecutor

if not hasattr(mocks, "InMemoryRepo"):
    pytest.skip("this lsst-pipe-base has no repository in memory", allow_module_level=True)

UPSTREAM = pytest.mark.site
"""Where upstream's executor starts processes, each takes two seconds."""

Make = Callable[..., QuantumGraphExecutor]
FAILED = "lsst.pipe.base.mp_graph_executor.MPGraphExecutorError"
TIMED_OUT = "lsst.pipe.base.mp_graph_executor.MPTimeoutError"


class SerialTask(DynamicTestPipelineTask):
    """Cannot be executed in several processes at the same time."""

    canMultiprocess: ClassVar[bool] = False  # noqa: N815 - upstream's name


@pytest.fixture
def repo() -> Iterator[Any]:
    """Return a repository in memory, with four detectors."""
    with mocks.InMemoryRepo("base.yaml") as repo:
        yield repo


def _upstreams(executor: QuantumExecutor, processes: int, *, timeout_s: float = 100.0, **options: Any) -> Any:
    return mp_graph_executor.MPGraphExecutor(
        num_proc=processes, timeout=timeout_s, quantum_executor=executor, **options
    )


def _ours(run_dir: Path) -> Make:
    def make(executor: QuantumExecutor, processes: int, *, timeout_s: float = 100.0, **options: Any) -> Any:
        return GraphExecutor(
            model="inprocess" if processes == 1 else "pool",
            processes=processes,
            quantum_executor=executor,
            timeout_s=timeout_s,
            run_dir=run_dir,
            **options,
        )

    return make


@pytest.fixture(params=[pytest.param("qgexec"), pytest.param("upstream", marks=UPSTREAM)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes an executor of graphs, ours or upstream's."""
    return _ours(tmp_path / "run") if request.param == "qgexec" else _upstreams


def executed(
    make: Make, repo: Any, processes: int, raises: type[Exception] | None = None, **options: Any
) -> tuple[Report, Any]:
    """Execute the repository's graph; return the report, and the butler with the outputs of this process."""
    graph = repo.make_quantum_graph()  # first: it registers the dataset types
    quantum_executor, butler = repo.make_single_quantum_executor()
    executor = make(quantum_executor, processes, **options)
    if raises is None:
        executor.execute(graph)
    else:
        with pytest.raises(raises):
            executor.execute(graph)
    report = executor.getReport()
    assert report is not None
    return report, butler


def statuses(report: Report) -> Counter[str]:
    """Return how many quanta have which status."""
    return Counter(quantum.status.value for quantum in report.quantaReports)


def the_failed(report: Report) -> QuantumReport:
    """Return what is said of the one quantum that did not succeed by its own fault."""
    bad = (ExecutionStatus.FAILURE, ExecutionStatus.TIMEOUT)
    (quantum,) = (quantum for quantum in report.quantaReports if quantum.status in bad)
    return quantum


def config(**values: Any) -> Any:
    """Return a configuration of the task; it fails at detector 2 where it is to fail."""
    made = DynamicTestPipelineTaskConfig()
    made.update(**values)
    return made


@pytest.mark.parametrize(("processes", "exit_code"), [(1, None), (3, 0)])
def test_success(make: Make, repo: Any, processes: int, exit_code: int | None) -> None:
    """Every quantum has a report, with the exit code of its process where it had one."""
    repo.add_task(dimensions=["detector"])
    report, butler = executed(make, repo, processes)
    if processes == 1:
        found = [ref.dataId["detector"] for ref in butler.get_datasets("dataset_auto1")]
        assert sorted(found) == [1, 2, 3, 4]
    assert (report.status, report.exitCode, report.exceptionInfo) == (ExecutionStatus.SUCCESS, None, None)
    assert statuses(report) == {"success": 4}
    assert {quantum.exitCode for quantum in report.quantaReports} == {exit_code}
    assert {quantum.exceptionInfo for quantum in report.quantaReports} == {None}
    assert {quantum.taskLabel for quantum in report.quantaReports} == {"task_auto1"}


def test_task_that_cannot_multiprocess(repo: Any, tmp_path: Path) -> None:
    """It has a process of its own, where upstream refuses to execute it in several."""
    repo.add_task(task_class=SerialTask, dimensions=["detector"])
    report, _ = executed(_ours(tmp_path / "run"), repo, 3)
    assert statuses(report) == {"success": 4}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_fixup(make: Make, repo: Any, reverse: bool, old: bool) -> None:
    """Quanta that are ordered are executed in that order, of an old graph object, too."""
    repo.add_task(dimensions=["detector"])
    graph = (
        repo.make_quantum_graph_builder().build(attach_datastore_records=False)
        if old
        else repo.make_quantum_graph()
    )
    quantum_executor, butler = repo.make_single_quantum_executor()
    fixup = ExecFixupDataId("task_auto1", "detector", reverse=reverse)
    make(quantum_executor, 1, execution_graph_fixup=fixup).execute(graph)
    order = [ref.dataId["detector"] for ref in butler.get_datasets("dataset_auto1")]
    assert order == ([4, 3, 2, 1] if reverse else [1, 2, 3, 4])


@pytest.mark.parametrize("fail_fast", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_time_out(make: Make, repo: Any, fail_fast: bool) -> None:
    """The run's error says so, and the exit code is minus the signal that ended the quantum."""
    repo.add_task(label="a", config=config(sleep=100.0))
    report, _ = executed(make, repo, 2, MPTimeoutError, timeout_s=1.0, fail_fast=fail_fast)
    assert report.status is ExecutionStatus.TIMEOUT
    assert report.exceptionInfo is not None
    assert report.exceptionInfo.className == TIMED_OUT
    assert statuses(report) == {"timeout": 1}
    quantum = the_failed(report)
    assert (quantum.exitCode, quantum.exceptionInfo) == (-signal.SIGTERM, None)


@pytest.mark.parametrize("processes", [1, 3])
def test_failure(make: Make, repo: Any, processes: int) -> None:
    """One quantum raises, one is blocked by it, the others go on."""
    repo.add_task("a", config=config(fail_condition="detector=2"), dimensions=["detector"])
    repo.add_task("b", dimensions=["detector"])
    report, butler = executed(make, repo, processes, MPGraphExecutorError)
    if processes == 1:
        for name in ("dataset_auto1", "dataset_auto2"):
            assert sorted(ref.dataId["detector"] for ref in butler.get_datasets(name)) == [1, 3, 4]
    assert report.status is ExecutionStatus.FAILURE
    assert report.exceptionInfo is not None
    assert report.exceptionInfo.className == FAILED
    assert statuses(report) == {"failure": 1, "success": 6, "skipped": 1}
    quantum = the_failed(report)
    assert quantum.exceptionInfo is not None
    assert quantum.exceptionInfo.className == "ValueError"
    assert quantum.exitCode == (None if processes == 1 else 1)
    assert quantum.dataId == {"instrument": "Cam1", "detector": 2}
    exit_codes = {quantum.exitCode for quantum in report.quantaReports if quantum.status.value == "skipped"}
    assert exit_codes == {None}


def test_fail_fast(make: Make, repo: Any) -> None:
    """What takes long is ended, and only what has ended by itself is reported."""
    repo.add_task("a", config=config(fail_condition="detector=2"), dimensions=["detector"])
    repo.add_task("b", config=config(sleep=100.0), dimensions=["detector"])
    repo.add_task("c", dimensions=["detector"])
    report, _ = executed(make, repo, 3, MPGraphExecutorError, fail_fast=True)
    assert report.status is ExecutionStatus.FAILURE
    assert report.exceptionInfo is not None
    assert report.exceptionInfo.className == FAILED
    assert the_failed(report).exitCode == 1
    assert the_failed(report).exceptionInfo is not None


@pytest.mark.parametrize("fail_fast", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_crash(make: Make, repo: Any, fail_fast: bool) -> None:
    """The exit code is minus the signal, and there is no exception to tell of."""
    crash = config(fail_condition="detector=2", fail_signal=int(signal.SIGILL))
    repo.add_task("a", config=crash, dimensions=["detector"])
    report, _ = executed(make, repo, 3, MPGraphExecutorError, fail_fast=fail_fast)
    assert report.status is ExecutionStatus.FAILURE
    assert report.exceptionInfo is not None
    assert report.exceptionInfo.className == FAILED
    assert the_failed(report).exitCode == -signal.SIGILL
    assert {quantum.exceptionInfo for quantum in report.quantaReports} == {None}
    if not fail_fast:
        assert statuses(report) == {"failure": 1, "success": 3}


def test_open_files(repo: Any, tmp_path: Path) -> None:
    """Their number does not grow with that of the quanta."""
    repo.add_task("a", dimensions=["detector"])
    repo.add_task("b", dimensions=["detector"])
    executed(_ours(tmp_path / "first"), repo, 3)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the numbers alone
    executed(_ours(tmp_path / "second"), repo, 3)
    assert len(os.listdir("/proc/self/fd")) - before < 5  # noqa: PTH208


@pytest.mark.parametrize("processes", [1, 3])
def test_nothing_to_do(make: Make, repo: Any, processes: int, tmp_path: Path) -> None:
    """A graph without quanta is no error, and leaves no run directory."""
    repo.add_task(dimensions=["detector"])
    builder = repo.make_quantum_graph_builder(insert_mocked_inputs=False)
    graph = builder.finish(attach_datastore_records=False).assemble()
    assert len(graph) == 0
    executor = make(repo.make_single_quantum_executor()[0], processes)
    executor.execute(graph)
    report = executor.getReport()
    assert report is not None
    assert (report.status, report.exceptionInfo, report.quantaReports) == (ExecutionStatus.SUCCESS, None, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=UPSTREAM)])
def test_reports_are_the_same(repo: Any, processes: int, tmp_path: Path) -> None:
    """In every field, but for the words of the run's error, and for IDs that upstream leaves out."""
    repo.add_task("a", config=config(fail_condition="instrument='Cam1'"))
    repo.add_task("b")
    repo.add_task(
        "c", inputs={"input_connection": DynamicConnectionConfig(dataset_type_name="dataset_auto0")}
    )
    graph = repo.make_quantum_graph()
    found = []
    for make in (_ours(tmp_path / "run"), _upstreams):
        executor = make(repo.make_single_quantum_executor()[0], processes)
        with pytest.raises(MPGraphExecutorError):
            executor.execute(graph)
        report = executor.getReport()
        assert report is not None
        values = report.model_dump(mode="json")
        del values["exceptionInfo"]["message"]
        for quantum in values["quantaReports"]:
            if processes == 1:
                del quantum["quantumId"]
        values["quantaReports"].sort(key=itemgetter("taskLabel"))
        found.append(values)
    assert found[0] == found[1]
