"""`bps submit | report | status | cancel | restart` with our service, on a mock repository, to the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lsst.ctrl.bps import WmsStates
from lsst.ctrl.bps.report import retrieve_report
from lsst.ctrl.mpexec.cli.pipetask import cli as pipetask
from lsst.daf.butler.cli.butler import cli as butler_command
from lsst.daf.butler.cli.utils import LogCliRunner

from qgexec.books.journal import read_events
from qgexec.books.rundir import RunDir
from qgexec.events import AttemptStarted
from qgexec.reports.report import RunState
from tests.bps.conftest import SERVICE, Bps
from tests.kit.butler.repos import INPUT_CHAIN, N_QUANTA, OUTPUT, OUTPUT_RUN, MockRepository, copy_template
from tests.kit.commands.qgexec import Moods, call, datasets

OUTPUTS = ("post_isr", "calibrated", "visit_summary_mock", "final_report")


def _holds(repository: MockRepository) -> dict[str, Any]:
    """Return what a repository holds, but for the identifiers of datasets."""
    dump: dict[str, Any] = repository.dump()
    return dump | {"datasets": [dataset[:3] for dataset in dump["datasets"]]}


def _as_other_services(repository: Path, graph: Path) -> None:
    """Run the commands of ctrl_bps's defaults, as the jobs of other services do."""
    mock = "--mock-storage-classes"
    final = ("-j", "1", "--register-dataset-types", "--update-output-chain", mock)
    for command, arguments in (
        (pipetask, ("pre-exec-init-qbb", repository, graph)),
        (pipetask, ("run-qbb", repository, graph)),
        (butler_command, ("aggregate-graph", graph, repository, *final)),
    ):
        result = LogCliRunner().invoke(command, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)


def _row(output: str, label: str) -> dict[str, int]:
    """Return a row of the table that ``bps report --id`` prints."""
    lines = [line.split() for line in output.splitlines()]
    names = next(line for line in lines if "PRUNED" in line and "EXPECTED" in line)
    numbers = next(line for line in lines if line[:1] == [label] and len(line) == len(names) + 1)
    return {name: int(n) for name, n in zip(names, numbers[1:], strict=True) if n != "0"}


def test_pipeline_to_the_end(template: MockRepository, bps: Bps, tmp_path: Path) -> None:
    """A pipeline is built, executed, ingested; it ends as with `qgexec run`, and with other services."""
    pipeline = template.root.parent / "pipeline.yaml"
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}  # an interpreter that has it says so
    bps.configure(qgraphFile=None, pipelineYaml=str(pipeline), qgexecWait=True, environment=environment)
    said = bps("submit", "bps.yaml")
    assert "import time:" in (bps.submit_path / "qgexec.log").read_text()
    assert f"Run Id: {bps.submit_path}" in said

    table = bps("report", "--id", bps.submit_path, "--return-exit-codes")
    assert "SUCCEEDED 100" in table
    assert all(word in table for word in ("dev", "quick", "check", str(bps.run_dir)))
    assert _row(table, "isr") == {"SUCCEEDED": 8, "EXPECTED": 8}
    assert _row(table, "finalJob") == {"SUCCEEDED": 1, "EXPECTED": 1}
    assert _row(table, "TOTAL") == {"SUCCEEDED": N_QUANTA + 1, "EXPECTED": N_QUANTA + 1}
    bps("status", "--id", bps.submit_path)
    (record,), _ = retrieve_report(SERVICE, run_id=str(bps.submit_path))
    assert {job.state for job in record.jobs} == {WmsStates.SUCCEEDED}
    assert len(record.jobs) == N_QUANTA + 1

    with bps.repository.butler() as butler:
        chain = butler.collections.get_info(OUTPUT).children
        inputs = butler.collections.query(INPUT_CHAIN, flatten_chains=True)
    assert list(chain) == [OUTPUT_RUN, *inputs]

    other = copy_template(template, tmp_path / "other")
    graph = next(bps.submit_path.glob("*.qg"))
    options = ("-g", graph, "--register-dataset-types", "--run-dir", tmp_path / "run", "-j", 2)
    assert call("run", "-b", other.root, *options).code == 0
    assert _holds(bps.repository) == _holds(other)

    third = copy_template(template, tmp_path / "third")
    _as_other_services(third.root, graph)
    assert _holds(bps.repository) == _holds(third)


