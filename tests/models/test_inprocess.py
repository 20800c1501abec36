"""`qgexec.models.inprocess`: what only a model within this process can do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.errors import ModelError, QuantumTimeUp, RepositoryError, UsageError
from qgexec.events import AttemptReturned, AttemptSucceeded, AttemptTimedOut, Event
from qgexec.models.inprocess import InProcess
from qgexec.processes.treewatch import TreeWatch
from qgexec.quantum import Attempt
from tests.kit.checkout import PYTHONPATH
from tests.kit.processes import warm
from tests.kit.runs.benches import PATIENCE_S, Bench, Ears, attempts, endings, make_run, wait_gone


class SeesMuch(TreeWatch):
    """Has seen that a quantum and what it started use much together."""

    def end(self) -> int:
        super().end()
        return 10**12


def test_peak_of_the_whole_tree(tmp_path: Path) -> None:
    """The peak of a quantum is that of all that it starts together, where that is more than its own."""
    model = InProcess(watch_memory=SeesMuch)
    model.open(make_run(tmp_path))
    model.start(attempts("isr"))
    (event,) = model.wait(0.0)
    model.close(cancel=False)
    assert isinstance(event, AttemptSucceeded)
    assert event.outcome.peak_rss_bytes == 10**12
    assert not [thread for thread in threading.enumerate() if thread.name == "qgexec-memory"]


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


class Impatient(Bench):
    """Does not wait for an alarm: it rings itself."""

    def execute(self, attempt: Attempt) -> Event:
        match attempt.task_label:
            case "ring":
                signal.raise_signal(signal.SIGALRM)
            case "breed_and_ring":
                with subprocess.Popen(["sleep", "1000"]) as child:
                    self.say(f"{attempt.index} {os.getpid()} {child.pid}")
                    signal.raise_signal(signal.SIGALRM)
            case "ring_and_catch" | "fail":
                with contextlib.suppress(QuantumTimeUp):
                    signal.raise_signal(signal.SIGALRM)
            case "breakpoint":
                with traced():
                    signal.raise_signal(signal.SIGALRM)
        return super().execute(attempt)


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Follow this thread as a debugger does."""
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        yield
    finally:
        sys.settrace(before)


def impatient(folder: Path) -> InProcess:
    """Return a model whose quanta have an hour."""
    model = InProcess()
    model.open(replace(make_run(folder), bench_opener=lambda _: Impatient(folder, "driver")))
    return model


def test_time_limit(ears: Ears, tmp_path: Path) -> None:
    """A quantum over its limit is ended by an exception, and its stack kept; the next one runs as ever."""
    model = InProcess()
    assert model.facts.enforces_timeout
    model.open(make_run(tmp_path))
    model.start([*attempts("hang", timeout_s=0.3), *attempts("isr", "isr", timeout_s=3600.0)[1:]])
    events = [*model.wait(0.0), *model.wait(0.0)]
    model.close(cancel=True)
    late, done = events
    assert isinstance(late, AttemptTimedOut)
    assert (late.index, late.attempt, late.timeout_s) == (0, 1, 0.3)
    assert isinstance(done, AttemptSucceeded)
    assert "in _hang" in (tmp_path / "0.1.stack").read_text()
    assert not (tmp_path / "1.1.stack").exists()


def test_children_are_ended(ears: Ears, tmp_path: Path) -> None:
    """What a quantum has started is ended when its time is up; a child that was there before lives on."""
    other = subprocess.Popen(["sleep", "1000"])
    try:
        model = InProcess()
        model.open(replace(make_run(tmp_path), bench_opener=lambda _: Impatient(tmp_path, "driver")))
        model.start(attempts("breed_and_ring", timeout_s=3600.0))
        (event,) = model.wait(0.0)
        model.close(cancel=True)
        assert isinstance(event, AttemptTimedOut)
        wait_gone(ears.hear()[2])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_alarm_of_the_program(tmp_path: Path) -> None:
    """Handler and timer that the program had are there again afterwards."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 500.0)
        model = impatient(tmp_path)
        model.start(attempts("ring", timeout_s=3600.0))
        model.wait(0.0)
        model.close(cancel=True)
        assert signal.getsignal(signal.SIGALRM) is handler
        assert 400.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("ring", AttemptTimedOut),
        ("ring_and_catch", AttemptSucceeded),
        ("fail", AttemptTimedOut),
        ("breakpoint", AttemptSucceeded),
        ("isr", AttemptSucceeded),
    ],
)
def test_what_a_quantum_makes_of_it(label: str, kind: type[Event], tmp_path: Path) -> None:
    """One that succeeds all the same has succeeded, one that fails is timed out; a debugger lets it go on."""
    model = impatient(tmp_path)
    model.start(attempts(label, timeout_s=3600.0))
    (event,) = model.wait(0.0)
    model.close(cancel=True)
    assert type(event) is kind


def test_no_limit_under_a_debugger(tmp_path: Path) -> None:
    """Under a debugger there is no time limit, and the model says so."""
    seen = []

    class Looking(Bench):
        def execute(self, attempt: Attempt) -> Event:
            seen.append(signal.getsignal(signal.SIGALRM))
            return super().execute(attempt)

    with traced():
        model = InProcess()
        model.open(replace(make_run(tmp_path), bench_opener=lambda _: Looking(tmp_path, "driver")))
        assert not model.facts.enforces_timeout
        handler = signal.getsignal(signal.SIGALRM)
        model.start(attempts("isr", timeout_s=0.001))
        (event,) = model.wait(0.0)
        model.close(cancel=True)
    assert isinstance(event, AttemptSucceeded)
    assert seen == [handler]


def test_no_limit_in_other_threads(tmp_path: Path) -> None:
    """Only the main thread hears an alarm: in others the model says that it ends no quanta."""
    events: list[Event] = []
    facts = []

    def run() -> None:
        model = impatient(tmp_path)
        facts.append(model.facts)
        model.start(attempts("isr", timeout_s=3600.0))
        events.extend(model.wait(0.0))
        model.close(cancel=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(event) for event in events] == [AttemptSucceeded]
    assert not facts[0].enforces_timeout


def test_no_grace() -> None:
    """A negative grace period is refused."""
    with pytest.raises(UsageError, match="grace_s"):
        InProcess(grace_s=-1.0)


STUCK = """
import sys
from pathlib import Path
from tests.kit.runs.benches import attempts, make_run
from qgexec.models.inprocess import InProcess
from qgexec.processes.treewatch import TreeWatch
model = InProcess(grace_s=0.1)
model.open(make_run(Path(sys.argv[1])))
model.start(attempts(sys.argv[2], timeout_s=0.1))
model.wait(0.0)
print("it came back")
"""


@pytest.mark.parametrize(("label", "where"), [("spin", "in _spin"), ("catch_all", "in _catch_all")])
def test_a_quantum_that_does_not_end(label: str, where: str, ears: Ears, tmp_path: Path) -> None:
    """One deep in C, or that catches whatever comes, ends the process after the grace period, stack kept."""
    done = warm.run(
        [sys.executable, "-c", STUCK, str(tmp_path), label],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert where in (tmp_path / "0.1.stack").read_text()
