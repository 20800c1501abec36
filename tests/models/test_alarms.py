"""`qgexec.models.alarms`: one deadline for each worker, by a clock that is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from qgexec.models.alarms import Alarms
from qgexec.models.workers import NEVER, Worker
from qgexec.processes.forked import Process

NOW = 100.0


@pytest.fixture
def workers() -> dict[int, Worker]:
    process = cast("Process", SimpleNamespace(name="worker"))
    return {number: Worker(number, process, None) for number in (1, 2, 3)}


@pytest.fixture
def alarms(workers: dict[int, Worker]) -> Alarms:
    return Alarms(workers)


def test_nothing_is_due(alarms: Alarms) -> None:
    """Without a deadline there is nothing to wait for."""
    assert alarms.next_at() == NEVER
    assert list(alarms.due(NOW)) == []


def test_in_their_order(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """Whose time is up comes once, the earliest first; the others stay."""
    for number, deadline in ((1, 103.0), (2, 101.0), (3, 102.0)):
        alarms.set(workers[number], deadline)
    assert alarms.next_at() == 101.0
    assert [worker.number for worker in alarms.due(102.0)] == [2, 3]
    assert list(alarms.due(102.0)) == []
    assert alarms.next_at() == 103.0
    assert workers[2].deadline == NEVER


def test_later_deadline(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """A deadline that is put off is not due at the earlier time, but at the later one."""
    alarms.set(workers[1], 101.0)
    alarms.set(workers[1], 105.0)
    assert list(alarms.due(101.0)) == []
    assert alarms.next_at() == 105.0
    assert list(alarms.due(105.0)) == [workers[1]]


def test_earlier_deadline(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """A deadline that is brought forward is due then, and only then."""
    alarms.set(workers[1], 105.0)
    alarms.set(workers[1], 101.0)
    assert list(alarms.due(101.0)) == [workers[1]]
    assert list(alarms.due(105.0)) == []


def test_no_deadline_any_more(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """A deadline that was taken away is not due."""
    alarms.set(workers[1], 101.0)
    alarms.set(workers[1], NEVER)
    assert list(alarms.due(101.0)) == []
    assert alarms.next_at() == NEVER


def test_many_deadlines_are_one_alarm(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """However many limits a worker had, it is looked at when the first is due, and then the last."""
    for deadline in range(101, 1101):
        alarms.set(workers[1], float(deadline))
    assert alarms.next_at() == 101.0
    assert list(alarms.due(101.0)) == []
    assert alarms.next_at() == 1100.0


def test_dead_worker(alarms: Alarms, workers: dict[int, Worker]) -> None:
    """A worker that is gone is not due."""
    alarms.set(workers[1], 101.0)
    del workers[1]
    assert list(alarms.due(102.0)) == []