@pytest.mark.thorough
def test_failure_and_restart(bps: Bps, moods: Moods) -> None:
    """A failed quantum is in report and status, with what it blocks; restart executes these alone."""
    moods.set({"isr 1,3": "raise"})
    bps.configure(qgexecWait=True)
    bps("submit", "bps.yaml")

    table = bps("report", "--id", bps.submit_path, "--return-exit-codes")
    assert _row(table, "isr") == {"SUCCEEDED": 7, "FAILED": 1, "EXPECTED": 8}
    assert _row(table, "calibrate") == {"SUCCEEDED": 7, "PRUNED": 1, "EXPECTED": 8}
    assert _row(table, "final") == {"PRUNED": 1, "EXPECTED": 1}
    codes = [line.split() for line in table.splitlines() if line.startswith("isr")]
    assert codes[-1] == ["isr", "1", "1", "0", "None"]
    bps("status", "--id", bps.submit_path, code=19)
    assert len(datasets(bps.repository, "calibrated")) == 7

    moods.set({})
    restarted = bps("restart", "--id", bps.submit_path)
    assert f"Run Id: {bps.submit_path}" in restarted
    table = bps("report", "--id", bps.submit_path)
    assert _row(table, "TOTAL") == {"SUCCEEDED": N_QUANTA + 1, "EXPECTED": N_QUANTA + 1}
    assert [len(datasets(bps.repository, name)) for name in OUTPUTS] == [8, 8, 2, 1]
    started = [n for n in (bps.submit_path / "qgexec.log").read_text().splitlines() if n.startswith("$ ")]
    assert [line.split()[2] for line in started] == ["run", "resume"]


@pytest.mark.thorough
def test_cancelled_while_it_runs(bps: Bps, moods: Moods) -> None:
    """`bps submit` returns while quanta run; they are listed, can be cancelled, and gone on with."""
    moods.set({"isr": "wait"})
    bps.configure()
    bps("submit", "bps.yaml")
    moods.wait_for(2)

    (row,) = [line.split() for line in bps("report").splitlines() if str(bps.submit_path) in line]
    assert row[:2] == ["RUNNING", "0"]
    bps("status", "--id", bps.submit_path, code=15)
    assert "is in the hands of" in bps("restart", "--id", bps.submit_path)

    assert "Successfully canceled" in bps("cancel", "--id", bps.submit_path)
    assert bps.report().state is RunState.STOPPED
    bps("status", "--id", bps.submit_path, code=16)
    assert _row(bps("report", "--id", bps.submit_path), "isr") == {"DELETED": 8, "EXPECTED": 8}
    assert bps("report") == ""
    assert "No job matches" in bps("cancel", "--id", bps.submit_path)

    moods.set({})
    bps("restart", "--id", bps.submit_path)
    assert bps.wait(lambda report: report.state is RunState.SUCCEEDED).all_succeeded
    bps("status", "--id", bps.submit_path)


@pytest.mark.thorough
def test_again_into_the_same_chain(bps: Bps) -> None:
    """A second RUN comes first in the output chain; both are reported as ended within a day."""
    bps.configure(qgexecWait=True)
    bps("submit", "bps.yaml")
    second = f"{OUTPUT}/second"
    bps.configure({"outputRun": second}, qgexecWait=True, updateQuantumGraph=None)
    bps("submit", "bps.yaml")
    with bps.repository.butler() as butler:
        assert butler.collections.get_info(OUTPUT).children[:2] == (second, OUTPUT_RUN)
        assert len(butler.query_datasets("calibrated", second)) == 8
    assert bps("report", "--hist", "1").count("SUCCEEDED") == 2


@pytest.mark.thorough
def test_into_a_run_that_exists(bps: Bps, moods: Moods) -> None:
    """As with `pipetask run-qbb`: what is done in the RUN is skipped, the rest executed.

    Where the final job of BPS would make no output chain, there is none.
    """
    moods.set({"isr 1,3": "raise"})
    bps.configure(qgexecWait=True, finalJob={"updateOutputChain": ""})
    bps("submit", "bps.yaml")
    with bps.repository.butler() as butler:
        assert OUTPUT not in butler.collections.query("*")
    moods.set({"calibrate 1,2": "raise"})  # done before: it is not asked
    again = bps.folder / "again"
    bps.configure(qgexecWait=True, submitPath=str(again))
    bps("submit", "bps.yaml")
    table = bps("report", "--id", again)
    assert _row(table, "TOTAL") == {"SUCCEEDED": N_QUANTA + 1, "EXPECTED": N_QUANTA + 1}
    assert [len(datasets(bps.repository, name)) for name in OUTPUTS] == [8, 8, 2, 1]


