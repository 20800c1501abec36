"""What the jobs of a round have said, as news that the run's own journal can take; writes nothing.

Each job keeps a journal of its own, a file for each try (`qgexec.batch.rounds.Round.journal`). Nobody
promises when a file that one machine wrote is seen on another, so that the journal of a job may be
seen before those of its parents, and that of a try before the end of the one before it: what would come
too early waits until the next look. Where lines are damaged, what follows from them never comes: it is
dropped, and its quanta are executed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qgexec.batch.rounds import Round
from qgexec.books.journal import DamagedLine, Position, read_events, tell_of_damage
from qgexec.errors import JournalError
from qgexec.events import (
    AttemptEvent,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    RunEnded,
    RunStarted,
)
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State

__all__ = ["JobJournals"]


@dataclass(slots=True)
class _JobNews:
    """How far the journal of one job was read."""

    positions: dict[int, Position] = field(default_factory=dict)
    held_back: deque[AttemptEvent] = field(default_factory=deque)
    """Read, and not passed on: what they follow from has not been seen yet."""
    damaged: list[DamagedLine] = field(default_factory=list)
    """Lines that were passed over."""
    n_told: int = 0
    """How many of them were told of."""
    is_over: bool = False
    """Its last try has closed its books."""
    sizes: tuple[int, ...] = ()
    """Sizes of its files when they were read, bytes."""


class JobJournals:
    """Reads the journals of a round's jobs, each event once.

    Parameters
    ----------
    batch_round
        The round.
    plan
        All quanta of the run.
    state
        The state of a quantum, as the run's own journal has it at this moment.
    attempts
        Its number of attempts, likewise; what has been recorded before is no news.
    """

    def __init__(
        self,
        batch_round: Round,
        plan: Plan,
        state: Callable[[int], State],
        attempts: Callable[[int], int],
    ) -> None:
        self._round = batch_round
        self._plan = plan
        self._jobs: dict[int, _JobNews] = {}
        self._done = bytearray(b"\1") * len(plan)
        self._attempts: dict[int, int] = {}
        self._running: dict[int, None] = {}
        self._n_over = 0
        self.has_moved = False
        """An attempt in this round has come to an end, other than by being handed back."""
        for job in batch_round.jobs:
            for index in batch_round.jobs.quanta(job):
                now = state(index)
                self._done[index] = now in (State.SUCCEEDED, State.SKIPPED)
                if n_attempts := attempts(index):
                    self._attempts[index] = n_attempts
                if now is State.RUNNING:
                    self._running[index] = None

    @property
    def running(self) -> tuple[int, ...]:
        """Quanta whose attempt has begun and not ended, as far as was read; those of a job as they began."""
        return tuple(self._running)

    def waiting(self) -> set[int]:
        """Return the running quanta that wait for another one of their job to end: it has one worker."""
        jobs = self._round.jobs
        job_of = {index: job for job in jobs for index in jobs.quanta(job) if index in self._running}
        first = {job_of[index]: index for index in reversed(self._running)}
        return self._running.keys() - set(first.values())

    @property
    def are_over(self) -> bool:
        """Whether all jobs have said their last word, as far as was read; one that was killed never does."""
        return self._n_over == len(self._round.jobs)

    def attempts(self, index: int) -> int:
        """Return the number of attempts at a quantum, as far as was read."""
        return self._attempts.get(index, 0)

    def read(self) -> list[Event]:
        """Return what is new, each event after those that it follows from; opens no file that is as it was.

        Raises
        ------
        qgexec.errors.JournalError
            A journal is damaged.
        """
        news: list[Event] = []
        for job in self._begun():
            known = self._jobs.setdefault(job, _JobNews())
            self._read_job(job, known)
            while known.held_back and self._takes(known.held_back[0], news, job, known):
                known.held_back.popleft()
        return news

    def forget(self, index: int) -> None:
        """Take it that the running attempt at a quantum has ended, as somebody else has said."""
        self._running.pop(index, None)

    def _begun(self) -> Iterator[int]:
        """Yield the jobs that have begun, parents first."""
        shards = self._round.folder / "journals"
        for shard in _entries(shards):
            for folder in _entries(shard):
                if folder.name.isdecimal() and int(folder.name) < len(self._round.jobs):
                    yield int(folder.name)

    def _read_job(self, job: int, known: _JobNews) -> None:
        folder = self._round.journal(job)
        sizes = _sizes(folder)
        if sizes == known.sizes:
            return
        n_earlier = max(0, len(known.sizes) - 1)
        if sizes[:n_earlier] != known.sizes[:n_earlier] or known.damaged:
            # The end of an earlier try is seen only now, or perhaps what has only seemed to be damaged, as on
            # network file systems: once more, in order; what is known is dropped again.
            known.positions.clear()
            known.held_back.clear()
            known.damaged.clear()
        was_over = known.is_over
        try:
            for event in read_events(folder, known.positions, known.damaged):
                if isinstance(event, AttemptEvent):
                    if not 0 <= event.index < len(self._plan):
                        raise JournalError(
                            f"{folder} names quantum {event.index}, and the run has {len(self._plan)} quanta",
                            hint="Bring this folder back from a copy.",
                        )
                    known.held_back.append(event)
                elif isinstance(event, RunStarted | RunEnded):
                    known.is_over = isinstance(event, RunEnded)
        except JournalError:
            if _sizes(folder) != sizes:  # its next try has only just begun it
                return
            raise
        finally:
            self._n_over += known.is_over - was_over
        known.sizes = sizes
        tell_of_damage(known.damaged[known.n_told :])
        known.n_told = max(known.n_told, len(known.damaged))

    def _takes(self, event: AttemptEvent, news: list[Event], job: int, known: _JobNews) -> bool:
        """Add an event to the news, or drop it if it is none; return `False` if it comes too early."""
        index, number = event.index, event.attempt
        if known.damaged and number >= self.attempts(index) and not self._done[index]:
            if self._is_cut_off(index, job):
                return True
            self._bridge(event, news)
        n_attempts = self._attempts.get(index, 0)
        if isinstance(event, AttemptStarted):
            if number <= n_attempts or self._done[index]:  # a try may not have seen what the one before did
                if number == n_attempts and index in self._running:  # as an earlier driver recorded it
                    self._running[index] = self._running.pop(index)
                return True
            if number > n_attempts + 1 or index in self._running or not self._may_begin(index):
                return False
            self._attempts[index] = number
            self._running[index] = None
        else:
            self.has_moved |= not isinstance(event, AttemptReturned)
            if number > n_attempts and not self._done[index]:
                return False
            if number != n_attempts or index not in self._running:
                return True
            del self._running[index]
            self._done[index] = isinstance(event, AttemptSucceeded | AttemptSkipped)
        news.append(event)
        return True

    def _is_cut_off(self, index: int, job: int) -> bool:
        """Return whether a quantum began after the end of another one of its job which nobody knows of."""
        own = self._round.jobs.quanta(job)
        return any(not self._done[other] and other in own for other in self._plan.prerequisites(index))

    def _bridge(self, event: AttemptEvent, news: list[Event]) -> None:
        """Add what must have come between what was read of a quantum and an event, but for how it ended."""
        if not self._may_begin(event.index):
            return
        starts = isinstance(event, AttemptStarted)
        while (known := self.attempts(event.index)) < event.attempt:
            if event.index in self._running:
                news.append(AttemptReturned(event.at, event.index, known))
                del self._running[event.index]
            if starts and known + 1 == event.attempt:
                return
            news.append(AttemptStarted(event.at, event.index, known + 1))
            self._attempts[event.index] = known + 1
            self._running[event.index] = None

    def _may_begin(self, index: int) -> bool:
        return all(self._done[prerequisite] for prerequisite in self._plan.prerequisites(index))


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return ()


def _sizes(folder: Path) -> tuple[int, ...]:
    """Return the sizes of a journal's files in order, bytes."""
    return tuple(path.stat().st_size for path in _entries(folder) if path.suffix == ".jsonl")
