"""The seam between the one loop and the many ways to run quanta.

A model is told which attempts to start and says what became of them. It
never decides what may run, never writes the registry or the journal, and
never retries.

A complete model of one's own is in ``docs/execution-model.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from qgexec.events import Event
from qgexec.quantum import Attempt, Quanta, Resources, RunContext
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.states import State
from qgexec.scheduling.troubles import Past

__all__ = ["Bench", "BenchOpener", "ExecutionModel", "Ledger", "ModelFacts", "Run", "SimpleModel"]


class Bench(Protocol):
    """Where one process executes quanta, one after another: graph file and datastore are open.

    The bench of a real run is `qgexec.rubin.workbench.Workbench`.
    """

    def execute(self, attempt: Attempt) -> Event:
        """Execute one quantum and say what came of it; a quantum's failure is a value, never an exception.

        It may also say `AttemptLost`: it did not execute the quantum, and that is not the quantum's fault.
        """
        ...

    def close(self) -> None:
        """Release files and connections; may be called twice."""
        ...


BenchOpener = Callable[[str], Bench]
"""Opens a bench in the process that calls it; the argument names the segment file that it alone writes.

Local workers get it by pickle through their own pipe, so it must be an
instance of a module-level class, or a module-level function or `functools.partial` of one.
"""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the loop must know about a model; it asks facts, never names."""

    parallel: bool = False
    """Quanta run in other processes: tasks that cannot multiprocess are kept to one dedicated worker each."""

    sends_ahead: bool = False
    """Attempts that it has in hand may wait behind others, and it tells of `AttemptBegan`: of the first of
    each worker, and of those that go on for longer than a moment. Otherwise all that it has in hand count
    as running."""

    enforces_timeout: bool = False
    """Attempts over their time limit are ended, with `AttemptTimedOut`."""

    enforces_memory: bool = False
    """Attempts over their memory limit are ended, with `AttemptOutOfMemory`."""

    orders_itself: bool = False
    """It is given all quanta that are left at once, and starts each as its prerequisites have ended: it tells
    of `AttemptStarted` itself, and its events say whether another attempt follows. Its capacity is not
    0 only while it has nothing in hand."""

    survives_driver: bool = False
    """What it has in hand goes on when it is closed without ``cancel``, or its driver dies; the next driver
    that opens it is told what became of that."""


class Ledger(Protocol):
    """What the loop knows of the quanta, to be read by models that order the work themselves."""

    @property
    def plan(self) -> Plan:
        """The quanta."""
        ...

    @property
    def policy(self) -> Policy:
        """What quanta may use, and what is done about failures."""
        ...

    def state(self, index: int) -> State:
        """Return the state of a quantum."""
        ...

    def attempts(self, index: int) -> int:
        """Return the number of attempts at a quantum so far, the running one included."""
        ...

    def past(self, index: int) -> Past:
        """Return what earlier attempts at a quantum have cost."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """What a model is given when it opens."""

    context: RunContext
    """Repository, graph file, collections and run directory."""

    bench_opener: BenchOpener
    """Opens the bench at which this run's quanta are executed."""

    logs: Path
    """Folder for what workers print, and for the logs of attempts that were lost."""

    preload: tuple[str, ...] = ()
    """Modules that every worker needs: a server that forks workers imports them once."""

    serial_labels: frozenset[str] = frozenset()
    """Labels of tasks of which one quantum at a time may run, in a worker of its own, beside the others."""

    implicit_threads: bool = False
    """Leave numerical libraries their own threads."""

    worker_prefix: str = ""
    """What the names of workers begin with, where several drivers share the folder of logs."""

    prints_here: bool = False
    """What workers print goes where this process prints, not to a file of each worker below `logs`."""

    ledger: Ledger | None = None
    """What the loop knows of the quanta, for models that order the work themselves; to be read only."""

    def output_of(self, worker_name: str) -> Path | None:
        """Return the file that a worker prints to; `None` where it prints to where this process does."""
        return None if self.prints_here else self.logs / f"{worker_name}.out"

    def open_bench(self) -> Bench:
        """Open a bench in this process."""
        return self.bench_opener("driver")


@runtime_checkable
class ExecutionModel(Protocol):
    """How and where quanta run.

    The loop calls `open` once, then `capacity`, `start` and `wait` in turn
    from one thread, and `close` at the end, also after an error. For every
    attempt that was started the model returns exactly one event that ends it
    (`AttemptSucceeded`, `AttemptSkipped`, `AttemptFailed`, `AttemptLost`,
    `AttemptTimedOut`, `AttemptOutOfMemory` or `AttemptReturned`), from `wait` or from ``close(cancel=True)``.
    """

    facts: ModelFacts

    def open(self, run: Run) -> None:
        """Make ready to start attempts.

        Raises
        ------
        qgexec.errors.ModelError
            It cannot be done; the message says what to do.
        """
        ...

    def capacity(self) -> Resources:
        """Return what may be started now; ``cores=0`` for nothing. Serial labels use memory, but no core."""
        ...

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Take these attempts in hand; never blocks."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what happened; block until something has, at most ``timeout_s`` seconds."""
        ...

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """End everything that was started; return the last events, if any. May be called twice.

        Parameters
        ----------
        cancel
            End running attempts now; they are reported as `AttemptReturned`. Otherwise none runs any more.
        """
        ...


@runtime_checkable
class SimpleModel(Protocol):
    """The simplest kind of client: it is handed the quanta and does with them what it likes."""

    def execute(self, quanta: Quanta) -> None:
        """Take all quanta, each after its prerequisites."""
        ...
