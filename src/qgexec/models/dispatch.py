"""Which worker of a pool runs what: pure bookkeeping over workers, knows nothing of how they live and die.

A worker is sent an attempt before it has ended the one before only while all
that it holds is expected to take less than `PREFETCH_S`: that fills the gap
between two short quanta, and keeps a long one from waiting behind another. An
expectation may be wrong, so an idle worker takes over what another has not begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from qgexec.models.worker import encode_attempt
from qgexec.models.workers import Worker
from qgexec.quantum import Attempt

__all__ = ["PREFETCH_S", "Dispatch", "Durations"]

PREFETCH_S = 0.25
"""Longest expected time of all that one worker holds, where it holds more than one attempt, seconds."""

_MAX_HELD = 64
"""Most attempts that one worker holds; a socket has room for about 200 messages."""

_FORGETTING = 0.1
"""Least weight of a new duration in the running mean: a first quantum, which imports, does not stick."""


class Durations:
    """Running mean of how long the quanta of each label take."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[float, int]] = {}
        self._overall: tuple[float, int] = (0.0, 0)

    def add(self, label: str, took_s: float) -> None:
        """Take in one duration, seconds."""
        self._means[label] = _moved(self._means.get(label, (0.0, 0)), took_s)
        self._overall = _moved(self._overall, took_s)

    def fitting(self, room_s: float) -> int:
        """Return how many quanta are expected to fit into this time, seconds; at least one."""
        mean_s = self._overall[0]
        return max(1, min(_MAX_HELD, int(room_s / mean_s))) if mean_s > 0 else 1

    def expected_s(self, label: str) -> float:
        """Return the mean, seconds; infinite for a label not seen yet."""
        known = self._means.get(label)
        return known[0] if known is not None else float("inf")


def _moved(mean: tuple[float, int], took_s: float) -> tuple[float, int]:
    value, count = mean
    weight = max(1 / (count + 1), _FORGETTING)
    return value + weight * (took_s - value), count + 1


