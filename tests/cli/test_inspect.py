"""`qgexec status`, `report` and `models`, and what a run shows while it goes on."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qgexec.events import EndReason, RunEnded
from tests.kit.butler.repos import N_QUANTA, MockRepository, copy_template
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import Command, Moods, call, one_message, working_in
from tests.kit.processes import warm
from tests.kit.runs.handbooks import BEGAN, HandBooks, started, succeeded
from tests.kit.runs.reportschema import assert_valid

Start = Callable[..., Command]


@pytest.fixture(scope="module")
def failed_run(template: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The books of a run with failures of several kinds, blocked quanta and skipped ones."""
    folder = tmp_path_factory.mktemp("failed")
    repository = copy_template(template, folder / "data")
    moods = Moods(template.root.parents[1])
    with working_in(folder):
        given = [
            "run",
            "-b",
            repository.root,
            "-g",
            repository.graph,
            "--register-dataset-types",
            "--fail-fast",
        ]
        moods.set({"calibrate 1,2": "raise"})
        assert call(*given, "--run-dir", "first").code == 1
        moods.set({"calibrate": "raise"})
        extend = ["--extend-run", "--clobber-outputs", "--run-dir", folder / "books"]
        assert call(*given[:-1], *extend).code == 1
    moods.close()
    return folder / "books"


