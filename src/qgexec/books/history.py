"""A run's past, folded from its journal: all that must be known to go on with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Self

from qgexec.books.journal import (
    DamagedLine,
    Position,
    Writer,
    last_epoch,
    read_events,
    read_writer,
    tell_of_damage,
)
from qgexec.errors import IllegalEventError, JournalError
from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.quantum import Outcome, SegmentRef
from qgexec.scheduling.gaps import FollowingScheduler
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import State

__all__ = ["History", "writer_of"]

_RECENT_S = 300.0
"""What a power cut may take, however the file system is set up, is not older than this, seconds."""


def writer_of(driver: RunStarted) -> Writer:
    """Return the process that a driver is."""
    return Writer(driver.host, driver.pid, driver.pid_started_at, driver.birth)


def _is_same(writer: Writer | None, driver: Writer) -> bool:
    """Return whether these may be one process; without births, two readings of its start agree within 2 s."""
    if writer is not None and writer.birth is not None and driver.birth is not None:
        return (writer.pid, writer.birth) == (driver.pid, driver.birth)
    return writer is None or (
        (writer.host, writer.pid) == (driver.host, driver.pid)
        and abs(writer.pid_started_at - driver.pid_started_at) <= 2.0
    )


class History:
    """What a journal tells of a run, up to its last event.

    Parameters
    ----------
    plan
        The quanta.
    policy
        What they may use from now on, and what to do about failures.
    serial_labels
        As for `qgexec.scheduling.scheduler.Scheduler`.
    """

    def __init__(self, plan: Plan, policy: Policy, serial_labels: Collection[str] = ()) -> None:
        self.scheduler = FollowingScheduler(plan, policy=policy, serial_labels=serial_labels)
        """The states of all quanta."""
        self.epoch = 0
        """Number of the journal's last file."""
        self.positions: dict[int, Position] = {}
        """How far each of its files was read."""
        self.damaged: list[DamagedLine] = []
        """Lines that were passed over. An event need not follow from those before as soon as there is one."""
        self.driver: RunStarted | None = None
        """The last driver."""
        self.writer: Writer | None = None
        """Who created the journal's last file; `None` where that is unknown."""
        self.is_open = False
        """Whoever that was has not closed its books."""
        self.last_event_at: float | None = None
        """UNIX seconds."""
        self.workers: dict[int, WorkerStarted] = {}
        """Workers of the last driver that are not known to have ended."""
        self.awaiting_ingest: dict[int, SegmentRef] = {}
        """Details of quanta that have ended for good, and are not in the registry yet."""
        self.in_the_air: dict[int, AttemptStarted] = {}
        """Attempts that have not ended, by index."""
        self.left_behind: set[int] = set()
        """Quanta whose last attempt came to no end of its own, or was to be followed by another."""
        self._recent: deque[tuple[float, int, SegmentRef]] = deque()

    @classmethod
    def read(cls, journal: Path, plan: Plan, policy: Policy, serial_labels: Collection[str] = ()) -> Self:
        """Fold a journal.

        Raises
        ------
        qgexec.errors.JournalError
            It is missing, damaged, of a newer version, or another plan's.
        """
        history = cls(plan, policy, serial_labels)
        history.epoch = last_epoch(journal)
        try:
            for event in read_events(journal, history.positions, history.damaged):
                history.apply(event)
        except IllegalEventError as err:
            raise JournalError(
                f"the journal in {journal.parent} does not fit its plan: {err.message}",
                hint="Bring journal/ and plan.npz back from the same copy.",
            ) from err
        tell_of_damage(history.damaged)
        for line in history.damaged:
            if isinstance(
                line.event, WorkerStarted
            ):  # if it is not the one that it seems to be, it is not found
                history.workers[-line.number] = line.event
        if history.epoch:
            history.writer, is_whole = read_writer(journal, history.epoch)
            driver = history.driver
            # A last file without events: its writer was killed, or has only just begun.
            if not is_whole or driver is None or not _is_same(history.writer, writer_of(driver)):
                history.is_open = True
        return history

    def apply(self, event: Event) -> None:
        """Take in the next event.

        Raises
        ------
        qgexec.errors.IllegalEventError
            It does not follow from those before.
        """
        if self.damaged:
            self.scheduler.follow(event)
        else:
            self.scheduler.apply(event)
        self.last_event_at = event.at
        if isinstance(event, AttemptEvent):
            self._apply_to_attempt(event)
            return
        match event:
            case OutputsIngested(indices=indices):
                self._forget(indices)
            case WorkerStarted(worker=worker):
                self.workers[worker] = event
            case WorkerEnded(worker=worker):
                self.workers.pop(worker, None)
            case RunStarted():
                self.driver, self.is_open = event, True
                self.workers.clear()
            case RunEnded():
                self.is_open = False
            case RunReopened(revoked=revoked):
                self._forget(revoked)
            case _:
                pass

    def _apply_to_attempt(self, event: AttemptEvent) -> None:
        self.in_the_air.pop(event.index, None)
        match event:
            case AttemptStarted(index=index):
                self.awaiting_ingest.pop(index, None)
                self.left_behind.discard(index)
                self.in_the_air[index] = event
            case AttemptSucceeded(outcome=outcome) | AttemptSkipped(outcome=outcome):
                self._expect_ingest(outcome)
                self._note_recent(event.at, outcome)
            case AttemptFailed(outcome=outcome, retried=False):
                self._expect_ingest(outcome)
            case _:
                self.left_behind.add(event.index)

    def _forget(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.awaiting_ingest.pop(index, None)

    def recent_successes(self) -> Iterator[tuple[int, SegmentRef]]:
        """Yield what succeeded in the last minutes before the last event, with its detail."""
        since = (self.last_event_at or 0.0) - _RECENT_S
        for at, index, detail in self._recent:
            if at >= since and self.scheduler.state(index) is State.SUCCEEDED:
                yield index, detail

    def _expect_ingest(self, outcome: Outcome) -> None:
        if outcome.detail is not None:
            self.awaiting_ingest[outcome.index] = outcome.detail

    def _note_recent(self, at: float, outcome: Outcome) -> None:
        if outcome.detail is not None:
            self._recent.append((at, outcome.index, outcome.detail))
        while self._recent and self._recent[0][0] < at - _RECENT_S:
            self._recent.popleft()