class Dispatch:
    """What waits, and who holds what; every step takes constant time.

    Parameters
    ----------
    cores
        Cores that the quanta of common workers may use.
    serial_labels
        Labels whose quanta go to a worker dedicated to the label.
    on_begin
        Called when the first of what a worker holds begins to run.
    """

    def __init__(
        self, cores: int, serial_labels: Collection[str], on_begin: Callable[[Worker], None]
    ) -> None:
        self.durations = Durations()
        self.dedicated: dict[str, Worker] = {}
        self.serial_backlog: dict[str, deque[Attempt]] = {label: deque() for label in serial_labels}
        self.isolated: set[str] = set()
        """Labels of tasks whose quanta are executed in processes of their own."""
        self.memory_bytes = 0
        """Sum of what all attempts here asked for: those that run, were sent beforehand, or wait."""
        self._cores = cores
        self._cores_in_use = 0
        self._backlog: deque[Attempt] = deque()
        self._on_begin = on_begin
        # Of the common workers: those with nothing to do, with room for more, with something not begun.
        self._idle: dict[int, Worker] = {}
        self._roomy: dict[int, Worker] = {}
        self._laden: dict[int, Worker] = {}

    @property
    def n_waiting(self) -> int:
        """Attempts that wait for a common worker."""
        return len(self._backlog)

    @property
    def anything_waits(self) -> bool:
        """An attempt waits for a worker, common or dedicated."""
        return bool(self._backlog) or any(self.serial_backlog.values())

    def capacity(self) -> int:
        """Return the free cores, plus as many attempts as fill the busy workers up to `PREFETCH_S`."""
        waiting = sum(map(self._cores_of, self._backlog))
        soon = 0
        if not self._backlog:
            soon = sum(
                min(self.durations.fitting(PREFETCH_S - worker.expected_s), _MAX_HELD - len(worker.held))
                for worker in self._roomy.values()
            )
        return max(0, self._cores - self._cores_in_use - waiting) + soon

    def add(self, attempt: Attempt) -> None:
        """Let an attempt wait behind the others."""
        self.memory_bytes += attempt.resources.memory_bytes or 0
        self.serial_backlog.get(attempt.task_label, self._backlog).append(attempt)

    def requeue(self, attempts: Sequence[Attempt]) -> None:
        """Let attempts that never began wait before those that came later."""
        for attempt in reversed(attempts):
            self.memory_bytes += attempt.resources.memory_bytes or 0
            self.serial_backlog.get(attempt.task_label, self._backlog).appendleft(attempt)

    def take_all_waiting(self) -> Iterator[Attempt]:
        """Yield what waits; it waits no more."""
        for backlog in (self._backlog, *self.serial_backlog.values()):
            while backlog:
                attempt = backlog.popleft()
                self.memory_bytes -= attempt.resources.memory_bytes or 0
                yield attempt

    def assign(self) -> None:
        """Send what waits to the workers that may have it."""
        while self._backlog:
            worker = self._place(self._backlog[0])
            if worker is None:
                break
            self._send(worker, self._backlog.popleft())
        for label, worker in self.dedicated.items():
            if worker.free and not worker.held and (backlog := self.serial_backlog[label]):
                self._send(worker, backlog.popleft())

    def even_out(self) -> None:
        """Give idle workers what others hold and have not begun."""
        if not (self._idle and self._laden):
            return
        for donor in list(self._laden.values()):
            if not self._idle:
                return
            if (attempt := self._take_unbegun(donor)) is not None:
                self._send(next(iter(self._idle.values())), attempt)

    def take_back(self, worker: Worker) -> Attempt | None:
        """Take one attempt back that a worker has not begun; `None` if there is none."""
        attempt = self._take_unbegun(worker)
        if attempt is not None:
            self.memory_bytes -= attempt.resources.memory_bytes or 0
        return attempt

    def withdraw(self, worker: Worker) -> Attempt:
        """Take the attempt that a worker is running, or was, from what it holds."""
        attempt = self._remove(worker, 0)
        self.memory_bytes -= attempt.resources.memory_bytes or 0
        return attempt

    def _take_unbegun(self, worker: Worker) -> Attempt | None:
        message = worker.process.take_back()
        if message is None:
            return None
        places = (place for place, attempt in enumerate(worker.held) if attempt.index == message[0])
        return self._remove(worker, next(places))

    def _remove(self, worker: Worker, place: int) -> Attempt:
        attempt = worker.held[place]
        del worker.held[place]
        expected = worker.expected[place]
        del worker.expected[place]
        worker.expected_s = worker.expected_s - expected if worker.held else 0.0
        if place == 0:
            if worker.label is None:
                self._cores_in_use -= self._cores_of(attempt)
            if worker.held:
                self._begin(worker)
        self.file(worker)
        return attempt

    def file(self, worker: Worker) -> None:
        """Look again at what a worker can be sent; the one that changed last comes last."""
        if worker.label is not None:
            return
        number, n_held, free = worker.number, len(worker.held), worker.free
        self._roomy.pop(number, None)
        self._idle.pop(number, None)
        self._laden.pop(number, None)
        if not free:
            return
        if not n_held:
            self._idle[number] = worker
            return
        if n_held < _MAX_HELD and worker.expected_s < PREFETCH_S:
            self._roomy[number] = worker
        if n_held > 1:
            self._laden[number] = worker

    def slack_s(self) -> float:
        """Return for how long no common worker runs out of what it holds, seconds; a cautious guess."""
        if self._idle or not self._laden:
            return 0.0
        busy = self._laden | self._roomy
        return min(worker.expected_s - worker.expected[0] for worker in busy.values()) / 2

    def _cores_of(self, attempt: Attempt) -> int:
        return min(attempt.resources.cores, self._cores)

    def _place(self, attempt: Attempt) -> Worker | None:
        """Return an idle worker, or a busy one that will soon have ended this attempt too."""
        if self._idle and self._cores_in_use + self._cores_of(attempt) <= self._cores:
            return next(iter(self._idle.values()))
        if self._roomy:
            worker = next(iter(self._roomy.values()))
            if worker.expected_s + self.durations.expected_s(attempt.task_label) <= PREFETCH_S:
                return worker
        return None

    def _send(self, worker: Worker, attempt: Attempt) -> None:
        expected = self.durations.expected_s(attempt.task_label)
        worker.held.append(attempt)
        worker.expected.append(expected)
        worker.expected_s += expected
        if attempt.task_label in self.isolated:
            attempt = replace(attempt, isolated=True)
        worker.process.channel.send(encode_attempt(attempt))
        if len(worker.held) == 1:
            self._begin(worker)
        self.file(worker)

    def _begin(self, worker: Worker) -> None:
        if worker.label is None:
            self._cores_in_use += self._cores_of(worker.held[0])
        self._on_begin(worker)
