"""When a pool must look at the deadlines of its workers; knows not what they are for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from qgexec.models.workers import NEVER, Worker

__all__ = ["Alarms"]


class Alarms:
    """One deadline for each worker.

    Setting one costs nothing while the worker has an earlier alarm: an alarm
    that comes too early is set again, so there is one for each worker, not one for each attempt.

    Parameters
    ----------
    workers
        The living workers by number; the pool's own mapping.
    """

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self._workers = workers
        self._heap: list[tuple[float, int]] = []

    def set(self, worker: Worker, deadline: float) -> None:
        """Have a worker looked at at this time, by the monotonic clock, and not at an earlier one."""
        worker.deadline = deadline
        if deadline < worker.alarm_at:
            worker.alarm_at = deadline
            heapq.heappush(self._heap, (deadline, worker.number))

    def next_at(self) -> float:
        """Return when `due` is to be asked next, by the monotonic clock."""
        return self._heap[0][0] if self._heap else NEVER

    def due(self, now: float) -> Iterator[Worker]:
        """Yield the living workers whose deadline has passed; each has none afterwards."""
        while self._heap and self._heap[0][0] <= now:
            worker = self._workers.get(heapq.heappop(self._heap)[1])
            if worker is None:
                continue
            worker.alarm_at = NEVER
            if worker.deadline > now:
                self.set(worker, worker.deadline)
            else:
                worker.deadline = NEVER
                yield worker
