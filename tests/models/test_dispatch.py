"""What a worker is sent beforehand, and when news may wait: bookkeeping alone, no process."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qgexec.models.dispatch import PREFETCH_S, Dispatch
from qgexec.models.workers import Worker
from qgexec.processes.forked import Process
from qgexec.quantum import Attempt


def make_worker(number: int) -> Worker:
    """Return a worker that takes what it is sent."""
    channel = SimpleNamespace(send=lambda _message: None)
    process: Any = SimpleNamespace(channel=channel, name=f"worker-{number:04d}")
    return Worker(number, cast("Process", process), None, announced=True, ready=True)


def make_dispatch(n_workers: int, took_s: float) -> Dispatch:
    """Return a dispatch whose quanta have always taken this long."""
    dispatch = Dispatch(n_workers, (), lambda _worker: None)
    for number in range(n_workers):
        dispatch.file(make_worker(number))
    dispatch.durations.add("a", took_s)
    return dispatch


def add(dispatch: Dispatch, count: int) -> None:
    """Start so many attempts."""
    for index in range(count):
        dispatch.add(Attempt(index, 1, uuid.UUID(int=index), "a"))
    dispatch.assign()


def test_idle_workers_are_the_capacity() -> None:
    """Before anything runs there is one attempt for each worker."""
    assert make_dispatch(3, 0.01).capacity() == 3


def test_busy_workers_are_filled_up() -> None:
    """Short quanta are asked for until what a worker holds takes as long as it may."""
    dispatch = make_dispatch(2, PREFETCH_S / 4)
    add(dispatch, 2)
    assert dispatch.capacity() == 2 * 3
    add(dispatch, 6)
    assert dispatch.n_waiting == 0
    assert dispatch.capacity() == 0


def test_long_quanta_are_not_sent_beforehand() -> None:
    """What takes longer than may be held waits, and is sent to nobody who is busy."""
    dispatch = make_dispatch(1, 2 * PREFETCH_S)
    add(dispatch, 2)
    assert dispatch.n_waiting == 1


def test_news_may_wait_while_all_have_enough() -> None:
    """Half of what every worker has not begun passes before one of them can run dry."""
    dispatch = make_dispatch(2, 0.01)
    add(dispatch, 10)
    assert dispatch.slack_s() == pytest.approx(0.02)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_news_may_not_wait_when_one_has_too_little(count: int) -> None:
    """As long as a worker is idle, or holds only what it runs, the next attempt is urgent."""
    dispatch = make_dispatch(2, 0.01)
    add(dispatch, count)
    assert dispatch.slack_s() == 0.0
