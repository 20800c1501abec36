"""`qgexec.books.holder`: who has a run in hand, and when another may take it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgexec.books.history import History, writer_of
from qgexec.books.holder import (
    Heartbeat,
    await_end_of_workers,
    check_free,
    check_not_held,
    driver_is_alive,
    require_free,
    this_process,
)
from qgexec.books.journal import Journal, Writer, journal_file
from qgexec.errors import RunHeldError
from qgexec.events import RunStarted, WorkerStarted
from qgexec.processes.forkserver import process_started_at
from qgexec.scheduling.policy import Policy
from qgexec.testing import make_plan

_HERE = socket.gethostname()
_OLD = 1_000_000.0


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is ended."""
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def _writer(process: subprocess.Popen[bytes]) -> Writer:
    started_at = process_started_at(process.pid)
    assert started_at is not None
    return Writer(_HERE, process.pid, started_at)


def _journal(folder: Path, writer: Writer | None) -> Path:
    journal = folder / "journal"
    journal.mkdir()
    Journal.create(journal, writer=writer).close()
    return journal


def test_a_live_driver_is_not_disturbed(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """A driver that lives on this host holds the run, whatever is forced; the message names it."""
    journal = _journal(tmp_path, _writer(stranger))
    history = History.read(journal, make_plan("a"), Policy())
    for force in (False, True):
        with pytest.raises(RunHeldError, match=f"process {stranger.pid} on {_HERE}"):
            require_free(journal, history, force=force)


def test_a_dead_driver_holds_nothing(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """A driver that was killed holds nothing, also while nobody has waited for its process."""
    journal = _journal(tmp_path, _writer(stranger))
    history = History.read(journal, make_plan("a"), Policy())
    with pytest.raises(RunHeldError):
        require_free(journal, history)
    stranger.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    require_free(journal, history)


def test_a_number_that_was_used_again() -> None:
    """A process that began later than the driver did is not the driver."""
    mine = this_process()
    driver = RunStarted(1.0, mine.host, mine.pid, mine.pid_started_at - 60, "pool", 1)
    assert driver_is_alive(driver) is False
    assert driver_is_alive(RunStarted(1.0, mine.host, mine.pid, mine.pid_started_at, "pool", 1)) is True


@pytest.mark.parametrize(
    ("silent_s", "said"), [(5.0, "gave a sign of life"), (7200.0, "silent for 1[12]\\d minutes")]
)
def test_elsewhere_nothing_can_be_known(tmp_path: Path, silent_s: float, said: str) -> None:
    """A driver on another host holds the run until somebody says that it is gone; it says what is seen."""
    writer = Writer("another-host", 7, 1.0)
    file = journal_file(_journal(tmp_path, writer), 1)
    then = file.stat().st_mtime - silent_s
    os.utime(file, (then, then))
    with pytest.raises(RunHeldError, match=said) as caught:
        check_not_held(writer, file)
    assert "--force" in caught.value.hint
    check_not_held(writer, file, force=True)


def test_silence_as_death(tmp_path: Path) -> None:
    """To whom that is enough, a driver elsewhere that was silent for minutes is gone."""
    file = journal_file(_journal(tmp_path, Writer("another-host", 7, 1.0)), 1)
    with pytest.raises(RunHeldError, match="gave a sign of life"):
        check_free(file.parent, silence_is_death=True)
    os.utime(file, (_OLD, _OLD))
    with pytest.raises(RunHeldError, match="cannot be known from here"):
        check_free(file.parent)
    check_free(file.parent, silence_is_death=True)


def test_silence_of_a_process_that_is_there(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """On this host nothing need be believed."""
    file = journal_file(_journal(tmp_path, _writer(stranger)), 1)
    os.utime(file, (_OLD, _OLD))
    with pytest.raises(RunHeldError, match=f"process {stranger.pid}"):
        check_free(file.parent, silence_is_death=True)


def test_an_unknown_claim_is_respected_for_a_while(tmp_path: Path) -> None:
    """A last file without a whole header is somebody who has just come, or one who died long ago."""
    journal = tmp_path / "journal"
    journal.mkdir()
    file = journal_file(journal, 1)
    file.write_bytes(b'{"form')
    history = History.read(journal, make_plan("a"), Policy())
    with pytest.raises(RunHeldError, match="has not said who"):
        require_free(journal, history)
    os.utime(file, (_OLD, _OLD))
    require_free(journal, history)


def test_workers_are_waited_for(stranger: subprocess.Popen[bytes]) -> None:
    """A worker that does not end by itself is killed, then the run is free; others are left alone."""
    writer = _writer(stranger)
    worker = WorkerStarted(1.0, 1, _HERE, writer.pid, writer.pid_started_at)
    reused = WorkerStarted(1.0, 2, _HERE, os.getpid(), _OLD)
    elsewhere = WorkerStarted(1.0, 3, "another-host", os.getpid(), this_process().pid_started_at)
    await_end_of_workers([worker, reused, elsewhere], timeout_s=0.0)
    assert stranger.wait(10) == -signal.SIGKILL


def test_heart_beats(tmp_path: Path) -> None:
    """The file's time moves on while the heart beats, and the thread ends with the block."""
    file = tmp_path / "0001.jsonl"
    file.touch()
    os.utime(file, (_OLD, _OLD))
    deadline = time.monotonic() + 30
    with Heartbeat(file, every_s=0.001):
        while file.stat().st_mtime == _OLD:
            assert time.monotonic() < deadline
    os.utime(file, (_OLD, _OLD))
    assert file.stat().st_mtime == _OLD


def test_writer_of_a_driver() -> None:
    """A driver and the header of its file name the same process."""
    assert writer_of(RunStarted(1.0, "h", 2, 3.0, "pool", 1)) == Writer("h", 2, 3.0)
