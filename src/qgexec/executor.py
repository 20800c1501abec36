"""The one loop that drives every execution model: start what is ready and fits, wait, record.

It owns the order in which things happen (legal, on disk, applied, acted
upon) and the way a run ends; it does not know what runs a quantum, where
outputs go, or who watches.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from qgexec.books.heartbeat import HEARTBEAT_S
from qgexec.books.holder import this_process
from qgexec.books.journal import Journal
from qgexec.errors import IngestError, JournalError, ModelError
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    FailureEvent,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerStarted,
)
from qgexec.ingestion.base import Ingestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import ExecutionModel, ModelFacts, Run
from qgexec.processes.randomness import draw_seed
from qgexec.quantum import Attempt, Outcome, SegmentRef
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["PULSE_S", "Loop"]

_logger = logging.getLogger(__name__)

PULSE_S = 0.25
"""Longest time the loop sleeps: bounds how late an interrupt is noticed and an ingest recorded."""

_FAILURES = frozenset({AttemptFailed, AttemptLost, AttemptTimedOut, AttemptOutOfMemory})

_CANCEL_PERIOD_S = 1.0
"""Time between two looks at whether somebody wants the run ended, seconds."""

_DRAIN_S = 3600.0
"""Longest time that the registry may take, at the end, for what is left to ingest."""


@dataclass(slots=True)
class Loop:
    """One run of one plan on one execution model.

    Parameters
    ----------
    scheduler
        Decides what may run; holds the state of every quantum.
    model, run
        The execution model, and what it is opened with.
    journal
        Every event is in it before anything acts on it.
    ingestion
        Takes outputs into the registry.
    model_name
        The model's name in the journal.
    opening
        Events that settle what an earlier driver left open; recorded first.
    offers
        What an earlier driver had executed and not taken into the registry.
    observers
        Called with every event after it was recorded: progress.
    interrupts
        Ctrl-C, SIGTERM and SIGUSR1.
    tell
        Called when somebody asked, by SIGUSR1, how far the run is.
    cancelled
        Asked now and then: whether somebody, anywhere, wants the run ended.
    leaves
        Go away as soon as the model has all that is left in hand, if that goes on without a driver.
    hands_back
        Leave what does not fit this machine to another try elsewhere, rather than break off.
    seed
        Quanta draw the same random numbers in each run with the same seed; `None`: others in each attempt.
    until
        When to start nothing more, UNIX seconds; `None` for never.
    clock
        Gives UNIX seconds.
    monotonic
        Gives seconds between which nobody sets the clock.
    """

    scheduler: Scheduler
    model: ExecutionModel
    run: Run
    journal: Journal
    ingestion: Ingestion
    model_name: str
    n_quanta: int
    opening: Sequence[Event] = ()
    offers: Mapping[int, SegmentRef] = field(default_factory=dict)
    observers: Sequence[Callable[[Event], None]] = ()
    interrupts: Interrupts = field(default_factory=Interrupts)
    tell: Callable[[], None] = lambda: None
    cancelled: Callable[[], bool] = lambda: False
    leaves: bool = False
    hands_back: bool = False
    seed: int | None = None
    until: float | None = None
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _ingestion_due_at: float = field(default=0.0, init=False)
    _check_due_at: float = field(default=0.0, init=False)
    _cancel_due_at: float = field(default=0.0, init=False)
    _is_cancelled: bool = field(default=False, init=False)
    has_left: bool = field(default=False, init=False)
    """It went away, and what the model has in hand goes on."""
    _is_ingestion_paused: bool = field(default=False, init=False)
    _left_behind: set[int] = field(default_factory=set, init=False)

    def execute(self) -> EndReason:
        """Run until nothing is left that may run, or the run was stopped.

        Returns
        -------
        reason
            COMPLETED or STOPPED (also if it has left). How each quantum ended is the scheduler's.

        Raises
        ------
        qgexec.errors.QgexecError
            The model, the registry or the disk failed. What was done until then is in the journal.
        """
        reason = EndReason.BROKEN
        try:
            self._record(_run_started(self.clock(), self.model_name, self.n_quanta, self.model.facts))
            self._open_again()
            for index, detail in self.offers.items():
                self.ingestion.offer(index, detail)
            with self.interrupts.watching():
                if not self.scheduler.finished:
                    self._run_model()
                self.journal.check_in_place()
                self._finish_ingestion()
            went_on = self.scheduler.stopping is None and not self.has_left
            reason = EndReason.COMPLETED if went_on else EndReason.STOPPED
        except Exception:
            self.journal.check_in_place()  # a better reason for whatever else was missing
            raise
        finally:
            last_events = self.ingestion.close()
            self._close_books(reason, last_events)
        return reason

    def _open_again(self) -> None:
        """Record what settles an earlier driver's attempts; of these only successes are acted upon.

        The others have been cleared away already, and are followed by another attempt.
        """
        for event in self.opening:
            self._put_down(event)
            if isinstance(event, AttemptSucceeded):
                self._offer(event.outcome)

    def _run_model(self) -> None:
        try:
            self.model.open(self.run)
            if not self.model.facts.orders_itself:
                self.scheduler.limit_cores(max(1, self.model.capacity().cores))
                if self.hands_back:
                    self.scheduler.leave_larger(self.model.capacity().memory_bytes)
            self._drive()
        except KeyboardInterrupt:
            self._stop(StopReason.INTERRUPTED)
        except BaseException:
            # What went wrong here is no reason to end what goes on elsewhere; another driver may have it now.
            self.has_left = self._goes_on_alone()
            if self.has_left:
                self.model.close(cancel=False)  # its news may follow from what could not be recorded
            raise
        finally:
            events = self.model.close(cancel=not self.has_left)
            self.journal.check_held()  # what a later writer has in its books must not come into these too
            self._record_all(events)
            if not self.has_left:  # what goes on may be at the next attempt already
                self._take_back_running()
                for index in self._left_behind:
                    self.ingestion.discard(index)

    def _take_back_running(self) -> None:
        """Return attempts that the model has not accounted for: a signal may have come as one ended."""
        now = self.clock()
        for index in self.scheduler.running():
            self._record(AttemptReturned(now, index, self.scheduler.attempts(index)))

    def _close_books(self, reason: EndReason, last_events: Sequence[Event]) -> None:
        try:
            with self.journal:
                self.journal.check_held()
                self._record_all(last_events)
                self._record(RunEnded(self.clock(), reason))
        except JournalError as error:
            if reason is not EndReason.BROKEN:
                raise
            # What broke the run is on its way to the user, and is the better message.
            _logger.warning("The end of the run could not be recorded: %s", error.message)

    def _drive(self) -> None:
        scheduler = self.scheduler
        while True:
            self._heed_interrupts()
            if self.has_left:
                return
            attempts = self._select()
            if attempts:
                self._start(attempts)
            elif scheduler.finished:
                return
            if events := self._wait():
                if self.model.facts.survives_driver:
                    self.journal.check_held()  # a later writer has heard the same, and has put it down
                self._record_all(events)
            elif not attempts:
                self._refuse_to_hang()
                self.has_left = self.leaves and self._goes_on_alone()
            self._heed_ingestion()
            if scheduler.stopping is not None and not self._lets_running_finish():
                return

    def _select(self) -> Sequence[Attempt]:
        capacity = self.model.capacity()
        if self.model.facts.orders_itself:
            return self.scheduler.left() if capacity.cores else ()
        return self.scheduler.select(capacity)

    def _start(self, attempts: Sequence[Attempt]) -> None:
        if not self.model.facts.orders_itself:
            now = self.clock()
            attempts = [replace(each, seed=self._seed(each)) for each in attempts]
            self._record_all([AttemptStarted(now, each.index, each.number, each.seed) for each in attempts])
        self.model.start(attempts)

    def _seed(self, attempt: Attempt) -> int:
        """Return what an attempt's random generators begin with, 32 bits."""
        if self.seed is None:
            return draw_seed()
        return zlib.crc32(attempt.quantum_id.bytes, self.seed & 0xFFFFFFFF)

    def _goes_on_alone(self) -> bool:
        """Return whether the model has something in hand that needs no driver."""
        return self.model.facts.survives_driver and not self.model.capacity().cores

    def _wait(self) -> Sequence[Event]:
        if self.model.facts.parallel:
            return self.model.wait(PULSE_S)
        with self.interrupts.raising():
            return self.model.wait(PULSE_S)

    def _heed_ingestion(self) -> None:
        # Not in every turn: nothing waits for it, and each call is a few system calls.
        now = self.monotonic()
        if now < self._ingestion_due_at:
            return
        self._ingestion_due_at = now + PULSE_S
        if now >= self._check_due_at:
            self._check_due_at = now + HEARTBEAT_S
            self.journal.check_held()
            self.journal.check_in_place()
        if self._is_ingestion_paused:
            return
        try:
            self._record_all(self.ingestion.collect())
        except IngestError as error:
            # Quanta need no registry: they go on, and their outputs wait in the segments.
            self._is_ingestion_paused = True
            _logger.warning("Quanta go on, and their outputs wait in the run directory: %s", error.message)

    def _finish_ingestion(self) -> None:
        """Take in what is left; what could not be taken in before is tried once more.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done; the hint says how to do it later.
        """
        try:
            is_done = False
            while not is_done:
                events = self.ingestion.drain(_DRAIN_S)
                self._record_all(events)
                is_done = not any(isinstance(event, WorkerStarted) for event in events)
        except IngestError as error:
            how = f"All outputs are kept; take them in with: qgexec collect {self.run.context.run_dir}"
            error.hint = f"{error.hint}\n{how}" if error.hint else how
            raise

    def _lets_running_finish(self) -> bool:
        # fail_fast and an invalid quantum stop at once, as upstream does; the others wait for what runs.
        # A model that orders the work itself would start more and more of it.
        waits = self.scheduler.stopping in (StopReason.INTERRUPTED, StopReason.TOO_MANY_FAILURES)
        over = self._is_cancelled or self.interrupts.patience_over or self.model.facts.orders_itself
        return waits and not over

    def _heed_interrupts(self) -> None:
        if self.interrupts.asked:
            self.interrupts.asked = False
            self.tell()
        if self._time_is_up():  # first: a run that is to be ended is not left to itself
            self._stop(StopReason.INTERRUPTED)
        elif self.interrupts.count:
            self.has_left = self._goes_on_alone()
            if not self.has_left:
                self._stop(StopReason.INTERRUPTED)

    def _time_is_up(self) -> bool:
        """Return whether nothing more is to be started: by the clock, or for somebody wants the run ended."""
        if self.until is not None and self.clock() >= self.until:
            return True
        now = self.monotonic()
        if now >= self._cancel_due_at or self.interrupts.count:
            self._cancel_due_at = now + _CANCEL_PERIOD_S
            self._is_cancelled = self.cancelled()
        return self._is_cancelled

    def _stop(self, reason: StopReason) -> None:
        if self.scheduler.stopping is None:
            self._record(StopRequested(self.clock(), reason))

    def _refuse_to_hang(self) -> None:
        """Nothing runs, nothing starts, and something is ready: say so instead of waiting for ever."""
        if self.model.facts.orders_itself:
            return
        if (why := self.scheduler.stuck(self.model.capacity())) is not None:
            if self.hands_back:
                self._stop(StopReason.INTERRUPTED)
                return
            raise ModelError(
                why, hint="Lower the request, or give the run more cores and memory; then run it again."
            )

    def _record_all(self, events: Sequence[Event]) -> None:
        for event in events:
            self._record(event)

    def _record(self, event: Event) -> None:
        """Check that the event is legal, put it on disk, apply it, then act on it."""
        if type(event) in _FAILURES and not self.model.facts.orders_itself:
            event = self.scheduler.judge(cast("FailureEvent", event))
        self._put_down(event)
        match event:
            case AttemptSucceeded(outcome=outcome) | AttemptSkipped(outcome=outcome):
                self._offer(outcome)
            case AttemptStarted(index=index):
                self._left_behind.discard(index)
            case AttemptReturned(index=index):
                self._left_behind.add(index)
            case AttemptFailed() | AttemptLost() | AttemptTimedOut() | AttemptOutOfMemory():
                self._heed_failure(event)
            case _:
                return

    def _put_down(self, event: Event) -> None:
        self.scheduler.check(event)
        self.journal.append(event)
        self.scheduler.apply(event)
        for observer in self.observers:
            observer(event)

    def _heed_failure(self, event: FailureEvent) -> None:
        if event.retried:
            self._left_behind.add(event.index)  # the next attempt removes it, or else the end of the run
            return
        if isinstance(event, AttemptFailed):
            self._offer(event.outcome)
        else:
            self.ingestion.discard(event.index)
        if (reason := self.scheduler.wants_stop()) is not None:
            self._stop(reason)

    def _offer(self, outcome: Outcome) -> None:
        if outcome.detail is not None:
            self.ingestion.offer(outcome.index, outcome.detail)


def _run_started(at: float, model_name: str, n_quanta: int, facts: ModelFacts) -> RunStarted:
    me = this_process()
    return RunStarted(
        at=at,
        host=me.host,
        pid=me.pid,
        pid_started_at=me.pid_started_at,
        model=model_name,
        n_quanta=n_quanta,
        birth=me.birth,
        sends_ahead=facts.sends_ahead,
    )
