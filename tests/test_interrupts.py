"""`qgexec.interrupts`: signals of this process, sent by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from qgexec.errors import RunInterrupted
from qgexec.interrupts import Interrupts


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """Begin as a process in a terminal does, also where the tests run under nohup; leave it as it was."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("numbers", "count"),
    [
        ([signal.SIGHUP], 1),
        ([signal.SIGHUP, signal.SIGHUP], 1),
        ([signal.SIGHUP, signal.SIGTERM], 2),
        ([signal.SIGINT, signal.SIGHUP], 2),
        ([signal.SIGTERM, signal.SIGINT], 2),
    ],
)
def test_what_counts(numbers: list[signal.Signals], count: int) -> None:
    """SIGHUP is as SIGTERM; but a terminal that is closed sends several, and that is one wish."""
    told: list[int] = []
    interrupts = Interrupts(told.append)
    with interrupts.watching():
        send(*numbers)
        assert interrupts.count == count
        assert interrupts.patience_over == (count > 1)
    assert told == [*range(1, count + 1)]


@pytest.mark.parametrize(("grace_s", "signals_that_end"), [(None, 2), (60.0, 2), (0.0, 1)])
def test_what_ends_a_quantum_in_this_thread(grace_s: float | None, signals_that_end: int) -> None:
    """A second signal does, or the first where there is no time; which one was first is remembered."""
    interrupts = Interrupts(grace_s=grace_s)
    with interrupts.watching(), interrupts.raising():
        send(*[signal.SIGTERM] * (signals_that_end - 1))
        with pytest.raises(RunInterrupted):
            send(signal.SIGINT)
    assert interrupts.first == (signal.SIGINT if signals_that_end == 1 else signal.SIGTERM)


def test_hangup_that_is_ignored() -> None:
    """Under nohup SIGHUP means nothing, during the run and after it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts = Interrupts()
    with interrupts.watching():
        send(signal.SIGHUP)
        assert interrupts.count == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers_are_put_back() -> None:
    """After the run a signal does what it did before."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with Interrupts().watching():
        assert not {*before} & {signal.getsignal(number) for number in numbers}
    assert [signal.getsignal(number) for number in numbers] == before
