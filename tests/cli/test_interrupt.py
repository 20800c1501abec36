"""Ctrl-C, SIGTERM, SIGHUP: what runs is finished, what was done is kept, and the run can be gone on with."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import (
    DEADLINE_S,
    Command,
    Moods,
    call,
    datasets,
    go_on_command,
    report_of,
)
from tests.kit.processes import warm

Start = Callable[..., Command]


@pytest.fixture
def begin(repository: MockRepository, moods: Moods, start: Start) -> Callable[[int], Command]:
    """Starts a run with so many processes, and returns when as many quanta of isr run, and wait."""

    def begin(processes: int) -> Command:
        moods.set({"isr": "wait"})
        given = ["--register-dataset-types", "--run-dir", "books", "-j", processes]
        command = start("run", "-b", repository.root, "-g", repository.graph, *given)
        moods.wait_for(processes)
        return command

    return begin


@pytest.mark.every(2)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal(
    begin: Callable[[int], Command],
    repository: MockRepository,
    moods: Moods,
    folder: Path,
    processes: int,
    number: signal.Signals,
) -> None:
    """Quanta that run are waited for, and are in the registry; the command that is said does the rest."""
    command = begin(processes)
    command.signal(number)
    command.wait_for("Interrupted: waiting for the quanta that run")
    moods.let_go(processes)
    result = command.finish()
    assert result.code == 130
    assert "Traceback" not in result.err
    assert "stopped (interrupted)" in result.out
    total = report_of(folder / "books")["total"]
    assert (total["succeeded"], total["ingested"], total["failed"]) == (processes, processes, 0)
    assert total["not_run"] == N_QUANTA - processes
    assert len(datasets(repository, "post_isr")) == processes
    moods.set({})
    again = call(*shlex.split(go_on_command(result.err))[1:])
    assert again.code == 0
    assert f"{N_QUANTA}/{N_QUANTA} succeeded" in again.err
    assert report_of(folder / "books")["total"]["succeeded"] == N_QUANTA
    counts = [len(datasets(repository, name)) for name in ("post_isr", "calibrated", "visit_summary_mock")]
    assert counts == [8, 8, 2]


@pytest.mark.parametrize("processes", [1, 2])
def test_second_signal(
    begin: Callable[[int], Command], repository: MockRepository, folder: Path, processes: int
) -> None:
    """What runs is ended, is nobody's failure, and leaves nothing; going on does it all."""
    command = begin(processes)
    command.signal(signal.SIGINT)
    command.wait_for("Interrupted: waiting")
    command.signal(signal.SIGINT)
    result = command.finish()
    assert result.code == 130
    assert "Interrupted again: ending the quanta that run." in result.err
    assert "Traceback" not in result.err
    total = report_of(folder / "books")["total"]
    assert (total["failed"], total["running"], total["not_run"]) == (0, 0, N_QUANTA)
    assert datasets(repository, "post_isr") == set()


@pytest.mark.every(2)
@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_reads_what_it_says(
    begin: Callable[[int], Command], moods: Moods, folder: Path, processes: int
) -> None:
    """The terminal, `head` or `tee` has ended: the run goes on to its own end."""
    command = begin(processes)
    assert command.process.stderr is not None
    command.process.stderr.close()
    moods.let_go()
    assert command.finish().code == 0
    assert report_of(folder / "books")["total"]["succeeded"] == N_QUANTA


@pytest.mark.parametrize("processes", [1, 2])
def test_run_directory_is_deleted(
    begin: Callable[[int], Command], repository: MockRepository, moods: Moods, folder: Path, processes: int
) -> None:
    """The run breaks off and says so, once, and what it advises does the rest."""
    command = begin(processes)
    shutil.rmtree(folder / "books")
    moods.let_go()
    result = command.finish()
    assert result.code == 2
    assert result.err.count(f"{folder / 'books'} was deleted or moved while the run went on") == 1
    assert "Traceback" not in result.err
    moods.set({})
    advised = ["--extend-run", "--clobber-outputs"]
    assert all(option in result.err for option in advised)
    again = call("run", "-b", repository.root, "-g", repository.graph, *advised)
    assert again.code == 0
    counts = [len(datasets(repository, name)) for name in ("post_isr", "calibrated", "visit_summary_mock")]
    assert counts == [8, 8, 2]


