"""Options that look into a run: lsstDebug, debuggers, profiles, coverage, and ordering of a client's own."""

from __future__ import annotations

import os
import pstats
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qgexec.books.rundir import RunDir
from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import DEADLINE_S, Command, Moods, call, one_message
from tests.kit.processes import warm

# Here, other than in a command of its own, all has been imported before.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*previously imported, but not measured:coverage.exceptions.CoverageWarning"
)

Arguments = tuple[object, ...]


@pytest.fixture
def running(repository: MockRepository) -> Arguments:
    """The command that executes the standard graph."""
    return (
        "run",
        "-b",
        repository.root,
        "-g",
        repository.graph,
        "--register-dataset-types",
        "--run-dir",
        "books",
    )


@pytest.mark.thorough
@pytest.mark.parametrize("processes", [1, 2])
def test_debug_is_imported(
    running: Arguments, folder: Path, start: Callable[..., Command], processes: int
) -> None:
    """debug.py is imported in each process that executes quanta, if that is asked for."""
    (folder / "debug.py").write_text("import os, pathlib\npathlib.Path(f'imported-{os.getpid()}').touch()\n")
    assert start(*running, "-j", processes, "--debug").finish().code == 0
    assert 1 <= len([*folder.glob("imported-*")]) <= processes


def test_debugger_is_started(running: Arguments, folder: Path, moods: Moods) -> None:
    """On a terminal the debugger gets the traceback of a quantum that fails; the run then goes on."""
    moods.set({"isr 1,3": "raise", "isr 2,2": "raise"})
    (folder / "noted.py").write_text(
        "import traceback\n"
        "def post_mortem(trace):\n"
        "    with open('noted.txt', 'a') as file:\n"
        "        print(traceback.extract_tb(trace)[-1].line, input('(noted) '), file=file)\n"
    )
    ours, theirs = pty.openpty()
    os.write(ours, b"first\nsecond\n")
    process = warm.Popen(
        [sys.executable, "-m", "qgexec", *map(str, running), "--pdb=noted"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    try:
        _, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        os.close(theirs)
        os.close(ours)
    assert process.returncode == 1, err.decode()
    assert Path("noted.txt").read_text().splitlines() == [
        'raise ValueError(f"bad pixels in {name}") first',
        'raise ValueError(f"bad pixels in {name}") second',
    ]


def test_profile(running: Arguments, folder: Path, moods: Moods) -> None:
    """The profile is written, also of a run with failures, and has what the quanta did."""
    moods.set({"isr 1,3": "raise"})
    assert call(*running, "--profile", "run.profile").code == 1
    functions = {name for _, _, name in pstats.Stats("run.profile").stats}  # type: ignore[attr-defined]
    assert "runQuantum" in functions


def test_coverage(running: Arguments, folder: Path) -> None:
    """Which code ran is recorded and reported, for the packages asked for."""
    coverage = pytest.importorskip("coverage")
    result = call(
        *running, "--coverage", "--cov-packages", "tests.kit.tasks.moodytask,tests.kit.butler.repos"
    )
    assert result.code == 0, result.err
    assert "The coverage report is in covhtml" in result.err
    assert Path("covhtml/index.html").exists()
    data = coverage.CoverageData()
    data.read()
    assert {Path(file).name for file in data.measured_files()} == {"moodytask.py"}


def test_coverage_of_building(repository: MockRepository, folder: Path) -> None:
    """`qgraph` and `init` have it too; without a report only the data is written."""
    pytest.importorskip("coverage")
    build = ["-b", repository.root, "-g", repository.graph]
    packages = ["--coverage", "--no-cov-report", "--cov-packages", "qgexec.rubin"]
    for command in (["qgraph", *build], ["init", *build, "--register-dataset-types"]):
        assert call(*command, *packages).code == 0
        assert Path(".coverage").exists()
        Path(".coverage").unlink()
    assert not Path("covhtml").exists()


def test_coverage_is_not_installed(running: Arguments, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said before anything is done."""
    monkeypatch.setitem(sys.modules, "coverage", None)
    one_message(call(*running, "--coverage"), "--coverage: ", "pip install coverage")
    assert list(folder.iterdir()) == []


FIXUP = """
from itertools import pairwise
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup

class InOrder(ExecutionGraphFixup):
    def fixup_graph(self, xgraph, quanta_by_task):
        isr = quanta_by_task["isr"]
        xgraph.add_edges_from(pairwise(isr[data_id] for data_id in sorted(isr)))

class Failing(ExecutionGraphFixup):
    def fixup_graph(self, xgraph, quanta_by_task):
        return quanta_by_task["nosuch"]

def broken():
    raise RuntimeError("no order")

def leaving():
    raise SystemExit(0)
"""


@pytest.fixture
def ordering(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with ordering of a client's own."""
    place = folder.parent / "modules"
    place.mkdir()
    (place / "client_ordering.py").write_text(FIXUP)
    monkeypatch.syspath_prepend(place)
    return "client_ordering"


def test_graph_fixup(running: Arguments, ordering: str, folder: Path) -> None:
    """The object that a name stands for adds its edges to the plan of the run."""
    assert call(*running, "--graph-fixup", f"{ordering}.InOrder").code == 0
    plan = RunDir.open(Path("books")).load_plan()
    assert len(plan) == N_QUANTA
    isr = [node for node in plan if node.task_label == "isr"]
    assert [len(node.prerequisites) for node in isr] == [0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.such.Fixup", "--graph-fixup no.such.Fixup cannot be imported"),
        ("client_ordering.broken", "cannot be called: RuntimeError: no order"),
        ("client_ordering.leaving", "cannot be called: RuntimeError: it would end the program"),
        ("client_ordering.Failing", "a client_ordering.Failing, failed: KeyError: 'nosuch'"),
        ("enum.Enum", "--graph-fixup enum.Enum cannot be called"),
        ("builtins.dict", "makes a dict, not an ExecutionGraphFixup"),
    ],
)
def test_graph_fixup_refused(name: str, said: str, running: Arguments, ordering: str, folder: Path) -> None:
    """What is no such object is named; nothing has begun."""
    one_message(call(*running, "--graph-fixup", name), said)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pdb"], "--pdb: there is no terminal."),
        (["--pdb=no_such_debugger"], "The debugger no_such_debugger cannot be imported"),
        (["--pdb=json"], "The module json is no debugger"),
        (["--pdb=."], "The debugger . cannot be imported"),
        (["--pdb="], "it is empty"),
        (["--pdb", "--timeout", "3"], "--pdb and --timeout exclude each other"),
        (["--pdb", "-j", "2"], "--pdb: quanta do not run in this process with the model pool."),
        (
            ["--profile", "a", "--coverage", "-j", "2"],
            "--profile, --coverage: quanta do not run in this process",
        ),
        (["--profile", "no/folder/a"], "--profile no/folder/a cannot be written"),
    ],
)
def test_wrong_use(options: list[str], said: str, running: Arguments, folder: Path) -> None:
    """One message says what is wrong; nothing has begun."""
    one_message(call(*running, *options), said)
    assert list(folder.iterdir()) == []
