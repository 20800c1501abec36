"""`qgexec.models.guard`, in workers and in the caller's process: a quantum does not touch another one."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qgexec.events import AttemptLost, AttemptSucceeded, Event, WorkerEnded, WorkerStarted
from qgexec.models.guard import CallerGuard
from qgexec.models.pool import Pool
from qgexec.processes import forked
from qgexec.processes.proctree import descendants
from qgexec.quantum import Attempt
from tests.kit.runs.benches import Ears, attempts, endings, hear_while_waiting, make_run, wait_gone, work_off

pytestmark = pytest.mark.usefixtures("nothing_left")


def lost_workers(events: list[Event]) -> list[tuple[str | None, str | None]]:
    """Return task and leftover of each worker that was replaced for one."""
    return [(each.task_label, each.left) for each in events if isinstance(each, WorkerEnded) and each.left]


def test_what_a_quantum_leaves_costs_its_worker(tmp_path: Path) -> None:
    """Another worker takes its place before the next quantum; who has left what is told."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts("poll", "isr", "isr"))
    pool.close(cancel=True)
    assert all(isinstance(each, AttemptSucceeded) for each in endings(events))
    assert lost_workers(events) == [("poll", "a thread 'poller'")]
    pids = [each.outcome.pid for each in endings(events) if isinstance(each, AttemptSucceeded)]
    assert pids[0] != pids[1] == pids[2]


def test_a_task_that_costs_many_workers_is_isolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After five workers its quanta are told to run in processes of their own; it is said once."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts(*["poll"] * 7))
    pool.close(cancel=True)
    assert len(endings(events)) == 7
    assert "poll leaves a thread 'poller'" in caplog.text
    assert caplog.text.count("each of its quanta is executed in a process of its own") == 1


def test_processes_that_are_left_end_with_the_worker(ears: Ears, tmp_path: Path) -> None:
    """Daemons too; nothing of them is there when the next quantum begins."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts("daemon", "pid"))
    (_, first, daemon), (_, second) = ears.hear(), ears.hear()
    assert first != second
    wait_gone(daemon)
    pool.close(cancel=True)
    assert lost_workers(events) == [("daemon", "a process")]


def test_processes_that_are_kept(ears: Ears, tmp_path: Path) -> None:
    """They stay, cost nothing, and end with the run."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    first, second = attempts("daemon", "pid")
    events = work_off(pool, [replace(first, keeps_processes=True), second])
    (_, worker, daemon), (_, same) = ears.hear(), ears.hear()
    assert worker == same
    assert daemon in descendants(worker)
    assert lost_workers(events) == []
    pool.close(cancel=True)
    wait_gone(daemon)


@pytest.mark.parametrize("label", ["come_back", "sys_exit"])
def test_a_child_that_comes_back_is_no_second_worker(label: str, tmp_path: Path) -> None:
    """It ends; each quantum has one outcome, and the worker goes on."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts(label, "isr"))
    pool.close(cancel=True)
    assert [type(each) for each in endings(events)] == [AttemptSucceeded] * 2
    assert sum(isinstance(each, WorkerStarted) for each in events) == 1


@pytest.mark.parametrize("label", ["babble", "babble_number", "babble_end"])
def test_a_worker_that_says_nonsense_is_ended(label: str, tmp_path: Path) -> None:
    """It takes its quantum with it, and nothing else."""
    pool = Pool(1)
    pool.open(make_run(tmp_path, "babbles"))
    events = work_off(pool, attempts("isr", label, "isr"))
    pool.close(cancel=True)
    first, lost, last = sorted(endings(events), key=lambda each: each.index)
    assert isinstance(first, AttemptSucceeded)
    assert isinstance(lost, AttemptLost)
    assert "said what makes no sense" in lost.reason
    assert isinstance(last, AttemptSucceeded)


def _draw() -> tuple[float, float]:
    return random.random(), float(np.random.random())  # noqa: NPY002 - the global generators


def _attempt(seed: int | None) -> Attempt:
    return replace(attempts("isr")[0], seed=seed)


def test_the_callers_own_state_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Its generators, folder and log levels are afterwards as if no quantum had run; what stays is told."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    undisturbed = [_draw() for _ in range(2)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = Path.cwd()
    drawn = []

    def act(_: Attempt) -> None:
        drawn.append(_draw())
        os.chdir("/")
        os.environ["LEFT_BEHIND"] = "1"
        logging.getLogger("qgexec").setLevel(logging.CRITICAL)

    guard = CallerGuard()
    found = [_draw()]
    for seed in (7, 8, 7):
        guard.run(_attempt(seed), act)
    found.append(_draw())
    assert found == undisturbed
    assert drawn[0] == drawn[2] != drawn[1]
    assert Path.cwd() == before
    assert "LEFT_BEHIND" not in os.environ
    assert not logging.getLogger("qgexec").level


def test_seeds_differ_where_none_is_told() -> None:
    """Two quanta do not draw the same numbers."""
    drawn = []
    guard = CallerGuard()
    for _ in range(2):
        guard.run(_attempt(None), lambda _: drawn.append(_draw()))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_what_stays_in_the_callers_process_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each task and kind; nothing of the caller's is ended."""
    guard = CallerGuard()
    read_ends: list[int] = []

    def act(_: Attempt) -> None:
        read_ends.extend(os.open("/dev/null", os.O_RDONLY) for _each in range(100))

    guard.run(_attempt(1), act)
    guard.run(_attempt(1), act)
    for each in read_ends:
        os.close(each)
    assert caplog.text.count("isr leaves 100 open files in this process") == 1


@pytest.mark.parametrize("label", ["breed", "breed_away"])
def test_a_server_that_is_killed(label: str, ears: Ears, tmp_path: Path) -> None:
    """Its workers go with it, and what they had started too, before another attempt begins."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start(attempts(label))
    ((_, worker, child),) = hear_while_waiting(pool, ears)
    events: list[Event] = []
    os.kill(forked.warm_up(), signal.SIGKILL)
    while not endings(events):
        events += pool.wait(60.0)
    wait_gone(child)
    wait_gone(worker)
    pool.close(cancel=True)
    (lost,) = endings(events)
    assert isinstance(lost, AttemptLost)


def test_the_callers_own_processes_are_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """They are not what a quantum leaves, and how they ended is for the caller to ask."""
    ended = subprocess.Popen(["false"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with subprocess.Popen(["sleep", "1000"]) as going_on:
        CallerGuard().run(_attempt(1), lambda _: None)
        going_on.kill()
    assert ended.wait() == 1
    assert "leaves" not in caplog.text
