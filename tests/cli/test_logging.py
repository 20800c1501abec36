"""Options about logging: what is logged where, by the driver, workers and batch jobs alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qgexec.config.logoptions import LogOptions
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.commands.qgexec import Command, Moods, Result, call, one_message

Logged = Callable[..., Result]

WORKER_LOGGER = "lsst.pipe.base.single_quantum_executor"
DRIVER_LOGGER = "lsst.pipe.base.quantum_graph_builder"
ENDED = "Execution of task 'isr' on quantum"


@pytest.fixture
def logged(start: Callable[..., Command], repository: MockRepository) -> Logged:
    """Build and execute two quanta with options about logging, in a process of its own."""

    def logged(*before: object, run: Sequence[object] = (), code: int = 0) -> Result:
        pipeline = f"{repository.graph.with_name('pipeline.yaml')}#isr"
        build = [
            "-p",
            pipeline,
            "-i",
            "input_chain",
            "--output-run",
            "u/run",
            "-d",
            "visit = 1 and detector < 3",
        ]
        books = ["--register-dataset-types", "--run-dir", "books"]
        command = start(*before, "run", "-b", repository.root, *build, *books, *run)
        result = command.finish()
        assert result.code == code, result.err
        return result

    return logged


@pytest.mark.every(2)
@pytest.mark.parametrize("processes", [1, 2])
def test_workers_log_as_the_driver(logged: Logged, folder: Path, processes: int) -> None:
    """Terminal and files get the records of driver and workers, each once, at the levels asked for."""
    options = ["--log-level", "DEBUG,lsst.daf.butler=WARNING", "--log-level", f"{DRIVER_LOGGER}=info"]
    files = ["--log-file", "run.log,run.json", "--log-label", "site=here,night=7"]
    said = logged("--long-log", *options, *files, run=["-j", processes]).err
    text = Path("run.log").read_text()
    records = [json.loads(line) for line in Path("run.json").read_text().splitlines()]
    for logger in (DRIVER_LOGGER, WORKER_LOGGER):
        assert any(record["name"] == logger for record in records)
        assert f" {logger} " in text
        assert f" {logger} " in said
    finished = [record for record in records if record["message"].startswith(ENDED)]
    assert len(finished) == text.count(ENDED) == said.count(ENDED) == 2
    assert all(record["MDC"].items() >= {"SITE": "here", "NIGHT": "7"}.items() for record in finished)
    assert len({record["MDC"]["LABEL"] for record in finished}) == 2
    levels: dict[str, set[str]] = {}
    for record in records:
        levels.setdefault(record["name"], set()).add(record["levelname"])
    assert "DEBUG" in levels[WORKER_LOGGER]
    assert "DEBUG" not in levels[DRIVER_LOGGER]
    of_butler = [name for name in levels if name.startswith("lsst.daf.butler")]
    assert not any({"DEBUG", "INFO"} & levels[name] for name in of_butler)


def test_terminal_can_be_spared(logged: Logged, folder: Path) -> None:
    """With --no-log-tty only files get the log."""
    said = logged("--no-log-tty", "--log-file", "run.log", run=["-j", 2]).err
    assert "lsst." not in said
    assert f"{WORKER_LOGGER} INFO: " in Path("run.log").read_text()


def test_full_disk(logged: Logged, folder: Path) -> None:
    """Where there is no room for the log, the terminal has it all the same, and nothing besides."""
    said = logged("--log-file", "/dev/full", run=["-j", 2]).err
    assert f"{WORKER_LOGGER} INFO: " in said
    assert "Logging error" not in said
    assert "Traceback" not in said


def test_nothing_is_printed_unasked(logged: Logged, folder: Path) -> None:
    """Without any of the options the terminal has progress, and no log."""
    assert "lsst." not in logged(run=["-j", 2]).err


@pytest.mark.thorough
def test_resume_logs_as_before(
    logged: Logged, folder: Path, moods: Moods, start: Callable[..., Command]
) -> None:
    """What was asked for is in the run directory: resume logs as the run did, or as it is told now."""
    moods.set({"isr 1,2": "raise"})
    logged("--no-log-tty", "--log-file", "run.log", code=1)
    before = Path("run.log").read_text()
    again = start("resume", "books").finish()
    assert again.code == 1
    assert Path("run.log").read_text().startswith(before)
    assert Path("run.log").read_text().count("Preparing execution") == 3
    moods.set({})
    last = start("--log-file", "other.log", "--no-log-tty", "resume", "books").finish()
    assert last.code == 0, last.err
    assert Path("other.log").read_text().count(ENDED) == 1
    assert Path("run.log").read_text().count("Preparing execution") == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--log-level", "LOUD"], "--log-level 'LOUD' is neither LEVEL nor LOGGER=LEVEL."),
        (["--log-level", "lsst=LOUD"], "--log-level 'lsst=LOUD'"),
        (["--log-level", "=INFO"], "--log-level '=INFO'"),
        (["--log-label", "a"], "--log-label 'a' is not of the form KEY=VALUE."),
        (["--log-file", "no/folder/run.log"], "/no/folder/run.log cannot be written"),
    ],
)
def test_wrong_use(options: list[str], said: str, repository: MockRepository, folder: Path) -> None:
    """One message says what is wrong; nothing was begun."""
    result = call(*options, "run", "-b", repository.root, "-g", repository.graph, "--run-dir", "books")
    one_message(result, said)
    assert list(folder.iterdir()) == []
    with repository.butler() as butler:
        assert OUTPUT_RUN not in butler.collections.query("*")


class TestLogOptions:
    """`qgexec.config.logoptions`."""

    def test_are_kept_as_plain_values(self) -> None:
        """They are the same when they were written into a run directory and read."""
        options = LogOptions.parse(
            ["debug", "a.b=TRACE"], ["k=v=w"], long=True, files=["x.log"], terminal=False
        )
        assert options.levels == ((None, "DEBUG"), ("a.b", "TRACE"))
        assert options.labels == (("k", "v=w"),)
        for each in (options, None):
            run = RunOptions(logging=each)
            assert RunOptions.from_json(json.loads(json.dumps(run.to_json()))) == run

    def test_each_job_has_files_of_its_own(self) -> None:
        """Several machines never append to the same file."""
        options = LogOptions(files=("/a/run.log", "/a/run.json")).for_job("r1j17")
        assert options.files == ("/a/run.r1j17.log", "/a/run.r1j17.json")

    def test_levels(self) -> None:
        """What is no level is refused."""
        with pytest.raises(UsageError, match="neither LEVEL nor"):
            LogOptions.parse(["INFO="])