def test_run_directory_is_moved(
    begin: Callable[[int], Command], repository: MockRepository, moods: Moods, folder: Path
) -> None:
    """The run breaks off and says so; it goes on where the run directory is now."""
    command = begin(2)
    (folder / "books").rename(folder / "moved")
    moods.let_go()
    result = command.finish()
    assert result.code == 2
    assert "was deleted or moved while the run went on" in result.err
    moods.set({})
    assert call("resume", folder / "moved").code == 0
    assert len(datasets(repository, "calibrated")) == 8


_ON_TERMINAL = """
import fcntl, signal, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from qgexec.cli.main import main
main()
"""


def test_terminal_is_closed(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """What runs is waited for, the books are closed, and that nobody reads it is no error."""
    moods.set({"isr": "wait"})
    terminal, theirs = os.openpty()
    given = ["--register-dataset-types", "--run-dir", str(folder / "books"), "-j", "2"]
    command = warm.Popen(
        [sys.executable, "-c", _ON_TERMINAL, "run", "-b", repository.root, "-g", repository.graph, *given],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        moods.wait_for(2)
        os.close(terminal)
        moods.let_go(2)
        assert command.wait(DEADLINE_S) == 130
    finally:
        command.kill()
        command.wait()
    report = report_of(folder / "books")
    assert report["stop_reason"] == "interrupted"
    assert (report["total"]["succeeded"], report["total"]["failed"]) == (2, 0)


def test_hangup_under_nohup(repository: MockRepository, moods: Moods, start: Start, folder: Path) -> None:
    """A run that was told so goes on to its own end."""
    moods.set({"isr": "wait"})
    given = ["--register-dataset-types", "--run-dir", "books", "-j", 2]
    command = start("run", "-b", repository.root, "-g", repository.graph, *given, interpreter=("-c", _NOHUP))
    moods.wait_for(2)
    command.signal(signal.SIGHUP)
    moods.let_go()
    assert command.finish().code == 0
    assert report_of(folder / "books")["total"]["succeeded"] == N_QUANTA


_NOHUP = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from qgexec.cli.main import main
main()
"""


def test_killed(
    begin: Callable[[int], Command], repository: MockRepository, moods: Moods, folder: Path
) -> None:
    """Where the command itself is killed its workers end too; `status` says so, and one can go on."""
    command = begin(2)
    command.signal(signal.SIGKILL)
    assert command.finish().code == -signal.SIGKILL
    assert "driver gone" in call("status", folder / "books").out
    moods.set({})
    assert call("resume", folder / "books").code == 0
    assert len(datasets(repository, "calibrated")) == 8


def test_signal_before_the_run(repository: MockRepository, start: Start, folder: Path) -> None:
    """While the graph is read nothing has been executed, and no run directory is left."""
    before = repository.dump()
    command = start(
        "run", "-b", repository.root, "-g", repository.graph, interpreter=("-c", _INTERRUPTED_WHILE_READING)
    )
    result = command.finish()
    assert result.code == 130
    assert "Interrupted before anything was executed." in result.err
    assert "Traceback" not in result.err
    assert not [*folder.rglob("run.json")]
    assert repository.dump() == before


_INTERRUPTED_WHILE_READING = """
import os, signal, sys
import qgexec.rubin.graphfile as graphfile
read = graphfile.prepare_graph
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return read(*arguments, **options)
import qgexec.api
qgexec.newrun.prepare_graph = interrupted
from qgexec.cli.main import main
main()
"""


def test_asked_how_far_it_is(begin: Callable[[int], Command], moods: Moods, folder: Path) -> None:
    """SIGUSR1 has a line of progress printed, and is no harm before and after the run either."""
    command = begin(2)
    command.signal(signal.SIGUSR1)
    command.wait_for(f"0/{N_QUANTA} succeeded, 2 running")
    moods.let_go()
    assert command.finish().code == 0


def test_asked_too_early(repository: MockRepository, start: Start) -> None:
    """A run that is asked before it has begun begins all the same."""
    given = ("run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types")
    command = start(*given, interpreter=("-c", _INTERRUPTED_WHILE_READING.replace("SIGINT", "SIGUSR1")))
    assert command.finish().code == 0
