"""`qgexec.processes.orphans`: what workers have started ends, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from qgexec.processes.births import KERNEL
from qgexec.processes.orphans import MARK, end_orphans
from tests.kit.runs.benches import wait_gone


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for each in processes:
        each.kill()
        each.wait()


def _ticks() -> int:
    birth = KERNEL.birth(os.getpid())
    assert birth is not None
    return birth.start_ticks


def _session_without_leader() -> tuple[int, int]:
    """Return the process IDs of a leader that is gone and of a member of its session."""
    read_end, write_end = os.pipe()
    if not (leader := os.fork()):
        os.setsid()
        if not (member := os.fork()):
            os.close(write_end)
            os.execvp("sleep", ["sleep", "1000"])
        os.write(write_end, str(member).encode())
        os._exit(0)
    os.waitpid(leader, 0)
    member = int(os.read(read_end, 20))
    os.close(read_end)
    os.close(write_end)
    return leader, member


def test_session_of_a_worker_that_is_gone() -> None:
    """What was in its session ends."""
    leader, member = _session_without_leader()
    assert end_orphans({leader}, "0.0.", _ticks()) == 1
    wait_gone(member)
    assert end_orphans({leader}, "0.0.", _ticks()) == 0


def test_marked_daemons(started: list[subprocess.Popen[bytes]]) -> None:
    """What has the mark ends, in whatever session; what has another one stays."""
    for mark in ("17.4711.1", "17.4711.2", "17.47111.1", ""):
        command = ["sleep", "1000"]
        started.append(subprocess.Popen(command, env={MARK: mark}, start_new_session=True))
    assert end_orphans((), "17.4711.", _ticks()) == 2
    assert [each.wait() for each in started[:2]] == [-9, -9]
    assert [each.poll() for each in started[2:]] == [None, None]


def test_a_living_leader(started: list[subprocess.Popen[bytes]]) -> None:
    """Its session is another process's by now: nothing of it is touched."""
    started.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
    assert end_orphans({started[0].pid}, "0.0.", _ticks()) == 0
    assert started[0].poll() is None


def test_what_is_older_than_the_driver(started: list[subprocess.Popen[bytes]]) -> None:
    """It cannot be a worker's."""
    started.append(subprocess.Popen(["sleep", "1000"], env={MARK: "17.4711.1"}))
    assert end_orphans((), "17.4711.", 1 << 60) == 0
    assert started[0].poll() is None