def test_without_the_stack(bps: Bps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pipetask is not found it is said what to set, before ctrl_bps tries to start it."""
    monkeypatch.delenv("CTRL_MPEXEC_DIR")
    bps.configure(updateQuantumGraph="${CTRL_MPEXEC_DIR}/bin/pipetask update-graph-run")
    assert "Without one: export CTRL_MPEXEC_DIR=$VIRTUAL_ENV" in bps("submit", "bps.yaml", code=2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "algorithm", [None, "lsst.ctrl.bps.quantum_clustering_funcs.single_quantum_clustering"]
)
def test_in_order(bps: Bps, algorithm: str | None) -> None:
    """What a configuration orders is executed so: no image of a visit before all of the visit before."""
    ordering = {"ap": {"labels": "isr,calibrate", "dimensions": "visit", "implementation": "noop"}}
    bps.configure(qgexecWait=True, ordering=ordering, clusterAlgorithm=algorithm)
    bps("submit", "bps.yaml")
    assert bps.report().all_succeeded
    plan = RunDir(bps.run_dir).load_plan()
    visits = [
        plan.data_id(event.index)["visit"]
        for event in read_events(bps.run_dir / "journal")
        if isinstance(event, AttemptStarted) and plan.label(event.index) in ("isr", "calibrate")
    ]
    assert visits == sorted(visits)
    assert len(visits) == 16


@pytest.mark.thorough
def test_prepared_and_begun_later(bps: Bps) -> None:
    """A run that is only prepared is told from one that is not there; `bps restart` begins it."""
    bps.configure(qgexecWait=True)
    bps("prepare", "bps.yaml")
    for verb, code in (("report", 0), ("status", 10)):
        told = bps(verb, "--id", bps.submit_path, code=code)
        assert f"the run in {bps.submit_path} has not begun" in told
        assert f"bps restart --id {bps.submit_path}" in told
    assert "No job matches" in bps("cancel", "--id", bps.submit_path)
    bps("restart", "--id", bps.submit_path)
    assert bps.report().all_succeeded


def test_prepared_only(bps: Bps) -> None:
    """`bps prepare` writes what would be done, warns of what will not be, and does nothing."""
    before = bps.repository.dump()
    relative = os.path.relpath(bps.repository.root)
    bps.configure(
        {"butlerConfig": relative},
        submitPath="submit/{outputRun}",
        requestMemry=5,
        extraInitOptions="--x",
        computeSite="heer",
        site={"here": {}},
    )
    said = bps("prepare", "bps.yaml")
    assert "Of no meaning in the BPS configuration: requestMemry (is it requestMemory?)" in said
    assert "extraInitOptions of the BPS configuration is ignored: init-outputs are written by qgexec." in said
    assert "computeSite (no section `heer` below `site`, which has here)" in said
    told = json.loads((bps.submit_path / "qgexec.json").read_text())
    graph = str(bps.submit_path / bps.repository.graph.name)
    verb, _, repository, _, found = told["command"][:5]
    assert (verb, found) == ("run", graph)
    assert Path(repository).is_absolute()
    assert Path(repository).samefile(bps.repository.root)
    assert not bps.run_dir.exists()
    assert bps.repository.dump() == before


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qgexecModel": "slrum"}, "there is no execution model 'slrum'\nDid you mean slurm?"),
        ({"qgexecProcesses": "many"}, "qgexecProcesses is 'many'"),
        ({"payload": None}, "names no repository"),
        ({"payload": {"butlerConfig": "/no/where"}}, "there is no butler repository /no/where"),
        ({"qgraphFile": None}, "neither a pipeline nor a graph"),
        ({"qgraphFile": "/no/where.qg"}, "there is no file /no/where.qg"),
        ({"requestMemory": "8 GB"}, "cannot be executed: requestMemory is '8 GB', which is not"),
        ({"requestMemory": [1, 2]}, "cannot be executed: requestMemory: one value should stand here"),
        ({"requestMemory": "bpsEval(1 + 1)"}, "requestMemory of the BPS configuration cannot be evaluated"),
        ({"qgexecProcesses": "bpsEval(no.where, 1)"}, "qgexecProcesses of the BPS configuration cannot be"),
        ({"environment": "A=b"}, "cannot be executed: environment: a section with keys should stand here"),
        ({"clusterAlgorithm": "auto"}, "write `clusterAlgorithm: qgexec.bps.auto`"),
        ({"clusterAlgorithm": "dimensions"}, "funcs.dimension_clustering`"),
        ({"clusterAlgorithm": "my.own"}, "is of your own, and not run\nIn a BPS configuration write `clus"),
        ({"extraRunQuantumOptions": "--no-such"}, "No such option"),
        ({"extraRunQuantumOptions": "'"}, "No closing quotation"),
        ({"extraRunQuantumOptions": "--fail-fast -g other.qg"}, "--qgraph is not taken from there"),
        ({"extraRunQuantumOptions": "--model slurm"}, "--model is not taken from there"),
        ({"extraRunQuantumOptions": "--dry-run"}, "--dry-run is not taken from there"),
        ({"extraRunQuantumOptions": "--help"}, "with --help `qgexec run` would execute nothing"),
        ({"qgraphFile": None, "pipelineYaml": "/no/where.yaml#isr"}, "there is no file /no/where.yaml"),
        ({"updateQuantumGraph": "/no/bin/pipetask x"}, "there is no program /no/bin/pipetask"),
        ({"bpsBatchSubmission": True}, "bpsBatchSubmission is true"),
        ({"finalJob": {"whenRun": "NEVER"}}, "finalJob: whenRun of the BPS configuration is NEVER"),
        (
            {"finalJob": {"command2": "echo done"}},
            "command2 of the BPS configuration is a command of your own",
        ),
        ({"ordering": {"ap": {"labels": "isr", "dimensions": "visit"}}}, "ordering ap is not blocking"),
    ],
)
def test_refused_before_anything_is_made(bps: Bps, change: dict[str, Any], said: str) -> None:
    """What is wrong is told in one message, before there is a submit directory or a graph."""
    before = bps.repository.dump()
    file = bps.configure()
    config = yaml.safe_load(file.read_text()) | change
    file.write_text(yaml.safe_dump({name: value for name, value in config.items() if value is not None}))
    told = bps("submit", file, code=2)
    assert said in told
    assert "Usage" not in told
    assert told.count("Error: ") == 1
    assert not (bps.folder / "submit").exists()
    assert bps.repository.dump() == before


@pytest.mark.thorough
def test_refused_by_the_command(bps: Bps) -> None:
    """What only `qgexec` finds is told as it says it; the run can be restarted when that is mended."""
    with bps.repository.butler(writeable=True) as butler:
        butler.collections.register(OUTPUT)
    bps.configure(qgexecWait=True)
    told = bps("submit", "bps.yaml", code=2)
    assert f"Error: the output collection '{OUTPUT}' exists as a RUN collection" in told
    assert str(bps.submit_path / "qgexec.log") in told
    assert f"Restart failed: the output collection '{OUTPUT}' exists" in bps(
        "restart", "--id", bps.submit_path
    )
    assert "has not begun" in bps("report", "--id", bps.submit_path)

    with bps.repository.butler(writeable=True) as butler:
        butler.collections.x_remove(OUTPUT)
    bps("restart", "--id", bps.submit_path)
    assert bps.report().all_succeeded


def test_no_run_of_ours(bps: Bps) -> None:
    """An id that is no run: each verb says so as it does for any service."""
    said = f"there is no run of qgexec's in {bps.folder}"
    assert said in bps("report", "--id", bps.folder)
    assert said in bps("status", "--id", bps.folder, code=10)
    assert f"Restart failed: {said}" in bps("restart", "--id", bps.folder)
    cancelled = bps("cancel", "--id", bps.folder)
    assert said in cancelled
    assert "No job matches" in cancelled
    assert bps("report") == ""
    assert "by their submit directories" in bps("report", "--user", "nobody")
    assert "No job matches" in bps("cancel", "--user", "nobody")


def test_commands_of_other_kinds(bps: Bps) -> None:
    """`bps submitcmd` needs another service; `bps ping` says that the pool needs none."""
    script = bps.folder / "script.sh"
    script.write_text("#!/bin/sh\n")
    bps.configure(customJob={"executable": str(script), "arguments": ""})
    assert "Error: qgexec executes quantum graphs" in bps("submitcmd", "bps.yaml", code=2)
    assert "pool needs no service" in bps("ping")
