"""`qgexec.books.holder`: who has a run in hand, and when another may take it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgexec.books.heartbeat import Heartbeat
from qgexec.books.history import History, writer_of
from qgexec.books.holder import (
    YOUNG_S,
    await_end_of_workers,
    check_free,
    check_not_held,
    driver_is_alive,
    has_restarted_since,
    lives,
    read_when_free,
    require_free,
    this_process,
)
from qgexec.books.journal import Journal, Writer, journal_file
from qgexec.errors import RunHeldError
from qgexec.events import EndReason, RunEnded, RunStarted, WorkerStarted
from qgexec.processes.births import KERNEL
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
    return Writer(_HERE, process.pid, started_at, KERNEL.birth(process.pid))


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
    """A process that began later than the driver did is not the driver, whatever clocks say."""
    mine = this_process()
    assert mine.birth is not None
    other = mine.birth._replace(start_ticks=mine.birth.start_ticks - 1)
    at = mine.pid_started_at
    assert driver_is_alive(RunStarted(1.0, mine.host, mine.pid, at, "pool", 1, other)) is False
    assert driver_is_alive(RunStarted(1.0, mine.host, mine.pid, at - 3600, "pool", 1, mine.birth)) is True


def test_a_driver_of_an_older_version() -> None:
    """Without its birth its life can be seen, and its death cannot: a clock may have been set."""
    mine = this_process()
    assert driver_is_alive(RunStarted(1.0, mine.host, mine.pid, mine.pid_started_at, "pool", 1)) is True
    assert driver_is_alive(RunStarted(1.0, mine.host, mine.pid, mine.pid_started_at - 60, "pool", 1)) is None


@pytest.mark.parametrize(
    ("silent_s", "said"), [(5.0, "gave a sign of life"), (7200.0, "silent for 1[12]\\d minutes")]
)
def test_elsewhere_nothing_can_be_known(tmp_path: Path, silent_s: float, said: str) -> None:
    """A driver that cannot be seen holds the run until it is silent, and somebody says that it is gone."""
    writer = Writer("another-host", 7, 1.0)
    file = journal_file(_journal(tmp_path, writer), 1)
    then = file.stat().st_mtime - silent_s
    os.utime(file, (then, then))
    with pytest.raises(RunHeldError, match=said) as caught:
        check_not_held(writer, file)
    assert "--force" in caught.value.hint
    if silent_s < YOUNG_S:
        with pytest.raises(RunHeldError, match=said):
            check_not_held(writer, file, force=True)
    else:
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
    worker = WorkerStarted(1.0, 1, _HERE, writer.pid, writer.pid_started_at, writer.birth)
    reused = WorkerStarted(1.0, 2, _HERE, os.getpid(), _OLD)
    elsewhere = WorkerStarted(1.0, 3, "another-host", os.getpid(), this_process().pid_started_at)
    await_end_of_workers([worker, reused, elsewhere], timeout_s=0.0)
    assert stranger.wait(10) == -signal.SIGKILL


def test_heart_beats(tmp_path: Path) -> None:
    """The file's time moves on while the heart beats, and no more when it was stopped."""
    file = tmp_path / "0001.jsonl"
    file.touch()
    os.utime(file, (_OLD, _OLD))
    deadline = time.monotonic() + 30
    heart = Heartbeat(file, every_s=0.001)
    while file.stat().st_mtime == _OLD:
        assert time.monotonic() < deadline
    heart.stop()
    os.utime(file, (_OLD, _OLD))
    assert file.stat().st_mtime == _OLD


def test_writer_of_a_driver() -> None:
    """A driver and the header of its file name the same process."""
    assert writer_of(RunStarted(1.0, "h", 2, 3.0, "pool", 1)) == Writer("h", 2, 3.0)


# --- what clocks, namespaces and mount options do -------------------------------------------------------


