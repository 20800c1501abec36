"""What a batch job does: it executes the quanta of one job in a warm worker, with a journal of its own.

It is the one loop again, over a part of the plan and a pool of one process. What it has begun and what
came of it stands in its journal, from which the next try of the job goes on, and whoever watches the
run. It does not know which batch system it runs in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qgexec.assembly import OpenRun, policy_of, workbench_opener
from qgexec.batch.past import read_pasts
from qgexec.batch.rounds import Round, round_folder
from qgexec.books.holder import await_end_of_workers, this_process
from qgexec.books.journal import Journal, last_epoch, read_events
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptLost,
    AttemptSkipped,
    AttemptSucceeded,
    Event,
    RunEnded,
    StopReason,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.executor import Loop
from qgexec.ingestion.base import NoIngestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import Run
from qgexec.models.pool import Pool
from qgexec.quantum import Attempt
from qgexec.resume import reopen
from qgexec.rubin import PRELOAD
from qgexec.rubin.recorder import Books
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import FINAL_STATES

__all__ = ["run_job"]

_GRACE_S = 15.0
"""Time that quanta have to finish when the batch system ends the job, seconds; it kills after 30 or so."""

_LAST_PART = 0.1
"""Part of its time limit, at the end, in which a job begins no further quantum."""

_SEEN_S = 60.0
"""Longest wait for the last words of a job that has ended on another machine, seconds."""

_PAUSE_S = 1.0


def run_job(run_dir: Path, round_number: int, job: int) -> bool:
    """Execute what is left of a batch job.

    Parameters
    ----------
    run_dir
        The run directory.
    round_number
        Number of the round, from 1.
    job
        Number of the job in it, from 0.

    Returns
    -------
    is_done
        Whether another try of the job would have nothing to do. What waits for quanta of other jobs
        that did not succeed is nothing to do.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory cannot be used, or no worker starts.
    """
    books, settings = reopen(run_dir)
    batch_round = Round.open(round_folder(books, round_number))
    if not 0 <= job < len(batch_round.jobs):
        raise UsageError(
            f"there is no job {job} in {batch_round.folder}",
            hint=f"Jobs go from 0 to {len(batch_round.jobs) - 1}.",
        )
    if books.cancel_file.exists():
        return True
    plan = books.load_plan()
    opened = OpenRun(books, settings.context, plan, settings.run_is_new, settings.created_at)
    options = RunOptions.from_json(settings.options)
    part = _Part.of(plan, batch_round, job)
    scheduler = Scheduler(part.plan, policy=policy_of(options, plan, elsewhere=True))
    folder = batch_round.journal(job)
    folder.mkdir(parents=True, exist_ok=True)
    epoch = last_epoch(folder)
    _replay(folder, part, scheduler, batch_round)
    journal = _JobJournal.create(folder, after=epoch, writer=this_process())
    journal.numbers = part.numbers
    with journal:
        _give_up_running(scheduler, journal, job, epoch)
        _execute(opened, options, batch_round, job, part, scheduler, journal)
    return _is_done(scheduler) or books.cancel_file.exists()


@dataclass(frozen=True, slots=True)
class _Part:
    """The quanta of a job that may run, numbered anew."""

    plan: Plan
    numbers: Sequence[int]
    """Their indices in the run's plan, ascending."""

    @classmethod
    def of(cls, plan: Plan, batch_round: Round, job: int) -> _Part:
        """Leave out what waits for quanta of other jobs that did not succeed."""
        jobs = batch_round.jobs
        own = jobs.quanta(job)
        theirs = {index for parent in jobs.parents(job) for index in jobs.quanta(parent)}
        awaited = {p for index in own for p in plan.prerequisites(index) if p in theirs}
        missing = awaited - _succeeded(batch_round, job, awaited)
        for index in own:  # ascending: what waits for one that is left out comes after it
            if any(prerequisite in missing for prerequisite in plan.prerequisites(index)):
                missing.add(index)
        numbers = [index for index in own if index not in missing]
        return cls(plan.part(np.asarray(numbers, dtype=np.int64)), numbers)

    def places(self) -> dict[int, int]:
        """Return the place of each of its quanta by its index in the run's plan."""
        return {index: place for place, index in enumerate(self.numbers)}


def _succeeded(batch_round: Round, job: int, awaited: set[int]) -> set[int]:
    """Return those of these quanta that have succeeded, as the journals of the job's parents say.

    The parents have ended, but perhaps their last words are not to be seen here yet.
    """
    deadline = time.monotonic() + _SEEN_S
    found: set[int] = set()
    for parent in batch_round.jobs.parents(job):
        wanted = awaited.intersection(batch_round.jobs.quanta(parent))
        while True:
            succeeded, is_over = _read_successes(batch_round.journal(parent))
            if wanted <= succeeded or is_over or time.monotonic() > deadline:
                break
            time.sleep(_PAUSE_S)
        found |= wanted & succeeded
    return found


