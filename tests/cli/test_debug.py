"""`qgexec log` and `qgexec debug`, on a run whose first task has been executed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.config.runconfig import RunConfig, TaskSettings
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.events import (
    AttemptFailed,
    AttemptOutOfMemory,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    RunReopened,
    RunStarted,
)
from qgexec.quantum import OutcomeStatus, Resources, RunContext
from qgexec.rubin import scratch
from qgexec.rubin.graphfile import read_plan
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.quantumname import find_quantum
from tests.kit.butler.benchwork import Site, prepare_outputs
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import DEADLINE_S, Moods, call, one_message
from tests.kit.processes import warm

FAILING = "isr{visit: 1, detector: 2}"


@pytest.fixture
def run(repository: MockRepository, moods: Moods, tmp_path: Path) -> RunDir:
    """The books of a run that has executed the first task; one of its quanta failed, and would again."""
    prepare_outputs(repository)
    moods.set({"isr 1,2": "raise"})
    run_dir = RunDir.create(tmp_path / "run")
    plan = read_plan(repository.graph)
    run_dir.save_plan(plan)
    context = RunContext(str(run_dir.path), str(repository.root), str(repository.graph), OUTPUT_RUN)
    run_dir.write_settings(RunSettings(context, "inprocess", labels=plan.labels))
    done = Site(repository, run_dir.path).run(["isr"])
    with Journal.create(run_dir.journal) as journal:
        journal.append(RunStarted(1.0, "node1", 1, 0.0, "inprocess", len(plan)))
        for index, outcome in done.outcomes.items():
            failed = outcome.status is OutcomeStatus.FAILED
            ended: Event = AttemptFailed(2.0, outcome) if failed else AttemptSucceeded(2.0, outcome)
            journal.append(AttemptStarted(1.0, index, 1))
            journal.append(ended)
    return run_dir


@pytest.fixture
def unchanged(
    repository: MockRepository, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Asserts that registry, files and run directory are as they were, and that no temporary file is left."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def state() -> object:
        files = [path for root in (repository.root, run.path) for path in sorted(root.rglob("*"))]
        return repository.dump(), {
            path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()
        }

    before = state()

    def check() -> None:
        assert state() == before
        assert list(temporary.iterdir()) == []

    return check


def plan_of(run: RunDir) -> Plan:
    return run.load_plan()


class TestDebug:
    """`qgexec debug`."""

    def test_failure(self, run: RunDir, unchanged: Callable[[], None]) -> None:
        """Its traceback is shown; without a terminal there is no debugger to talk to."""
        result = call("debug", run.path, FAILING)
        assert result.code == 1
        assert "Traceback (most recent call last)" in result.err
        assert "ValueError: bad pixels in isr 1,2" in result.err
        assert "No terminal: pdb is not started" in result.err
        unchanged()

    def test_success(self, run: RunDir, moods: Moods, unchanged: Callable[[], None]) -> None:
        """What it wrote is named, and removed."""
        moods.set({})
        result = call("debug", run.path, FAILING)
        assert (result.code, result.out) == (0, "")
        assert "It succeeded" in result.err
        assert "It wrote 3 datasets in a folder that is removed now" in result.err
        unchanged()

    def test_inputs_from_the_run(self, run: RunDir, unchanged: Callable[[], None]) -> None:
        """They are there although nothing has been ingested; those that are not are named."""
        result = call("debug", run.path, "calibrate{visit: 1, detector: 1}")
        assert result.code == 0
        assert "of its inputs" not in result.err
        missing = call("debug", run.path, "calibrate{visit: 1, detector: 2}")
        assert "1 of its inputs is not there" in missing.err
        unchanged()

    def test_keep(self, run: RunDir, moods: Moods, unchanged: Callable[[], None], tmp_path: Path) -> None:
        """Outputs stay in a folder that was not there before; one that was is refused."""
        moods.set({})
        kept = tmp_path / "kept" / "here"
        result = call("debug", run.path, FAILING, "--keep", kept)
        assert result.code == 0
        assert len(list(kept.rglob("*.json"))) == 3
        assert str(next(kept.rglob("post_isr*.json"))) in result.err
        one_message(call("debug", run.path, FAILING, "--keep", kept), "kept/here", "Name a new folder")
        unchanged()

    @pytest.mark.every(2)
    @pytest.mark.parametrize(
        ("module", "said"), [("nodebugger", "cannot be imported"), ("json", "post_mortem")]
    )
    def test_no_debugger(self, run: RunDir, module: str, said: str, unchanged: Callable[[], None]) -> None:
        """It is looked for before the quantum is executed."""
        one_message(call("debug", run.path, FAILING, f"--pdb={module}"), module, said)
        unchanged()

    @pytest.mark.every(3)
    @pytest.mark.parametrize("option", [[], ["--pdb"], ["--pdb=pdb"]])
    def test_terminal(self, run: RunDir, unchanged: Callable[[], None], option: list[str]) -> None:
        """There the debugger stands where the quantum raised; when it is left, all is removed."""
        shown = _talk(["debug", str(run.path), FAILING, *option], ["p name", "q"])
        assert "'isr 1,2'" in shown
        assert "No terminal" not in shown
        unchanged()

    def test_no_repository(self, run: RunDir, tmp_path: Path) -> None:
        """What an executor of the client's own did is that one's affair."""
        other = RunDir.create(tmp_path / "other")
        other.save_plan(plan_of(run))
        other.write_settings(RunSettings(RunContext(str(other.path), "", "/graph.qg", "r"), "pool"))
        one_message(call("debug", other.path, "0"), "has no repository")


@pytest.mark.parametrize("command", ["log", "debug"])
def test_unknown_quantum(run: RunDir, command: str) -> None:
    """One message, with the nearest."""
    one_message(call(command, run.path, "isr{visit: 1, detector: 9}"), "The nearest are", "detector: 1")
    one_message(call(command, run.path, "99"), "There is no quantum 99")


def test_it_is_told_what_the_next_attempt_would_be(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that has grown in the run has grown here."""
    config = RunConfig(TaskSettings(memory_bytes=3 << 30, memory_multiplier=2.0))
    run.rewrite_settings(replace(run.read_settings(), options=RunOptions(config=config).to_json()))
    index = find_quantum(plan_of(run), "isr{visit: 1, detector: 2}")
    with Journal.create(run.journal, after=1) as journal:
        journal.append(RunReopened(3.0))
        journal.append(AttemptStarted(3.0, index, 2))
        journal.append(AttemptOutOfMemory(4.0, index, 2, 4 << 30, 3 << 30, retried=True))
    told: list[Resources] = []

    def open_scratch(*_: object, resources: Resources, **__: object) -> None:
        told.append(resources)
        raise UsageError("that is all")

    monkeypatch.setattr(scratch, "open_scratch", open_scratch)
    one_message(call("debug", run.path, index), "that is all")
    assert told == [Resources(1, 6 << 30)]


