"""Leaves the quanta to a batch system, which orders them: the driver only watches, and may go away.

All that is left is submitted as one *round* (`qgexec.batch.rounds`). When the last of its jobs has
ended and quanta are left that may be tried again, the loop hands over another round. What becomes of
the quanta stands in the jobs' journals; the batch system is asked seldom, and for all jobs at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qgexec.batch.jobenvironment import check_environments
from qgexec.batch.journals import JobJournals
from qgexec.batch.planning import make_jobs, make_round
from qgexec.batch.rounds import Round, Ticket, last_round
from qgexec.batch.system import BatchSystem, JobEnd, JobState, JobStatus, PlannedCall, RoundStatus
from qgexec.books.rundir import RunDir
from qgexec.clustering.algorithms import make_clusters
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.events import (
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptTimedOut,
    Event,
    FailureEvent,
)
from qgexec.models.base import Ledger, ModelFacts, Run
from qgexec.models.registry import find_model
from qgexec.plaintext import printable
from qgexec.processes.interpreter import module_command
from qgexec.quantum import Attempt, Resources
from qgexec.scheduling.states import State

__all__ = ["BatchModel", "ask", "harvest", "remove_round"]

_logger = logging.getLogger(__name__)

_LEAVING_S = 60.0
"""Longest time that jobs may take to end that have nothing more to do, seconds."""


def harvest(model: BatchModel, run: Run, record: Callable[[Event], None]) -> bool:
    """Record what the jobs of the last round have done that has not been recorded.

    Parameters
    ----------
    model
        A model that was not opened yet.
    run
        What it is opened with; its ledger must follow what is recorded.
    record
        Puts an event into the run's journal.

    Returns
    -------
    is_over
        Whether no job of the round is left. Then the round is closed, and no attempt is left without an end.

    Raises
    ------
    qgexec.errors.ModelError
        The batch system does not say whether jobs are left.
    """
    model.open(run)
    timeout_s = 0.0
    while not model.capacity().cores:
        events = model.wait(timeout_s)
        for event in events:
            record(event)
        if events or model.capacity().cores:
            continue
        if model.status is None:
            raise ModelError(
                f"{model.system.name} does not say whether jobs of the run are left",
                hint="Try again when it answers.",
            )
        if not model.status.is_over:
            return False
        timeout_s = model.system.pace.journals_s  # all have ended, and some have not said their last word
    return True


def ask(batch_round: Round) -> RoundStatus | None:
    """Ask the batch system of a round what has become of it; `None` where it was never submitted.

    Raises
    ------
    qgexec.errors.ModelError
        It does not answer.
    """
    model = find_model(batch_round.model, settings=batch_round.settings)
    if not isinstance(model, BatchModel):
        raise ModelError(f"{batch_round.folder / 'round.json'} names {batch_round.model}: no batch system")
    ticket = batch_round.ticket or model.system.find(batch_round)
    return None if ticket is None else model.system.look(batch_round, ticket)


def remove_round(
    system: BatchSystem, batch_round: Round, clock: Callable[[], float] = time.monotonic
) -> None:
    """Have all jobs of a round removed, and wait until none is left, nor its closing job.

    Raises
    ------
    qgexec.errors.ModelError
        The batch system does not answer, or jobs do not go away.
    """
    ticket = batch_round.ticket or system.find(batch_round)
    if ticket is None:
        return
    pace = system.pace
    deadline, pause_s = clock() + pace.removal_s, pace.journals_s
    while True:
        system.cancel(batch_round, ticket)
        status = system.look(batch_round, ticket)
        if status.is_over and (status.closing is None or status.closing.state is JobState.ENDED):
            return
        if clock() > deadline:
            left = {state.value: n for state, n in status.counts.items() if state is not JobState.ENDED}
            raise ModelError(
                f"jobs of {batch_round.name} do not go away: {left}",
                hint=f"Try once more: qgexec cancel {batch_round.run_dir}",
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, max(pace.status_s, pace.journals_s))


class BatchModel:
    """Execute quanta as jobs of a batch system; `system` is what the models differ in.

    Parameters
    ----------
    system
        The batch system.
    settings
        What jobs are given besides what their quanta ask for.
    closing
        Number of the round whose other jobs are known to have ended, for this process is its closing job.
    clock
        Gives seconds.
    """

    facts = ModelFacts(
        parallel=True,
        enforces_timeout=True,
        enforces_memory=True,
        orders_itself=True,
        survives_driver=True,
    )

    def __init__(
        self,
        system: BatchSystem,
        settings: BatchSettings | None = None,
        *,
        closing: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.system = system
        self.settings = settings or BatchSettings()
        self._closing = closing
        self._clock = clock
        self._run: Run | None = None
        self._watch: _Watch | None = None
        self._has_moved = True
        self._is_closed = False

    @property
    def status(self) -> RoundStatus | None:
        """What the batch system said last; `None` before the first time."""
        return self._watch.status if self._watch is not None else None

    def open(self, run: Run) -> None:
        """Take up the last round where its jobs have not all ended, or not been accounted for.

        Raises
        ------
        qgexec.errors.ModelError
            The batch system cannot be used from here, or another one has jobs of the run.
        """
        self._run = run
        found = last_round(RunDir(Path(run.context.run_dir)))
        if found is None or found.is_closed:
            self.system.check()
            return
        if found.model != self.system.name:
            raise ModelError(
                f"jobs of the run in {run.context.run_dir} are still in the hands of {found.model}",
                hint=f"Go on with --model {found.model}, or end them: qgexec cancel {run.context.run_dir}",
            )
        ticket = found.ticket or self.system.find(found)
        if ticket is None:  # whoever wrote it died before it was submitted
            found.close()
            return
        if found.ticket is None:
            found.write_ticket(ticket)
        self._watch = _Watch(found, ticket, self._ledger, self.system, self._clock)
        if self._closing == found.number:
            self._watch.status = self._last_status(found, ticket)
            # What is in hand now needs this process: it may not leave while it waits for last words.
            self.facts = replace(self.facts, survives_driver=False)

    def _last_status(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        """Return how the jobs of a round have ended, all but this process, as far as is known."""
        try:
            return replace(self.system.look(batch_round, ticket), is_over=True)
        except ModelError as error:
            _logger.warning("How jobs have ended is not known: %s", printable(error.message))
            return RoundStatus(is_over=True)

    def capacity(self) -> Resources:
        """One core while nothing is in hand, else none."""
        return Resources(1 if self._watch is None else 0)

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Submit a round; takes as long as the batch system takes.

        Raises
        ------
        qgexec.errors.ModelError
            It refuses; nothing is left of the round then. Or the last round has done nothing at all.
        """
        if not self._has_moved:
            raise ModelError(
                f"none of the jobs of the last round has brought any quantum to an end; "
                f"{len(attempts)} quanta are left that could run",
                hint=f"See what the jobs printed: {self._opened.context.run_dir}/batch/",
            )
        batch_round = self.plan_round(attempts)
        try:
            self.system.write(batch_round)
            ticket = self.system.submit(batch_round)
        except BaseException:
            batch_round.close()
            raise
        batch_round.write_ticket(ticket)
        self._watch = _Watch(batch_round, ticket, self._ledger, self.system, self._clock)
        self.facts = type(self).facts

    def plan_round(self, attempts: Sequence[Attempt]) -> Round:
        """Write a round of these attempts, without submitting it."""
        ledger, run = self._ledger, self._opened
        clusters = make_clusters(
            ledger.plan,
            np.asarray([attempt.index for attempt in attempts], dtype=np.int64),
            self.settings.clustering,
            durations=self.settings.durations,
            serial_labels=run.serial_labels,
            requests={label: ledger.policy.rules_of(label).request for label in ledger.plan.labels},
            environments=self.settings.environment_codes(),
        )
        check_environments(clusters, ledger.plan, self.settings)
        most = self.system.most_jobs(self.settings)
        if most is not None and len(clusters) > most:
            _logger.info("Of %d jobs %d are submitted now, the others after them.", len(clusters), most)
            clusters = clusters.first(most)
        pasts = {attempt.index: ledger.past(attempt.index) for attempt in attempts if attempt.number > 1}
        return make_round(
            RunDir(Path(run.context.run_dir)),
            self.system.name,
            make_jobs(clusters, attempts, self.settings),
            self.settings,
            module_command("qgexec"),
            pasts,
        )

    def rehearse(self, run: Run, attempts: Sequence[Attempt]) -> tuple[Round, Sequence[PlannedCall]]:
        """Write all that `start` would submit, and return it with the calls that would submit it."""
        self._run = run
        batch_round = self.plan_round(attempts)
        return batch_round, self.system.write(batch_round)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what jobs have said since the last call; block until one has, or the time is up."""
        deadline = self._clock() + timeout_s
        while True:
            if self._watch is not None and (events := self._news(self._watch)):
                return events
            if self._watch is None or (left := deadline - self._clock()) <= 0:
                return ()
            time.sleep(min(left, self.system.pace.journals_s))

    def _news(self, watch: _Watch) -> list[Event]:
        events = watch.read()
        if events or not watch.is_over():
            return events
        is_cancelled = self._is_cancelled
        if is_cancelled or watch.has_heard_all():
            # What was written before its end is seen now, or it is lost.
            events = watch.read(now=True) or (watch.returned() if is_cancelled else watch.losses())
            if not events:
                self._close_round(watch)
        return events

    def _close_round(self, watch: _Watch) -> None:
        watch.batch_round.close()
        self._has_moved = watch.has_moved
        self._watch = None

    @property
    def _is_cancelled(self) -> bool:
        return RunDir(Path(self._opened.context.run_dir)).cancel_file.exists()

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """Remove what is in the batch system, or leave it there; return the last events.

        Raises
        ------
        qgexec.errors.ModelError
            The batch system does not remove its jobs.
        """
        watch = self._watch
        if watch is None or self._is_closed or self._run is None:
            return ()
        self._is_closed = True
        if not cancel:
            return watch.read(now=True)
        # The only job that is left of a closing job's round is itself.
        if watch.batch_round.number != self._closing and not self._ends_by_itself(watch):
            remove_round(self.system, watch.batch_round, self._clock)
        events = watch.read(now=True)
        events += watch.returned()
        self._close_round(watch)
        return events

    def _ends_by_itself(self, watch: _Watch) -> bool:
        """Wait for jobs that have nothing more to do and are about to end; removed, they would look bad."""
        if not watch.has_succeeded:
            return False
        deadline = self._clock() + _LEAVING_S
        while not watch.is_over() and self._clock() < deadline:
            time.sleep(self.system.pace.journals_s)
        return watch.is_over()

    @property
    def _opened(self) -> Run:
        if self._run is None:
            raise ModelError(f"the model {self.system.name} is not open")
        return self._run

    @property
    def _ledger(self) -> Ledger:
        ledger = self._opened.ledger
        if ledger is None:
            raise ModelError(f"the model {self.system.name} was opened without a ledger")
        return ledger


class _Watch:
    """What has become of a round: its jobs' journals, and what the batch system says."""

    def __init__(
        self,
        batch_round: Round,
        ticket: Ticket,
        ledger: Ledger,
        system: BatchSystem,
        clock: Callable[[], float],
    ) -> None:
        self.batch_round = batch_round
        self.status: RoundStatus | None = None
        self._ticket = ticket
        self._ledger = ledger
        self._system = system
        self._clock = clock
        self._journals = JobJournals(batch_round, ledger.plan, ledger.state, ledger.attempts)
        self._read_due_at = 0.0
        self._ask_due_at = 0.0
        self._is_silent = False
        self._has_lost = False
        self._over_since: float | None = None

    @property
    def has_moved(self) -> bool:
        """Whether an attempt in this round has come to an end, other than by being handed back."""
        return self._has_lost or self._journals.has_moved

    @property
    def has_succeeded(self) -> bool:
        """Whether all quanta of the round have been done."""
        jobs, state = self.batch_round.jobs, self._ledger.state
        done = (State.SUCCEEDED, State.SKIPPED)
        return all(state(index) in done for job in jobs for index in jobs.quanta(job))

    def read(self, *, now: bool = False) -> list[Event]:
        """Return what jobs have said, unless the last look was a moment ago."""
        began_at = self._clock()
        if began_at < self._read_due_at and not now:
            return []
        events = self._journals.read()
        took_s = self._clock() - began_at
        pace = self._system.pace
        self._read_due_at = began_at + max(pace.journals_s, pace.rest_factor * took_s)
        return events

    def is_over(self) -> bool:
        """Return whether no job of the round is left in the batch system, as far as is known."""
        if self.status is not None and self.status.is_over:
            return True
        began_at = self._clock()
        if began_at < self._ask_due_at:
            return False
        try:
            status = self._system.look(self.batch_round, self._ticket)
            if status.is_stuck:
                _logger.warning("%s is removed: %s", self.batch_round.name, printable(status.reason))
                self._system.cancel(self.batch_round, self._ticket)
        except ModelError as error:
            if not self._is_silent:
                _logger.warning("The jobs go on unseen: %s", printable(error.message))
            self._is_silent = True
        else:
            self._tell_of_held(status)
            self.status, self._is_silent = status, False
        took_s = self._clock() - began_at
        pace = self._system.pace
        self._ask_due_at = began_at + max(pace.status_s, pace.rest_factor * took_s)
        return self.status is not None and self.status.is_over

    def _tell_of_held(self, status: RoundStatus) -> None:
        before = self.status.jobs if self.status is not None else {}
        for job, found in status.jobs.items():
            was = before.get(job)
            if found.state is JobState.HELD and (was is None or was.state is not JobState.HELD):
                _logger.warning("Job %d (%s) is held: %s", job, self._name(job), printable(found.reason))

    def _name(self, job: int) -> str:
        return self.batch_round.jobs.name(job)

    def has_heard_all(self) -> bool:
        """Return whether what has not been seen yet of what jobs wrote before they ended never will be."""
        now = self._clock()
        if self._over_since is None:
            self._over_since = now
        waited_s = now - self._over_since
        return self._journals.are_over or waited_s >= self.batch_round.settings.visibility_s

    def returned(self) -> list[Event]:
        """Return what gives back all attempts that have not ended, for their jobs were removed; once."""
        now = time.time()
        events: list[Event] = []
        for index in sorted(self._journals.running):
            events.append(AttemptReturned(now, index, self._journals.attempts(index)))
            self._journals.forget(index)
        return events

    def losses(self) -> list[Event]:
        """Return the ends of attempts whose job has gone without a word about them; once.

        Of each job the first was being executed; what had been given to its worker to follow it cost nothing.
        """
        jobs = self.batch_round.jobs
        job_of = {index: job for job in jobs for index in jobs.quanta(job)}
        events: list[Event] = []
        gone: set[int] = set()
        for index in self._journals.running:
            job = job_of[index]
            if job in gone:
                events.append(AttemptReturned(time.time(), index, self._journals.attempts(index)))
            else:
                events.append(self._judged(self._loss(index, job)))
            gone.add(job)
            self._journals.forget(index)
            self._has_lost = True
        return events

    def _judged(self, event: FailureEvent) -> FailureEvent:
        """Return the event with whether another attempt follows."""
        index, ledger = event.index, self._ledger
        past, label = ledger.past(index), ledger.plan.label(index)
        retried = ledger.policy.wants_retry(event, label, past.charged, past.n_out_of_memory)
        return replace(event, retried=retried)

    def _loss(self, index: int, job: int) -> FailureEvent:
        known: Mapping[int, JobStatus] = self.status.jobs if self.status is not None else {}
        status = known.get(job, JobStatus(JobState.ENDED))
        now, attempt = time.time(), self._journals.attempts(index)
        request = self.batch_round.jobs.request(job)
        if status.end is JobEnd.OUT_OF_MEMORY:
            return AttemptOutOfMemory(now, index, attempt, None, request.memory_bytes, by_kernel=True)
        if status.end is JobEnd.TIMED_OUT:
            limit_s = request.walltime_s or self.batch_round.settings.walltime_s or 0.0
            return AttemptTimedOut(now, index, attempt, limit_s)
        how = status.reason or (status.end.value if status.end is not None else "nobody knows how")
        return AttemptLost(now, index, attempt, f"its batch job {job} ({self._name(job)}) ended: {how}")
