"""`qgexec-pipetask`: quanta as `pipetask run-qbb` executes them, without registry and without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest
from lsst.daf.butler.cli.butler import cli as butler_command
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.cli.utils import LogCliRunner
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import ExecutionStatus, Report

from qgexec.cli import pipetask as ours
from qgexec.rubin.graphfile import read_plan
from tests.kit.butler.repos import N_QUANTA, OUTPUT, OUTPUT_RUN, MockRepository, copy_template
from tests.kit.checkout import CHECKOUT
from tests.kit.commands.pipetask import commands, option_names, pipetask
from tests.kit.commands.qgexec import Command, Moods, Result
from tests.kit.processes.disks import fill, small_disk

PROGRAM = ("-m", "qgexec.cli.pipetask")

OWN = ("run-qbb", "pre-exec-init-qbb")

Run = Callable[..., Result]


@pytest.fixture
def begin(folder: Path, start: Callable[..., Command]) -> Callable[..., Command]:
    """Starts the program in the folder; its runs would be listed, and leave what they leave, there."""

    def begin(*arguments: object) -> Command:
        return start(*arguments, interpreter=PROGRAM, environment={"QGEXEC_STATE": str(folder / "state")})

    return begin


@pytest.fixture
def run(begin: Callable[..., Command]) -> Run:
    """Runs the program to its end: no process, and no temporary file, is left then."""
    return lambda *arguments: begin(*arguments).finish()


@pytest.fixture
def prepared(repository: MockRepository, run: Run) -> list[object]:
    """Repository and graph, with init-outputs; the registry is not there."""
    there: list[object] = [repository.root, repository.graph]
    result = run("pre-exec-init-qbb", *there)
    assert result.code == 0, result.err
    (repository.root / "gen3.sqlite3").rename(repository.root / "away")
    return there


def taken_in(repository: MockRepository) -> int:
    """Bring the registry back, take in all that is there, and return how many quanta have metadata."""
    (repository.root / "away").rename(repository.root / "gen3.sqlite3")
    words = ["transfer-from-graph", repository.graph, repository.root, "--register-dataset-types"]
    try:
        result = LogCliRunner().invoke(butler_command, [*map(str, words), "--update-output-chain"])
    finally:
        CliLog.resetLog()
    assert result.exit_code == 0, (result.output, result.exception)
    with repository.butler(collections=OUTPUT) as butler:
        assert butler.query_datasets("packages", limit=None)
        assert butler.query_datasets("isr_schema", limit=None)
        there = butler.query_all_datasets(OUTPUT_RUN, name="*_metadata", limit=None)
    return len(there)


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_graph(
    repository: MockRepository, prepared: list[object], run: Run, folder: Path, processes: int
) -> None:
    """The registry need not be there, and nothing but the outputs is left; `butler` takes them in."""
    result = run("run-qbb", *prepared, "-j", processes)
    assert (result.code, result.out) == (0, ""), result.err
    assert f"Quanta: {N_QUANTA} succeeded" in result.err
    assert "lsst.pipe.base.single_quantum_executor INFO: " in result.err
    assert [path for path in folder.iterdir() if not path.name.startswith("tmp-")] == []
    assert taken_in(repository) == N_QUANTA


def test_named_quanta(repository: MockRepository, prepared: list[object], run: Run) -> None:
    """Only these run, each after those among them that it needs; what is done is done."""
    plan = read_plan(repository.graph)
    last = next(i for i in range(len(plan)) if plan.label(i) == "calibrate")
    named = f"{plan.quantum_id(last)}, {plan.quantum_id(*plan.prerequisites(last))}"
    result = run("--no-log-tty", "run-qbb", *prepared, "--qgraph-node-id", named)
    assert (result.code, result.err) == (0, "Quanta: 2 succeeded\n")
    again = run("--no-log-tty", "run-qbb", "-j", 2, *prepared, "--qgraph-node-id", named)
    assert (again.code, again.err) == (0, "Quanta: 2 skipped\n")
    assert taken_in(repository) == 2


def test_old_graph(repository: MockRepository, run: Run) -> None:
    """A .qgraph file is read as well; its identifier is looked at."""
    old = repository.graph.with_suffix(".qgraph")
    graph = PredictedQuantumGraph.read_execution_quanta(str(repository.graph))
    graph.to_old_quantum_graph().saveUri(str(old))
    plan = read_plan(repository.graph)
    given = [repository.root, old, "--qgraph-node-id", plan.quantum_id(0)]
    assert run("pre-exec-init-qbb", *given[:2]).code == 0
    assert run("run-qbb", *given, "--qgraph-id", "of another graph").code == 1
    assert "Quanta: 1 succeeded" in run("run-qbb", *given).err


FAILURES = {
    "exception": ("raise", (), 1),
    "exception and fail fast": ("raise", ("--fail-fast",), 1),
    "repeatable": ("raise repeatable", (), 1),
    "repeatable and fail fast": ("raise repeatable", ("--fail-fast",), 20),
    "invalid": ("raise invalid", (), 21),
    "invalid in a worker": ("raise invalid", ("-j", "2"), 1),
    "worker dies": ("segfault", ("-j", "2"), 1),
}


@pytest.mark.every(2)
@pytest.mark.parametrize(("mood", "options", "code"), FAILURES.values(), ids=FAILURES)
def test_failures(
    prepared: list[object], run: Run, moods: Moods, mood: str, options: tuple[str, ...], code: int
) -> None:
    """The exit code is pipetask's, and what went wrong is printed, with where it did."""
    moods.set({"isr 1,1": mood})
    result = run("--no-log-tty", "run-qbb", *prepared, *options)
    assert result.code == code, result.err
    assert "Failed: isr{" in result.err
    assert "in runQuantum" in result.err or mood == "segfault"
    assert "1 failed" in result.err
    if "-j" not in options:  # upstream's workers are a new interpreter each
        assert pipetask("run-qbb", *prepared, *options).code == code


