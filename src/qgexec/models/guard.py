"""Has a quantum find its process as a fresh one would be, whatever ran in it before.

What can be put back is put back (`qgexec.processes.processstate`); what cannot is named
(`qgexec.processes.leftovers`): in a worker it costs the worker, in the caller's process it is a warning.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from qgexec.processes.apart import end_if_child
from qgexec.processes.leftovers import Leftovers
from qgexec.processes.processstate import ProcessState
from qgexec.processes.proctree import adopt_orphans, end_descendants
from qgexec.processes.randomness import (
    draw_seed,
    generator_states,
    restore_generators,
    seed_children,
    seed_generators,
)
from qgexec.quantum import Attempt

__all__ = ["CallerGuard", "WorkerGuard"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")


def _run_here(attempt: Attempt, execute: Callable[[Attempt], T]) -> T:
    """Execute an attempt, and come back in this process alone; what it sets in context variables is gone."""
    pid = os.getpid()
    try:
        # numpy's error state and decimal's context are such variables, and perhaps others of libraries.
        return contextvars.copy_context().run(execute, attempt)
    finally:
        end_if_child(pid, sys.exception())


class WorkerGuard:
    """Guards the quanta of a worker, which belongs to us; about 0.2 ms for each.

    Parameters
    ----------
    rearm
        Called after each attempt: installs the signal handlers that are not Python's.
    """

    def __init__(self, rearm: Callable[[], None] = lambda: None) -> None:
        self._rearm = rearm
        adopt_orphans()
        seed_children()
        self._state = ProcessState()
        self._leftovers = Leftovers(is_worker=True)

    @property
    def kept(self) -> frozenset[int]:
        """Process IDs of what quanta have started that may stay."""
        return self._leftovers.kept

    def run(self, attempt: Attempt, execute: Callable[[Attempt], T]) -> tuple[T, str]:
        """Execute an attempt; return what comes of it, and what it leaves that costs the worker, in words."""
        seed_generators(draw_seed() if attempt.seed is None else attempt.seed)
        result = _run_here(attempt, execute)
        left = self._leftovers.look(keep_processes=attempt.keeps_processes)
        left += self._state.restore()
        self._rearm()
        if attempt.isolated and left:
            self.end_processes()  # they are all that can be left of it, and their parent is gone
            left = []
        return result, ", ".join(left)

    def end_processes(self) -> None:
        """End what quanta have started and left, but for what may stay."""
        end_descendants(self._leftovers.spared)

    def close(self) -> None:
        """Guard nothing any more."""
        self._state.close()
        self._leftovers.close()
        adopt_orphans(on=False)


class CallerGuard:
    """Guards a process that is somebody else's: after each quantum all is as the caller had it."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def run(self, attempt: Attempt, execute: Callable[[Attempt], T]) -> T:
        """Execute an attempt; return what comes of it. What it leaves is a warning, once for each task."""
        states = generator_states()
        state, leftovers = ProcessState(), Leftovers()
        try:
            seed_generators(draw_seed() if attempt.seed is None else attempt.seed)
            return _run_here(attempt, execute)
        finally:
            left = [*leftovers.look(), *state.restore()]
            leftovers.close()
            state.close()
            restore_generators(states)
            for what in left:
                if (attempt.task_label, what) not in self._told:
                    self._told.add((attempt.task_label, what))
                    _logger.warning("%s leaves %s in this process.", attempt.task_label, what)
