"""Tests of `benchmarks`: that the mock graph is the right one, and that measuring measures."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from benchmarks import submitting
from benchmarks.breakdown import Clock, clocked
from benchmarks.journals import Drift, log_size_drift
from benchmarks.measure import BenchmarkError, run_measured
from benchmarks.mockgraph import INPUTS, LABELS, MockGraph, MockShape, make_mock_graph
from benchmarks.owntime import measure_own_time
from benchmarks.planning import write_large_graph
from benchmarks.status import make_books
from benchmarks.tables import Section, Table, machine_facts
from qgexec.reports.report import RunState, read_report
from qgexec.rubin.graphfile import read_plan

SHAPE = MockShape(2, 3)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> MockGraph:
    return make_mock_graph(tmp_path_factory.mktemp("mock"), SHAPE)


def read_graph(file: Path) -> PredictedQuantumGraph:
    with PredictedQuantumGraph.open(str(file)) as reader:
        reader.read_all()
        return reader.finish()


def test_number_of_quanta(graph: MockGraph) -> None:
    """E exposures of D detectors are 2 E D + E + 1 quanta; the issue's two sizes are 411 and 10,051."""
    assert graph.quanta_by_label == {"isr": 6, "calibrate": 6, "summary": 2, "final": 1}
    assert graph.n_quanta == SHAPE.n_quanta
    assert MockShape(10, 20).n_quanta == 411
    assert MockShape(50, 100).n_quanta == 10_051


def test_dependencies(graph: MockGraph) -> None:
    """A calibrate follows its isr, a summary all calibrates of its exposure, final all summaries."""
    plan = read_plan(graph.graph_file)
    assert plan.labels == ("isr", "calibrate", "summary", "final")
    for node in plan:
        before = [plan[index] for index in node.prerequisites]
        match node.task_label:
            case "isr":
                assert before == []
            case "calibrate":
                assert [(b.task_label, b.data_id) for b in before] == [("isr", node.data_id)]
            case "summary":
                assert {b.task_label for b in before} == {"calibrate"}
                assert {b.data_id["exposure"] for b in before} == {node.data_id["exposure"]}
                assert {b.data_id["detector"] for b in before} == {0, 1, 2}
            case label:
                assert label == "final"
                assert [b.task_label for b in before] == ["summary", "summary"]


def test_calibration_is_shared(graph: MockGraph) -> None:
    """All exposures of a detector read the same calibration, and all of calibrate the init-output of isr."""
    predicted = read_graph(graph.graph_file)
    quanta = predicted.build_execution_quanta(task_label="isr")
    biases = {
        (quantum.dataId["detector"], quantum.inputs["bias"][0].id)
        for quantum in quanta.values()
        if quantum.dataId is not None
    }
    assert len(quanta) == 6
    assert len(biases) == 3
    assert (
        predicted.get_init_inputs("calibrate")["schema"].id == predicted.get_init_outputs("isr")["schema"].id
    )


def test_records_of_inputs_are_attached(graph: MockGraph) -> None:
    """Every quantum of isr brings the datastore records of its raw and its calibration."""
    quanta = read_graph(graph.graph_file).build_execution_quanta(task_label="isr")
    assert len(quanta) == 6
    for quantum in quanta.values():
        inputs = {ref.id for refs in quantum.inputs.values() for ref in refs}
        assert len(inputs) == 2
        (records,) = quantum.datastore_records.values()
        assert inputs == set(records.records)


def test_inputs_are_readable(graph: MockGraph) -> None:
    """A plain butler finds and reads raws and, by exposure, calibrations."""
    with Butler.from_config(str(graph.repository), collections=[INPUTS]) as butler:
        data_id = {"instrument": "MockCam", "exposure": 2, "detector": 1}
        assert butler.get("raw", data_id).data_id == data_id
        assert butler.get("bias", data_id).data_id == {"instrument": "MockCam", "detector": 1}


def test_sleep_and_failure_are_configured(tmp_path: Path) -> None:
    """Sleep goes to every task, the failure to the one that is named."""
    shape = MockShape(1, 1, 0.25, "calibrate", "detector = 0", "builtins.KeyError")
    made = make_mock_graph(tmp_path, shape)
    with PredictedQuantumGraph.open(str(made.graph_file)) as reader:
        reader.read_thin_graph()
        tasks = reader.finish().pipeline_graph.tasks
        configs: dict[str, Any] = {label: node.config for label, node in tasks.items()}
    assert {label: config.sleep for label, config in configs.items()} == dict.fromkeys(LABELS, 0.25)
    failing = {
        label: (c.fail_condition, c.fail_exception) for label, c in configs.items() if c.fail_condition
    }
    assert failing == {"calibrate": ("detector = 0", "builtins.KeyError")}


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 1),
        (1, -1),
        (1, 1, 0.0, "nosuch", "detector = 0"),
        (1, 1, 0.0, "isr", ""),
        (1, 1, 0.0, "", "x = 1"),
    ],
)
def test_senseless_shape(arguments: tuple[int, int]) -> None:
    """A graph of nothing, of unknown tasks, or with half a failure is refused."""
    with pytest.raises(ValueError, match=r"exposures|no task|both"):
        MockShape(*arguments)


def test_repository_that_exists(graph: MockGraph) -> None:
    """A second graph in the same directory is refused, and the first is as it was."""
    before = graph.graph_file.stat()
    with pytest.raises(FileExistsError, match="exists already"):
        make_mock_graph(graph.graph_file.parent, SHAPE)
    assert graph.graph_file.stat() == before