class TestLog:
    """`qgexec log`."""

    def test_dataset(self, run: RunDir) -> None:
        """Of an attempt that succeeded: from the repository, by any of its quantum's names."""
        plan = plan_of(run)
        index = next(
            node.index for node in plan if (node.data_id["visit"], node.data_id.get("detector")) == (1, 1)
        )
        texts = {
            call("log", run.path, name).out for name in (index, plan.quantum_id(index), plan.describe(index))
        }
        (text,) = texts
        assert "Preparing execution of quantum" in text

    def test_file(self, run: RunDir) -> None:
        """Of one that was kept: without the stack, and with where it stood when it was ended."""
        plan = plan_of(run)
        index = next(
            i
            for i in range(len(plan))
            if "visit: 1" in plan.describe(i) and "detector: 2" in plan.describe(i)
        )
        run.attempt_log(index, 1).write_bytes(b"last words \xff\x1b[31m\n")
        run.attempt_stack(index, 1).write_text('File "stuck.py", line 3\n')
        code = (
            "import sys; from qgexec.cli.main import main\n"
            "try: main()\n"
            "finally: print({'lsst', 'pydantic'} & set(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "log", run.path, str(index), "--attempt", "1"],
            check=True,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.stdout.startswith("last words \\xff?[31m\n\nStacks when it was ended:\n")
        assert 'File "stuck.py", line 3' in done.stdout
        assert done.stderr.splitlines()[-1] == "set()"

    def test_none(self, run: RunDir) -> None:
        """The error says why."""
        one_message(call("log", run.path, "final"), "has not been started")
        one_message(call("log", run.path, FAILING, "--attempt", "3"), "has no attempt 3", "one attempt")


def _talk(arguments: list[str], commands: list[str]) -> str:
    """Run the command on a terminal, answer the debugger with these lines, and return what was shown."""
    ours, theirs = pty.openpty()
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "TMPDIR": tempfile.gettempdir(),
    }
    process = warm.Popen(
        [sys.executable, "-m", "qgexec", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            shown += os.read(ours, 65536)
            if commands and shown.endswith(b"(Pdb) "):
                os.write(ours, commands.pop(0).encode() + b"\n")
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    finally:
        os.close(ours)
        process.kill()
    assert process.wait(DEADLINE_S) == 1, shown.decode()
    return shown.decode()