@pytest.mark.thorough
def test_again_after_a_failure(
    repository: MockRepository, prepared: list[object], run: Run, moods: Moods
) -> None:
    """What succeeded is skipped, and what a failed quantum left is no hindrance."""
    moods.set({"calibrate 1,1": "raise"})
    assert run("--no-log-tty", "run-qbb", *prepared).code == 1
    moods.set({})
    result = run("--no-log-tty", "run-qbb", *prepared)
    assert (result.code, result.err) == (0, "Quanta: 3 succeeded, 16 skipped\n")
    assert taken_in(repository) == N_QUANTA


def test_full_repository(template: MockRepository, run: Run, tmp_path: Path) -> None:
    """One message, and the same command goes on when there is room: no quantum has failed."""
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        full = copy_template(template, disk / "data")
        assert run("pre-exec-init-qbb", full.root, full.graph).code == 0
        fill(disk / "ballast")
        result = run("--no-log-tty", "run-qbb", full.root, full.graph)
        assert result.code == 1
        assert "is full" in result.err
        assert result.err.endswith("Then give the same command again: what is done is skipped.\n")
        (disk / "ballast").unlink()
        assert run("run-qbb", full.root, full.graph).code == 0


def test_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The butler finds these folders before those of the environment, here and in workers."""
    monkeypatch.setenv("DAF_BUTLER_CONFIG_PATH", "/site")
    given = ["REPO", "graph.qg", "--config-search-path", "/a,/b", "--config-search-path", "/c"]
    ours.run_qbb.make_context("run-qbb", given)
    assert os.environ["DAF_BUTLER_CONFIG_PATH"] == "/a:/b:/c:/site"


WRONG = {
    "no such graph": (("run-qbb", "REPO", "nowhere.qg"), 1, "nowhere.qg does not exist"),
    "no such repository": (("run-qbb", "nowhere", "GRAPH"), 1, "there is no butler repository"),
    "no such quantum": (
        ("run-qbb", "REPO", "GRAPH", "--qgraph-node-id", "c3a9e4a5-13cd-4a3f-a0b5-3a4d6cf3c0b1"),
        1,
        "has no quantum c3a9e4a5",
    ),
    "no UUID": (("run-qbb", "REPO", "GRAPH", "--qgraph-node-id", "12"), 2, "'12' is no UUID"),
    "no such option": (("run-qbb", "REPO", "GRAPH", "--nothing"), 2, "No such option"),
    "no graph": (("pre-exec-init-qbb", "REPO"), 2, "Missing argument"),
    "no such command": (("fly",), 2, "No such command"),
    "no terminal for a debugger": (("run-qbb", "REPO", "GRAPH", "--pdb"), 2, "there is no terminal"),
}


@pytest.mark.every(2)
@pytest.mark.parametrize(("words", "code", "said"), WRONG.values(), ids=WRONG)
def test_wrong_use(
    repository: MockRepository, run: Run, words: tuple[str, ...], code: int, said: str
) -> None:
    """One message; 2 where another try is of no use, 1 where pipetask ends with a traceback."""
    names = {"REPO": str(repository.root), "GRAPH": str(repository.graph)}
    before = repository.dump()
    result = run(*(names.get(word, word) for word in words))
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert "Traceback" not in result.err
    assert repository.dump() == before


@pytest.mark.thorough
@pytest.mark.every(2)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(
    repository: MockRepository,
    prepared: list[object],
    begin: Callable[..., Command],
    moods: Moods,
    processes: int,
    number: signal.Signals,
) -> None:
    """It ends at once, with all that it has started; whoever started it is told as of pipetask."""
    moods.set({"isr": "wait"})
    command = begin("run-qbb", *prepared, "-j", processes)
    moods.wait_for(processes)
    command.signal(number)
    assert command.finish().code == (1 if number is signal.SIGINT else -number)
    moods.set({})
    assert begin("run-qbb", *prepared).finish().code == 0
    assert taken_in(repository) == N_QUANTA


def test_summary(prepared: list[object], run: Run, moods: Moods, folder: Path) -> None:
    """It is upstream's report, of these quanta only."""
    moods.set({"calibrate 1,1": "raise"})
    assert run("run-qbb", *prepared, "--summary", folder / "summary.json").code == 1
    report = Report.model_validate_json((folder / "summary.json").read_text())
    assert report.status is ExecutionStatus.FAILURE
    assert report.exceptionInfo is not None
    assert len(report.quantaReports) == N_QUANTA