def test_large_thin_graph_has_the_same_shape(graph: MockGraph, tmp_path: Path) -> None:
    """The thin graph that is written without a repository is the built one, but for its IDs."""
    plan, real = (
        read_plan(file)
        for file in (write_large_graph(graph.graph_file, tmp_path / "thin.qg", SHAPE), graph.graph_file)
    )
    assert plan.count_by_label() == real.count_by_label()
    assert sum(len(node.prerequisites) for node in plan) == sum(len(node.prerequisites) for node in real)
    summary = next(node for node in plan if node.task_label == "summary")
    assert len({plan[index].data_id["detector"] for index in summary.prerequisites}) == SHAPE.detectors


def test_synthetic_books(tmp_path: Path) -> None:
    """They are those of a whole run: every quantum has ended, one failed and blocked its exposure."""
    shape = MockShape(3, 10)
    report = read_report(make_books(tmp_path / "run", shape).path)
    assert report.state is RunState.FAILED
    assert (report.total.n_quanta, report.total.ended) == (shape.n_quanta, shape.n_quanta)
    assert [quantum.index for quantum in report.failures] == [2]
    assert [quantum.index for quantum in report.retried] == [1]
    assert [task.blocked for task in report.tasks] == [0, 1, 1, 1]
    assert report.total.ingested == report.total.succeeded == shape.n_quanta - 4


def test_own_time_executes_everything(tmp_path: Path) -> None:
    """Every quantum's metadata and log are written, and the sum of their times is not nothing."""
    made = make_mock_graph(tmp_path, MockShape(1, 2))
    own = measure_own_time(made.repository, made.graph_file)
    assert own.n_quanta == 6
    assert own.own_s > 0
    run = made.repository / "u/bench/mock/run"
    assert len(list(run.glob("*_metadata/**/*.json"))) == 6
    assert len(list(run.glob("*_log/**/*.json"))) == 6
    assert log_size_drift(run, "isr").ratio == pytest.approx(1.0, abs=0.1)


def test_measured_command(tmp_path: Path) -> None:
    """The CPU time of an orphan that outlives its parent is counted, and nothing is left over."""
    burn = "import os, time\nif os.fork() == 0:\n    while time.process_time() < 0.3: pass\n"
    found = run_measured([sys.executable, "-c", burn], timeout_s=30.0, log=tmp_path / "log")
    assert found.cpu_s > 0.3
    assert found.driver_cpu_s < found.cpu_s
    assert (found.exit_code, found.timed_out, found.left_over) == (0, False, 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [("raise SystemExit('so it is')", "exit 1\nso it is"), ("import time; time.sleep(60)", "took over")],
)
def test_measured_command_that_fails(tmp_path: Path, code: str, message: str) -> None:
    """A command that fails, or takes too long, is an error that ends with its output."""
    with pytest.raises(BenchmarkError, match=message):
        run_measured([sys.executable, "-c", code], timeout_s=1.0, log=tmp_path / "log")


def test_clock_gives_time_to_the_innermost_part() -> None:
    """Time in a part that another part calls is the inner one's alone."""
    clock = Clock()
    with clock.running("outer"), clock.running("inner"):
        deadline = time.thread_time() + 0.05
        while time.thread_time() < deadline:
            pass
    assert clock.parts["inner"].cpu_s >= 0.05
    assert clock.parts["outer"].cpu_s < 0.05
    assert [part.calls for part in clock.parts.values()] == [1, 1]


def test_clock_is_taken_off_again() -> None:
    """What was clocked is as before afterwards."""
    original = json.dumps
    clock = Clock()
    with clocked(clock, {"encode": ("json:dumps",)}):
        json.dumps([])
    assert clock.parts["encode"].calls == 1
    assert json.dumps is original


def test_drift() -> None:
    """The first and the last tenth are compared, whatever is between them."""
    drift = Drift.of([2.0] * 10 + [9.0] * 80 + [3.0] * 10)
    assert (drift.first, drift.last, drift.ratio) == (2.0, 3.0, 1.5)


def test_markdown() -> None:
    """A section is a heading, its tables and its notes."""
    section = Section("x", "Title", (Table(("a", "b"), (("1", "2"),)),), {}, ("A note.",))
    assert section.markdown() == "## Title\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n- A note."


def test_machine_facts_name_no_machine() -> None:
    """Neither the host's name nor a path is among the facts."""
    facts = machine_facts()
    assert set(facts) >= {"cores", "kernel", "python", "qgexec"}
    assert not any(socket.gethostname() in value or "/" in value for value in facts.values())


@pytest.mark.parametrize("model", ["htcondor", "slurm"])
def test_a_submission_is_measured(
    model: str, graph: MockGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All quanta are in jobs, everything is written, nothing submitted; chunks make fewer jobs."""
    thin = write_large_graph(graph.graph_file, tmp_path / "thin.qg", MockShape(4, 5))
    found = {}
    for algorithm in ("single", "chunks of 10"):
        result = tmp_path / f"{algorithm}.json"
        arguments = [thin, tmp_path / algorithm, model, algorithm]
        monkeypatch.setenv("PATH", os.environ["PATH"])
        submitting.main(["--result", str(result), *map(str, arguments)])
        found[algorithm] = json.loads(result.read_text())
    n_quanta = MockShape(4, 5).n_quanta
    assert [cost["n_quanta"] for cost in found.values()] == [n_quanta, n_quanta]
    assert (found["single"]["n_jobs"], found["chunks of 10"]["n_jobs"]) == (n_quanta, 2 + 2 + 1 + 1)
    assert found["single"]["n_bytes"] > found["chunks of 10"]["n_bytes"] > 0