@pytest.mark.parametrize("command", [["status"], ["report"], ["report", "--json"]])
class TestReading:
    """Commands that only read."""

    def test_without_the_stack(self, failed_run: Path, command: list[str]) -> None:
        """They start fast: neither lsst nor rich is imported."""
        code = (
            "import sys; from qgexec.cli.main import main\n"
            "try: main()\n"
            "finally: print({'lsst', 'astropy', 'rich', 'pydantic'} & set(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command, failed_run], check=False, capture_output=True, text=True
        )
        assert done.stderr.strip() == "set()"
        assert done.returncode == 1

    def test_reader_that_has_enough(self, failed_run: Path, command: list[str]) -> None:
        """`| head -1`: no complaint, and the exit code is still the run's."""
        process = warm.Popen(
            [sys.executable, "-m", "qgexec", *command, failed_run],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with process.stderr:
            assert process.stderr.read() == b""
        assert process.wait(60) == 1

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_any_locale(self, failed_run: Path, command: list[str], encoding: str) -> None:
        """What the locale's encoding does not have is written in another way; click takes ASCII for UTF-8."""
        environment = os.environ | {"PYTHONIOENCODING": encoding, "NO_COLOR": "1", "COLUMNS": "60"}
        done = warm.run(
            [sys.executable, "-m", "qgexec", *command, failed_run],
            check=False,
            capture_output=True,
            env=environment,
        )
        assert done.stderr == b""
        assert b"\x1b" not in done.stdout
        done.stdout.decode("utf-8" if encoding == "ascii" else encoding)

    @pytest.mark.parametrize("name", ["nowhere", "empty", "file", "torn"])
    def test_no_run(self, failed_run: Path, command: list[str], name: str, tmp_path: Path) -> None:
        """What is no run directory is named, with what to do."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / "run.json").write_bytes((failed_run / "run.json").read_bytes()[:100])
        one_message(call(*command, tmp_path / name), name)


def test_report_fits(failed_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and messages fit 80 columns; only tracebacks and paths may be wider."""
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("status", "report"):
        lines = call(command, failed_run).out.splitlines()
        wide = [line for line in lines if len(line) > 80]
        assert all(line.startswith("     ") or str(failed_run) in line for line in wide)
        header = next(line for line in lines if line.startswith("task "))
        assert "blocked" in header
        assert "skipped" in header


def test_json(failed_run: Path) -> None:
    """It is JSON with a version, whatever the terminal's width."""
    report = json.loads(call("report", failed_run, "--json").out)
    assert (report["format"], report["version"]) == ("qgexec-report", 4)
    assert report["total"]["failed"] == len(report["failures"]) > 0


def test_status_while_it_runs(repository: MockRepository, moods: Moods, start: Start, folder: Path) -> None:
    """It says that the run goes on, and what runs."""
    moods.set({"isr": "wait"})
    command = start(
        "run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types", "--run-dir", "b"
    )
    moods.wait_for(1)
    status = call("status", folder / "b")
    assert status.code == 0
    assert re.search(r"State +running", status.out)
    assert re.search(rf"0 of {N_QUANTA} quanta succeeded \(0 %\), 1 running", status.out)
    report = call("report", folder / "b")
    assert report.code == 1
    moods.let_go()
    assert command.finish().code == 0


def test_status_of_a_run_with_failures(tmp_path: Path) -> None:
    """It is not completed, nor all of it done; the exit code says so to scripts, with and without --json."""
    books = HandBooks(tmp_path / "run")
    books.write(BEGAN, *started(0, 1), succeeded(0))
    assert call("status", books.run_dir.path).code == 0
    books.write(books.failed(1), *started(2, 3, 4), *map(succeeded, (2, 3, 4)), *started(5), succeeded(5))
    books.write(RunEnded(BEGAN.at + 9, EndReason.COMPLETED))
    plain, as_json = (call("status", books.run_dir.path, *how) for how in ((), ("--json",)))
    assert (plain.code, as_json.code) == (1, 1)
    assert "State          failed\n" in plain.out
    assert "Progress       5 of 8 quanta succeeded (62 %), 1 failed, 2 blocked\n" in plain.out
    report = json.loads(as_json.out)
    assert_valid(report)
    assert (report["state"], report["all_succeeded"]) == ("failed", False)


def test_every_attempt_is_kept(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """The report says what earlier ones died of, and each one's log can be read."""
    moods.set({"isr 1,1": "raise"})
    given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    assert call(*given, "--retries", "1", "--run-dir", "b").code == 1
    text = call("report", folder / "b").out
    assert "Retries: 1; 0 quanta succeeded only after one." in text
    assert "earlier: attempt 1, ValueError" in text
    report = json.loads(call("report", folder / "b", "--json").out)
    (failure,) = report["failures"]
    assert [attempt["ended"] for attempt in failure["attempts"]] == ["raised", "raised"]
    assert "bad pixels" in failure["attempts"][0]["traceback"]
    quantum_id = failure["quantum_id"]
    for number in ("1", "2"):
        log = call("log", folder / "b", "isr{visit: 1, detector: 1}", "--attempt", number).out
        assert f"isr quantum {quantum_id} attempt {number}" in log.splitlines()[0]
        assert "Preparing execution of quantum" in log


def test_models() -> None:
    """Every model has a line, and fits."""
    result = call("models")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["htcondor", "inprocess", "pool", "slurm"]
    assert max(map(len, result.out.splitlines())) <= 100


class TestProgress:
    """What is seen of a run."""

    @pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_terminal(
        self, repository: MockRepository, folder: Path, environment: dict[str, str], moods: Moods
    ) -> None:
        """The bar reaches the end, messages stand above it, and the cursor is given back."""
        moods.set({"isr 1,1": "raise"})
        given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        shown = _in_terminal(given, folder, environment)
        assert f"{N_QUANTA - 4}/{N_QUANTA} succeeded, 1 failed, 3 blocked" in shown
        assert "failed: ValueError: bad pixels in isr 1,1" in shown.replace("\r\n", " ")
        assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
        assert shown.endswith("\n")
        has_colours = re.search(r"\x1b\[[\d;]*[34]\d[\d;]*m", shown) is not None
        assert has_colours == (not environment)

    def test_elsewhere(self, repository: MockRepository, start: Start) -> None:
        """Plain lines on stderr, without escape sequences; the report alone is on stdout."""
        given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        result = start(*given).finish()
        assert "\x1b" not in result.err + result.out
        assert result.err.splitlines()[-1] == f"{N_QUANTA}/{N_QUANTA} succeeded"
        assert "19 quanta on execution model inprocess" in result.err
        assert result.out.startswith("Run directory ")


def _in_terminal(arguments: list[object], folder: Path, environment: dict[str, str]) -> str:
    """Run the command with its stderr on a terminal of 80 columns, and return what was shown there."""
    ours, theirs = pty.openpty()
    given = {
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        "PYTHONPATH": PYTHONPATH,
    }
    process = warm.Popen(
        [sys.executable, "-m", "qgexec", *map(str, arguments)],
        cwd=folder,
        env=os.environ | given | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(ours)
    process.wait(60)
    return shown.decode()
