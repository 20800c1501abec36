"""Runs quanta in this process, one after another: a debugger works in it, and so does any executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from qgexec.errors import ModelError, QgexecError
from qgexec.events import AttemptReturned, Event
from qgexec.models.base import Bench, ModelFacts, Run
from qgexec.quantum import Attempt, Resources
from qgexec.worker import as_outcome_event

__all__ = ["InProcess"]


class InProcess:
    """Execute each quantum in the thread that calls `wait`."""

    facts = ModelFacts()

    def __init__(self) -> None:
        self._bench: Bench | None = None
        self._started: deque[Attempt] = deque()

    def open(self, run: Run) -> None:
        """Open the bench.

        Raises
        ------
        qgexec.errors.ModelError
            The bench cannot be opened.
        """
        try:
            self._bench = run.open_bench()
        except QgexecError:
            raise
        except Exception as err:
            raise ModelError(f"cannot open the bench: {type(err).__name__}: {err}") from err

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
            event = as_outcome_event(self._bench.execute(attempt), attempt)
        except QgexecError:
            raise
        except Exception as err:
            raise ModelError(
                f"quantum {attempt.index} ({attempt.task_label}): the bench raised "
                f"{type(err).__name__}: {err}"
            ) from err
        # Only now: an attempt that Ctrl-C ended is still in hand, and `close` returns it.
        self._started.popleft()
        return (event,)

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """Close the bench; give back what has not ended."""
        returned = [AttemptReturned(time.time(), a.index, a.number) for a in self._started]
        self._started.clear()
        bench, self._bench = self._bench, None
        if bench is not None:
            bench.close()
        return returned
