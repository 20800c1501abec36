"""What tests of schedulers look at."""

from __future__ import annotations

from qgexec.quantum import Resources
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["FREE", "chosen", "snapshot_of", "states_of"]

FREE = Resources(1000)
"""More than anybody asks for."""


def states_of(scheduler: Scheduler) -> list[str]:
    """Return the states of all quanta, in words."""
    return [scheduler.state(index).value for index in range(len(scheduler.plan))]


def chosen(scheduler: Scheduler, capacity: Resources = FREE) -> list[int]:
    """Return the indices of what is to be started now."""
    return [attempt.index for attempt in scheduler.select(capacity)]


def snapshot_of(scheduler: Scheduler) -> object:
    """Return all there is to know about a scheduler."""
    indices = range(len(scheduler.plan))
    return (
        states_of(scheduler),
        [scheduler.attempts(index) for index in indices],
        list(scheduler._missing),
        scheduler.counts(),
        scheduler.counts_by_label(),
        [scheduler.past(index) for index in indices],
        scheduler.running(),
        scheduler.finished,
        scheduler.stopping,
        scheduler.wants_stop(),
        scheduler.select(FREE),
    )