def test_a_clock_that_was_set(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """By an hour, forwards or backwards: a driver that lives is not taken for dead."""
    real = _writer(stranger)
    for step_s in (-3600.0, 3600.0):
        writer = Writer(real.host, real.pid, real.pid_started_at + step_s, real.birth)
        folder = tmp_path / str(step_s)
        folder.mkdir()
        history = History.read(_journal(folder, writer), make_plan("a"), Policy())
        with pytest.raises(RunHeldError, match=f"process {stranger.pid}"):
            require_free(folder / "journal", history, force=True)


def test_a_host_whose_name_was_changed(stranger: subprocess.Popen[bytes]) -> None:
    """The same boot is the same machine, whatever it is called."""
    real = _writer(stranger)
    assert lives(Writer("before", real.pid, real.pid_started_at, real.birth)) is True
    stranger.kill()
    stranger.wait()
    assert lives(Writer("before", real.pid, real.pid_started_at, real.birth)) is False


@pytest.mark.parametrize("what", ["boot", "namespace"])
def test_what_cannot_be_seen_on_a_host_of_the_same_name(tmp_path: Path, what: str) -> None:
    """A container of the same host name, or the machine before it was started again: the heartbeat counts."""
    mine = this_process()
    assert mine.birth is not None
    others = {
        "boot": mine.birth._replace(boot_id="other"),
        "namespace": mine.birth._replace(namespaces="pid:[7]"),
    }
    birth = others[what]
    writer = Writer(mine.host, 2**22 + 1, mine.pid_started_at, birth)
    journal = _journal(tmp_path, writer)
    history = History.read(journal, make_plan("a"), Policy())
    for force in (False, True):
        with pytest.raises(RunHeldError, match="gave a sign of life"):
            require_free(journal, history, force=force)
    os.utime(journal_file(journal, 1), (_OLD, _OLD))
    with pytest.raises(RunHeldError, match="cannot be known from here") as caught:
        require_free(journal, history)
    assert f"qgexec resume {tmp_path} --force" in caught.value.hint
    require_free(journal, history, force=True)


_IN_A_CONTAINER = """
import signal, sys
from pathlib import Path
from qgexec.books.holder import this_process
from qgexec.books.journal import Journal
journal = Journal.create(Path(sys.argv[1]), writer=this_process())
print("begun", flush=True)
signal.pause()
"""


def test_a_driver_in_another_namespace(tmp_path: Path) -> None:
    """A real one, of the same host name: nobody outside takes its run while it gives signs of life."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this user cannot make a PID namespace")
    journal = tmp_path / "journal"
    journal.mkdir()
    command = [*unshare, sys.executable, "-c", _IN_A_CONTAINER, str(journal)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            history = History.read(journal, make_plan("a"), Policy())
            assert history.writer is not None
            assert (history.writer.host, history.writer.pid) == (_HERE, 1)
            with pytest.raises(RunHeldError, match="gave a sign of life"):
                require_free(journal, history, force=True)
        finally:
            process.kill()


def test_workers_that_cannot_be_seen_are_left_alone() -> None:
    """Another namespace's number is somebody else's here."""
    mine = this_process()
    assert mine.birth is not None
    birth = mine.birth._replace(namespaces="pid:[7]")
    await_end_of_workers([WorkerStarted(1.0, 1, _HERE, mine.pid, mine.pid_started_at, birth)], timeout_s=0.0)


def test_a_host_that_went_down_since() -> None:
    """By the boot, where it is known: clocks may be set."""
    mine = this_process()
    assert mine.birth is not None
    driver = RunStarted(0.0, mine.host, mine.pid, mine.pid_started_at, "pool", 1, mine.birth)
    assert not has_restarted_since(driver)
    assert has_restarted_since(dataclasses.replace(driver, birth=mine.birth._replace(boot_id="other")))
    assert has_restarted_since(dataclasses.replace(driver, birth=None))
    assert not has_restarted_since(dataclasses.replace(driver, birth=None, at=time.time() + 60))


def test_last_words_that_come_while_one_waits(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """A driver that ends in an orderly way as another one looks: what it wrote last is read, too."""
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal.create(folder, writer=_writer(stranger))
    n_read = 0

    def read() -> History:
        nonlocal n_read
        n_read += 1
        history = History.read(folder, make_plan("a"), Policy())
        if n_read == 1:
            journal.append(RunEnded(1.0, EndReason.STOPPED))
            journal.close()
            stranger.kill()
            stranger.wait()
        return history

    history = read_when_free(folder, read)
    assert (n_read, history.last_event_at) == (2, 1.0)