def _read_successes(folder: Path) -> tuple[set[int], bool]:
    """Return which quanta a job says have succeeded, and whether it has said its last word."""
    if not folder.is_dir():
        return set(), False
    succeeded: set[int] = set()
    event: Event | None = None
    for event in read_events(folder):
        if isinstance(event, AttemptSucceeded | AttemptSkipped):
            succeeded.add(event.index)
    return succeeded, isinstance(event, RunEnded)


class _JobJournal(Journal):
    """A journal that is told of the quanta of a part, and writes of those of the whole."""

    numbers: Sequence[int] = ()

    def append(self, event: Event) -> None:
        """Add an event."""
        super().append(_renumbered(event, self.numbers.__getitem__))


class _JobPool(Pool):
    """A pool that is told to execute quanta of a part, and executes those of the whole."""

    def __init__(self, part: _Part, memory_bytes: int | None, cores: int) -> None:
        super().__init__(1, cores=cores, memory_bytes=memory_bytes)
        self._part = part
        self._places = part.places()

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Send attempts to the worker."""
        super().start([replace(each, index=self._part.numbers[each.index]) for each in attempts])

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what happened."""
        return [_renumbered(event, self._places.__getitem__) for event in super().wait(timeout_s)]

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """End the worker."""
        return [_renumbered(event, self._places.__getitem__) for event in super().close(cancel=cancel)]


def _renumbered(event: Event, number_of: Callable[[int], int]) -> Event:
    if not isinstance(event, AttemptEvent):
        return event
    number = number_of(event.index)
    if isinstance(event, AttemptSucceeded | AttemptSkipped | AttemptFailed):
        return replace(event, outcome=replace(event.outcome, index=number))
    return replace(event, index=number)


def _replay(folder: Path, part: _Part, scheduler: Scheduler, batch_round: Round) -> None:
    """Take up what is behind the quanta: before this round, and in earlier tries of the job.

    Where an earlier try was killed on this machine, its worker is waited for: it may be writing still.
    """
    workers: dict[int, WorkerStarted] = {}
    places = part.places()
    for index, past in read_pasts(batch_round.pasts).items():
        if index in places:
            scheduler.take_up(places[index], past)
    for event in read_events(folder):
        if isinstance(event, AttemptEvent) and event.index in places:
            scheduler.apply(_renumbered(event, places.__getitem__))
        elif isinstance(event, WorkerStarted):
            workers[event.worker] = event
        elif isinstance(event, WorkerEnded):
            workers.pop(event.worker, None)
    await_end_of_workers(workers.values())


def _give_up_running(scheduler: Scheduler, journal: Journal, job: int, n_tries: int) -> None:
    """Say of what an earlier try was running as it died that it is lost."""
    for place in scheduler.running():
        reason = f"try {n_tries} of its batch job {job} was ended and could not say how"
        event = scheduler.judge(AttemptLost(time.time(), place, scheduler.attempts(place), reason))
        journal.append(event)
        scheduler.apply(event)


def _execute(
    opened: OpenRun,
    options: RunOptions,
    batch_round: Round,
    job: int,
    part: _Part,
    scheduler: Scheduler,
    journal: Journal,
) -> None:
    request = batch_round.jobs.request(job)
    run_dir = opened.run_dir
    books = Books(str(run_dir.segments), batch_round.number, str(run_dir.logs), "INFO")
    run = Run(
        context=opened.context,
        bench_opener=workbench_opener(opened, options, books),
        logs=run_dir.logs,
        preload=PRELOAD,
        implicit_threads=options.implicit_threads,
        worker_prefix=f"job-{batch_round.number:04d}-{job:06d}.{journal.epoch}-",
    )
    limit_s = request.walltime_s
    Loop(
        scheduler=scheduler,
        model=_JobPool(part, request.memory_bytes, request.cores),
        run=run,
        journal=journal,
        ingestion=NoIngestion(),
        model_name="job",
        n_quanta=len(part.plan),
        interrupts=Interrupts(grace_s=_GRACE_S),
        cancelled=run_dir.cancel_file.exists,
        hands_back=True,
        until=None if limit_s is None else time.time() + (1 - _LAST_PART) * limit_s,
    ).execute()


def _is_done(scheduler: Scheduler) -> bool:
    if scheduler.stopping not in (None, StopReason.INTERRUPTED):
        return True
    return all(state in FINAL_STATES for state, n_quanta in scheduler.counts().items() if n_quanta)