def test_metadata_of_the_job(repository: MockRepository, prepared: list[object], run: Run) -> None:
    """As upstream has it: how long it took to read the graph, and how much was read."""
    plan = read_plan(repository.graph)
    assert run("run-qbb", *prepared, "--qgraph-node-id", plan.quantum_id(0)).code == 0
    (file,) = (repository.root / OUTPUT_RUN / f"{plan.label(0)}_metadata").rglob("*.json")
    job = json.loads(file.read_text())["metadata"]["job"]["scalars"]
    assert job["qg_size"] == 1
    assert job["qg_read_time"] > 0


@pytest.mark.parametrize("name", OWN)
def test_options(name: str) -> None:
    """Each is one of ours, under all of its names, with or without a value as pipetask has it."""
    command = ours.cli.get_command(click.Context(ours.cli), name)
    assert command is not None
    theirs = commands()[name]
    known = {opt: param for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    for names in option_names(theirs):
        assert {known[each] for each in names} == {known[names[0]]}
    flags = {
        opt: param.is_flag for param in theirs.params if isinstance(param, click.Option) for opt in param.opts
    }
    assert {opt: known[opt].is_flag for opt in flags if not opt.startswith("--option-section")} == {  # type: ignore[attr-defined]
        opt: flag for opt, flag in flags.items() if not opt.startswith("--option-section")
    }
    arguments = [param.name for param in command.params if isinstance(param, click.Argument)]
    assert arguments == ["repository", "qgraph"]


def test_every_command_of_pipetask_is_there() -> None:
    """And no other."""
    assert set(ours.cli.list_commands(click.Context(ours.cli))) == set(commands())


def test_handed_on(building: list[object], run: Run, folder: Path) -> None:
    """What ctrl_bps builds a graph with, as its defaults have it."""
    options = ["--long-log", "--log-level=VERBOSE", "qgraph", "--butler-config", building[1]]
    more = ["--pipeline", building[3], *building[4:], "--output-run", "u/me/run", "--save-qgraph", "new.qg"]
    result = run(*options, *more, "--qgraph-datastore-records", "-d", "visit = 1")
    assert result.code == 0, result.err
    assert len(read_plan(folder / "new.qg")) > 1


def test_help_at_once() -> None:
    """With an example, and without importing the stack."""
    code = (
        "import sys\n"
        "from qgexec.cli.pipetask import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['pipetask', *command.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0, command\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "", *OWN], check=True, capture_output=True, text=True)
    assert done.stdout.count("qgexec-pipetask ") >= 1 + len(OWN)
    assert done.stdout.count("Example") == 1 + len(OWN)
    assert not {"lsst", "numpy", "rich"} & set(done.stderr.split())


def test_it_is_installed() -> None:
    """Under this name; what it is linked to as is the business of whoever installs it."""
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["qgexec-pipetask"].partition(":")
    assert getattr(import_module(module), name) is ours.main
