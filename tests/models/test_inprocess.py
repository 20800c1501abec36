"""`qgexec.models.inprocess`: what only a model within this process can do."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from benches import Bench, attempts, endings, make_run

from qgexec.errors import ModelError, RepositoryError
from qgexec.events import AttemptReturned, AttemptSucceeded, Event
from qgexec.models.inprocess import InProcess
from qgexec.quantum import Attempt


class Local(Bench):
    """Cannot be pickled, and remembers who called it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "driver")
        self.lock = threading.Lock()
        self.threads: list[int] = []

    def execute(self, attempt: Attempt) -> Event:
        self.threads.append(threading.get_ident())
        if attempt.task_label == "interrupt":
            raise KeyboardInterrupt
        return super().execute(attempt)


def test_runs_in_the_calling_thread(tmp_path: Path) -> None:
    """A quantum runs when the loop waits, in its thread, at a bench that no pickle could carry."""
    bench = Local(tmp_path)
    model = InProcess()
    model.open(replace(make_run(tmp_path), bench_opener=lambda _: bench))
    model.start(attempts("isr"))
    assert bench.threads == []
    (event,) = model.wait(0.0)
    assert isinstance(event, AttemptSucceeded)
    assert event.outcome.pid == os.getpid()
    assert bench.threads == [threading.get_ident()]
    model.close(cancel=True)


def test_interrupted_quantum_is_given_back(tmp_path: Path) -> None:
    """Ctrl-C passes through; the attempt that it ended, and those behind it, are returned by closing."""
    model = InProcess()
    model.open(replace(make_run(tmp_path), bench_opener=lambda _: Local(tmp_path)))
    model.start(attempts("interrupt", "isr"))
    with pytest.raises(KeyboardInterrupt):
        model.wait(0.0)
    returned = endings(model.close(cancel=True))
    assert [(type(event), event.index) for event in returned] == [(AttemptReturned, 0), (AttemptReturned, 1)]


def test_our_own_errors_pass(tmp_path: Path) -> None:
    """An error with a message of its own is not wrapped."""

    def open_bench(_: str) -> Bench:
        raise RepositoryError("it is not there", hint="Make it.")

    with pytest.raises(RepositoryError) as caught:
        InProcess().open(replace(make_run(tmp_path), bench_opener=open_bench))
    assert not isinstance(caught.value, ModelError)
    assert caught.value.hint == "Make it."
