"""Runs quanta in this process, one after another: a debugger works in it, and so does any executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from qgexec.errors import ModelError, QgexecError, QuantumTimeUp, UsageError
from qgexec.events import AttemptFailed, AttemptReturned, AttemptTimedOut, Event
from qgexec.models.base import Bench, ModelFacts, Run
from qgexec.models.guard import CallerGuard
from qgexec.models.timelimit import TimeLimit, may_limit
from qgexec.models.worker import OutcomeEvent, as_outcome_event, with_peak
from qgexec.processes.descriptors import Sentinel
from qgexec.processes.treewatch import TreeWatch
from qgexec.quantum import Attempt, Resources
from qgexec.standardstreams import open_standard_streams

__all__ = ["InProcess"]


class InProcess:
    """Execute each quantum in the thread that calls `wait`.

    A time limit holds in the main thread, and where no debugger is at work.

    Parameters
    ----------
    grace_s
        Time that a quantum has to end itself when its time is up, seconds. After that its stack is written
        to the run directory and this process is ended; the run can be resumed.
    watch_memory
        Begins to watch what quanta and the processes that they start use together.

    Raises
    ------
    qgexec.errors.UsageError
        The grace period is negative.
    """

    facts = ModelFacts(enforces_timeout=True)

    def __init__(self, *, grace_s: float = 5.0, watch_memory: Callable[[], TreeWatch] = TreeWatch) -> None:
        if not grace_s >= 0:
            raise UsageError(f"grace_s is {grace_s}: it must be 0 or more seconds")
        self.facts = ModelFacts(enforces_timeout=may_limit())
        self._grace_s = grace_s
        self._logs = Path()
        self._guard = CallerGuard()
        self._bench: Bench | None = None
        self._sentinel: Sentinel | None = None
        self._watch_memory = watch_memory
        self._memory: TreeWatch | None = None
        self._started: deque[Attempt] = deque()

    def open(self, run: Run) -> None:
        """Open the bench.

        Raises
        ------
        qgexec.errors.ModelError
            The bench cannot be opened.
        """
        self._logs = run.logs
        self._sentinel = Sentinel()
        try:
            self._bench = run.open_bench()
        except QgexecError:
            raise
        except Exception as err:
            raise ModelError(f"cannot open the bench: {type(err).__name__}: {err}") from err
        self._memory = self._watch_memory()

    def capacity(self) -> Resources:
        """One quantum at a time."""
        return Resources(cores=0 if self._started else 1)

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Take these attempts in hand; serial ones may come beside the one that there is capacity for."""
        self._started.extend(attempts)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Execute one attempt, however long it takes; return at once where there is none.

        Raises
        ------
        qgexec.errors.ModelError
            The bench raised instead of saying what came of the attempt.
        """
        if not self._started or self._bench is None:
            return ()
        attempt = self._started[0]
        try:
            event = self._guard.run(attempt, self._measured)
        except QgexecError:
            self._require_descriptors(attempt)
            raise
        except Exception as err:
            self._require_descriptors(attempt)
            raise ModelError(
                f"quantum {attempt.index} ({attempt.task_label}): the bench raised "
                f"{type(err).__name__}: {err}"
            ) from err
        self._require_descriptors(attempt)
        # Only now: an attempt that Ctrl-C ended is still in hand, and `close` returns it.
        self._started.popleft()
        return (event,)

    def _require_descriptors(self, attempt: Attempt) -> None:
        """Check that a quantum has left this process what it has open; put back the standard streams.

        Raises
        ------
        qgexec.errors.ModelError
            It has not: databases, graph and log files are closed, and nothing can be done with them any more.
        """
        open_standard_streams()
        if self._sentinel is not None and self._sentinel.is_lost():
            raise ModelError(
                f"quantum {attempt.index} ({attempt.task_label}) has closed files of this program: "
                "the task closes all descriptors",
                hint="Repair the task. In a worker it costs nobody but itself: go on with -j 2.",
            )

    def _measured(self, attempt: Attempt) -> Event:
        """Execute an attempt; its peak of memory is that of all that it starts together."""
        if self._memory is None:
            return self._execute(attempt)
        self._memory.begin()
        try:
            event = self._execute(attempt)
        finally:
            seen_bytes = self._memory.end()
        return event if isinstance(event, AttemptTimedOut) else with_peak(event, seen_bytes)

    def _execute(self, attempt: Attempt) -> OutcomeEvent | AttemptTimedOut:
        """Execute an attempt, within its time limit if it has one."""
        bench, timeout_s = self._bench, attempt.timeout_s
        assert bench is not None
        if timeout_s is None or not may_limit():
            return as_outcome_event(bench.execute(attempt), attempt)
        stack_file = self._logs / f"{attempt.index}.{attempt.number}.stack"
        limit = TimeLimit(timeout_s, self._grace_s, stack_file)
        try:
            event = as_outcome_event(limit.run(lambda: bench.execute(attempt)), attempt)
        except QuantumTimeUp:
            return _timed_out(attempt, timeout_s)
        # A quantum that has caught the exception may have succeeded all the same; if not, time is the cause.
        if limit.is_up and isinstance(event, AttemptFailed):
            return _timed_out(attempt, timeout_s)
        return event

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """Close the bench; give back what has not ended."""
        returned = [AttemptReturned(time.time(), a.index, a.number) for a in self._started]
        self._started.clear()
        bench, self._bench = self._bench, None
        sentinel, self._sentinel = self._sentinel, None
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        if bench is not None:
            # Of files that were closed under it nothing is left to be closed, and no complaint is of use.
            is_lost = sentinel is not None and sentinel.is_lost()
            with suppress(Exception) if is_lost else nullcontext():
                bench.close()
        if sentinel is not None:
            sentinel.close()
        return returned


def _timed_out(attempt: Attempt, timeout_s: float) -> AttemptTimedOut:
    return AttemptTimedOut(time.time(), attempt.index, attempt.number, timeout_s)
