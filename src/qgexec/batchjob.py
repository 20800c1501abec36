"""What a batch job does: it executes the quanta of one job in a warm worker, with a journal of its own.

It is the one loop again, over a part of the plan and a pool of one process. What it has begun and what
came of it stands in its journal, from which the next try of the job goes on, and whoever watches the
run. It does not know which batch system it runs in. What calls it can tell it three things by environment
variables: ``QGEXEC_JOB_MEMORY_MB``, what memory this try was given, if it is not what the round says;
``QGEXEC_JOB_ENDS_AT``, when it will be ended, UNIX seconds, if that is sooner than the round says; and
``QGEXEC_LAST_END``, how the last try was ended (a value of `JobEnd`), if that one could not say so itself.

It imports no lsst: its worker does, once. What watches memory and time, and outlives the worker, is small.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from qgexec.batch.jobenvironment import set_environment
from qgexec.batch.jobs import OVERHEAD_BYTES
from qgexec.batch.past import read_pasts
from qgexec.batch.producers import Successes, earlier_successes, job_successes, parents_successes
from qgexec.batch.rounds import Round, round_folder
from qgexec.batch.system import JobEnd
from qgexec.books.holder import await_end_of_workers, this_process
from qgexec.books.journal import DamagedLine, Journal, Position, last_epoch, read_events, tell_of_damage
from qgexec.books.rundir import RunDir, reopen, write_aside
from qgexec.books.runsettings import RunSettings
from qgexec.config.runoptions import RunOptions
from qgexec.errors import QgexecError, UntrustedError, UsageError
from qgexec.events import (
    AttemptBegan,
    AttemptEvent,
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
    RunEnded,
    StopReason,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.executor import Loop
from qgexec.ingestion.base import NoIngestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import BenchOpener, Run
from qgexec.models.pool import Pool
from qgexec.processes.proctree import look_at
from qgexec.quantum import Attempt
from qgexec.rubin import JOB_PRELOAD
from qgexec.rubin.opener import (
    Books,
    ExecutorBenchOpener,
    ImportedExecutor,
    JobBenchOpener,
    WorkbenchOpener,
    WorkbenchOptions,
)
from qgexec.scheduling.gaps import FollowingScheduler
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import FINAL_STATES

__all__ = ["JobMargins", "run_job"]

_POLL_S = 0.25
"""Longest time until an interrupt is noticed while the worker starts, seconds."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class JobMargins:
    """What a job keeps of its limits for itself."""

    grace_s: float = 15.0
    """Time of quanta to finish when the batch system ends the job, seconds; it kills after 30 or so."""
    last_part: float = 0.1
    """Part of its time limit, at the end, in which it begins no further quantum."""
    overhead_bytes: int = OVERHEAD_BYTES
    """Memory that it may use over what its quanta asked for."""


def run_job(
    run_dir: Path,
    round_number: int,
    number: int,
    margins: JobMargins = JobMargins(),
    *,
    trust_owner: bool = False,
) -> bool:
    """Execute what is left of a batch job.

    Parameters
    ----------
    run_dir
        The run directory.
    round_number
        Number of the round, from 1.
    number
        Number of the job in it, from 0.
    margins
        What it keeps of its limits for itself.
    trust_owner
        Whoever could have written to the run directory is trusted.

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
    job = _Job.open(run_dir, round_number, number, trust_owner=trust_owner)
    batch_round, cancel_file = job.batch_round, job.books.cancel_file
    if cancel_file.exists():
        return True
    part = _Part.of(job)
    scheduler = FollowingScheduler(part.plan, policy=job.options.policy(job.plan, machine_memory_bytes=None))
    folder = batch_round.journal(number)
    folder.mkdir(parents=True, exist_ok=True)
    epoch = last_epoch(folder)
    read: dict[int, Position] = {}
    in_the_air = _replay(folder, read, part, scheduler, batch_round)
    limits = _Limits.of(batch_round, number, os.environ)
    journal = _JobJournal.create(folder, after=epoch, read=read, writer=this_process())
    journal.numbers = part.numbers
    journal.sync_every_s = 0.0  # others wait for its words, and see on a network file system what is synced
    with journal:
        _give_up_running(scheduler, journal, limits, in_the_air, f"try {epoch} of its batch job {number}")
        if limits.last_end is None:
            # Before its worker, a process of its own, is started: what that imports and loads sees it.
            label = job.plan.label(batch_round.jobs.quanta(number)[0])
            set_environment(batch_round.settings, label, os.environ)
            _execute(job, part, scheduler, journal, limits, margins)
        else:
            # Whoever said how the last try ended would say the same of this one: it must be short.
            journal.append(RunEnded(time.time(), EndReason.STOPPED))
        _note_memory(batch_round.memory_file(number), part.plan, scheduler, limits)
    return _is_done(scheduler) or cancel_file.exists()


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch job and the run that it is of."""

    books: RunDir
    settings: RunSettings
    batch_round: Round
    number: int
    plan: Plan
    """All quanta of the run."""
    options: RunOptions

    @classmethod
    def open(cls, run_dir: Path, round_number: int, number: int, *, trust_owner: bool) -> Self:
        """Read what there is to know of it."""
        try:
            books, settings = reopen(run_dir, trust_owner=trust_owner)
            batch_round = Round.open(round_folder(books, round_number))
            plan = books.load_plan()
        except UntrustedError:
            raise
        except QgexecError as error:
            where = f"This is {socket.gethostname()}: machines that execute jobs must see the run directory, "
            error.hint = f"{error.hint}\n{where}the graph and the repository, by the same paths.".lstrip()
            raise
        if not 0 <= number < len(batch_round.jobs):
            raise UsageError(
                f"there is no job {number} in {batch_round.folder}",
                hint=f"Jobs go from 0 to {len(batch_round.jobs) - 1}.",
            )
        return cls(books, settings, batch_round, number, plan, RunOptions.from_json(settings.options))

    def bench_opener(self, part: _Part) -> BenchOpener:
        """Return the opener of the bench that its worker works at."""
        run_dir, context = self.books, self.settings.context
        number, logging = self.batch_round.number, self.options.logging
        if logging is not None:
            logging = logging.for_job(f"r{number}j{self.number}")
        # As its journal's lines, which say where in a segment to look.
        books = Books(
            str(run_dir.segments), number, str(run_dir.logs), "INFO", logging=logging, syncs_segments=True
        )
        if (executor := ImportedExecutor.of_run(self.settings.options)) is not None:
            return ExecutorBenchOpener(executor, context.graph_file, books, self.options.implicit_threads)
        how = WorkbenchOptions.of_run(
            self.options,
            run_is_new=self.settings.run_is_new,
            run_began_at=self.settings.created_at,
            # A line about an earlier attempt may have been damaged.
            clears_first=number > 1 or last_epoch(run_dir.journal) > 1,
        )
        return JobBenchOpener(
            WorkbenchOpener(context.repository, context.graph_file, books, how),
            part.producers(self.plan),
            {index: ref for index, ref in part.elsewhere.items() if ref is not None},
            self.batch_round.settings.visibility_s,
            self.options.strict_versions,
        )


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a try of a job may use, and how the one before it was ended."""

    memory_bytes: int | None
    walltime_s: float | None
    last_end: JobEnd | None
    """`None` where nobody but its journal says."""

    @classmethod
    def of(cls, batch_round: Round, job: int, variables: Mapping[str, str]) -> _Limits:
        request = batch_round.jobs.request(job)
        given, ended = variables.get("QGEXEC_JOB_MEMORY_MB", ""), variables.get("QGEXEC_LAST_END")
        memory_bytes = int(given) * _MIB if given.isdecimal() else request.memory_bytes
        limits_s = [] if request.walltime_s is None else [request.walltime_s]
        if (ends_at := variables.get("QGEXEC_JOB_ENDS_AT", "")).isdecimal():
            limits_s.append(max(0.0, int(ends_at) - time.time()))
        return cls(memory_bytes, min(limits_s, default=None), None if ended is None else JobEnd(ended))


@dataclass(frozen=True, slots=True)
class _Part:
    """The quanta of a job that may run, numbered anew."""

    plan: Plan
    numbers: Sequence[int]
    """Their indices in the run's plan, ascending."""
    elsewhere: Successes
    """What they follow from that was executed by other jobs, or by earlier tries of this one."""

    @classmethod
    def of(cls, job: _Job) -> _Part:
        """Leave out what waits for quanta of other jobs that did not succeed."""
        plan, jobs = job.plan, job.batch_round.jobs
        own = jobs.quanta(job.number)
        theirs = {index for parent in jobs.parents(job.number) for index in jobs.quanta(parent)}
        prerequisites = {p for index in own for p in plan.prerequisites(index)}
        awaited = prerequisites & theirs
        found = parents_successes(job.batch_round, job.number, awaited, job.batch_round.settings.visibility_s)
        missing = awaited - found.keys()
        for index in own:  # ascending: what waits for one that is left out comes after it
            if any(prerequisite in missing for prerequisite in plan.prerequisites(index)):
                missing.add(index)
        numbers = [index for index in own if index not in missing]
        found |= job_successes(job.batch_round, job.number)
        found |= earlier_successes(job.batch_round, prerequisites.difference(own, theirs))
        return cls(plan.part(np.asarray(numbers, dtype=np.int64)), numbers, found)

    def places(self) -> dict[int, int]:
        """Return the place of each of its quanta by its index in the run's plan."""
        return {index: place for place, index in enumerate(self.numbers)}

    def producers(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """Return for its quanta, by index in the run's plan, those prerequisites that say what they wrote."""
        known = {index for index, ref in self.elsewhere.items() if ref is not None}
        found = {i: tuple(p for p in plan.prerequisites(i) if p in known) for i in self.numbers}
        return {index: producers for index, producers in found.items() if producers}


class _JobJournal(Journal):
    """A journal that is told of the quanta of a part, and writes of those of the whole."""

    numbers: Sequence[int] = ()

    def append(self, event: Event) -> None:
        """Add an event."""
        super().append(_renumbered(event, self.numbers.__getitem__))


class _JobPool(Pool):
    """A pool that is told to execute quanta of a part, and executes those of the whole."""

    def __init__(
        self, part: _Part, limits: _Limits, margins: JobMargins, cores: int, interrupts: Interrupts
    ) -> None:
        super().__init__(1, cores=cores, memory_bytes=limits.memory_bytes)
        self._part = part
        self._places = part.places()
        self._limits = limits
        self._margins = margins
        self._interrupts = interrupts

    def open(self, run: Run) -> None:
        """Start the worker and wait until it is ready: where none can be, no quantum is begun.

        A quantum that was begun and given back would look as if the job had got somewhere, and as if
        another might get further.
        """
        super().open(run)
        while not (self._interrupts.count or any(worker.ready for worker in self._workers.values())):
            self._poll(_POLL_S)
            if self._error is not None:
                raise self._error

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Send attempts to the worker; none may take longer than the job."""
        limit_s = self._limits.walltime_s
        longest_s = None if limit_s is None else (1 - self._margins.last_part) * limit_s
        super().start(
            [
                replace(
                    each,
                    index=self._part.numbers[each.index],
                    # Of one that was begun first in a job and is not done at its end the batch system would
                    # end every try; one that was begun later is handed back, and the first in the next try.
                    timeout_s=longest_s if each.timeout_s is None else each.timeout_s,
                )
                for each in attempts
            ]
        )

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what happened."""
        events = [_renumbered(event, self._places.__getitem__) for event in super().wait(timeout_s)]
        return [self._handed_back(event) for event in events] if self._interrupts.count else events

    def _handed_back(self, event: Event) -> Event:
        """Return the event; a batch system that ends a job may end its worker too, which costs no try."""
        if not isinstance(event, AttemptLost) or event.exit_code != -signal.SIGTERM:
            return event
        return self._judged(AttemptReturned(event.at, event.index, event.attempt), event.used_bytes)

    def _judged(self, event: Event, used_bytes: int | None) -> Event:
        """Return the event; or that the batch system ended the job for its memory, where it used too much."""
        limit = self._limits.memory_bytes
        if limit is None or used_bytes is None or used_bytes <= limit + self._margins.overhead_bytes:
            return event
        if not isinstance(event, AttemptReturned):
            return event
        return AttemptOutOfMemory(event.at, event.index, event.attempt, used_bytes, limit, by_kernel=True)

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """End the worker."""
        # A batch system that ends a job for its memory asks it to end first, as for any other reason.
        sight = look_at(os.getpid()) if cancel else None
        events = [_renumbered(event, self._places.__getitem__) for event in super().close(cancel=cancel)]
        used_bytes = None if sight is None else sight.used_bytes
        return [self._judged(event, used_bytes) for event in events]


def _renumbered(event: Event, number_of: Callable[[int], int]) -> Event:
    if not isinstance(event, AttemptEvent | AttemptBegan):
        return event
    number = number_of(event.index)
    if isinstance(event, AttemptSucceeded | AttemptSkipped | AttemptFailed):
        return replace(event, outcome=replace(event.outcome, index=number))
    return replace(event, index=number)


def _replay(
    folder: Path,
    read: dict[int, Position],
    part: _Part,
    scheduler: FollowingScheduler,
    batch_round: Round,
) -> list[int]:
    """Take up what is behind the quanta: before this round, and in earlier tries of the job.

    Where an earlier try was killed on this machine, its worker is waited for: it may be writing still.
    ``read`` is told how far each file was read.

    Returns
    -------
    in_the_air
        Places of the quanta whose attempt has not ended, in the order in which they were begun.
    """
    workers: dict[int, WorkerStarted] = {}
    places = part.places()
    for index, past in read_pasts(batch_round.pasts).items():
        if index in places:
            scheduler.take_up(places[index], past)
    began: dict[int, None] = {}
    damaged: list[DamagedLine] = []
    for event in read_events(folder, read, damaged):
        if isinstance(event, AttemptEvent) and event.index in places:
            place = places[event.index]
            began.pop(place, None)
            if isinstance(event, AttemptStarted):
                began[place] = None
            (scheduler.follow if damaged else scheduler.apply)(_renumbered(event, places.__getitem__))
        elif isinstance(event, WorkerStarted):
            workers[event.worker] = event
        elif isinstance(event, WorkerEnded):
            workers.pop(event.worker, None)
    tell_of_damage(damaged)
    await_end_of_workers(workers.values())
    return list(began)


def _give_up_running(
    scheduler: Scheduler, journal: Journal, limits: _Limits, in_the_air: Sequence[int], what: str
) -> None:
    """Say of what an earlier try was running as it died how it ended.

    The first was being executed; what had been given to the worker to follow it has cost nothing.
    """
    for place in in_the_air:
        attempt = scheduler.attempts(place)
        event: AttemptEvent
        if place != in_the_air[0]:
            event = AttemptReturned(time.time(), place, attempt)
        else:
            event = _end_of(place, attempt, limits, what)
        if isinstance(event, AttemptLost | AttemptOutOfMemory | AttemptTimedOut):
            event = scheduler.judge(event)
        journal.append(event)
        scheduler.apply(event)


def _end_of(place: int, attempt: int, limits: _Limits, what: str) -> AttemptEvent:
    now = time.time()
    match limits.last_end:
        case JobEnd.OUT_OF_MEMORY:
            return AttemptOutOfMemory(now, place, attempt, None, limits.memory_bytes, by_kernel=True)
        case JobEnd.TIMED_OUT:
            return AttemptTimedOut(now, place, attempt, limits.walltime_s or 0.0)
        case JobEnd.CANCELLED:
            return AttemptReturned(now, place, attempt)
        case _:
            return AttemptLost(now, place, attempt, f"{what} was ended and could not say how")


def _note_memory(path: Path, plan: Plan, scheduler: Scheduler, limits: _Limits) -> None:
    """Leave word of what the next try needs, if that is more than this one had.

    It is a line of a submit description, so that HTCondor can read it as it is.
    """
    policy = scheduler.policy
    needs = [
        policy.rules_of(plan.label(place)).request_after(scheduler.past(place).n_out_of_memory).memory_bytes
        for place in range(len(plan))
        if scheduler.state(place) not in FINAL_STATES
    ]
    most = max((need for need in needs if need is not None), default=0)
    if limits.memory_bytes is not None and most > limits.memory_bytes:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"granted_memory = {-(-most // _MIB)}\n"
        write_aside(path, lambda file: file.write(text.encode("ascii")))


def _execute(
    job: _Job, part: _Part, scheduler: Scheduler, journal: Journal, limits: _Limits, margins: JobMargins
) -> None:
    run_dir = job.books
    run = Run(
        context=job.settings.context,
        bench_opener=job.bench_opener(part),
        logs=run_dir.logs,
        preload=JOB_PRELOAD,
        implicit_threads=job.options.implicit_threads,
        worker_prefix=f"job-{job.batch_round.number:04d}-{job.number:06d}.{journal.epoch}-",
        prints_here=True,
    )
    limit_s = limits.walltime_s
    interrupts = Interrupts(grace_s=margins.grace_s)
    Loop(
        scheduler=scheduler,
        model=_JobPool(part, limits, margins, job.batch_round.jobs.request(job.number).cores, interrupts),
        run=run,
        journal=journal,
        ingestion=NoIngestion(),
        model_name="job",
        n_quanta=len(part.plan),
        interrupts=interrupts,
        cancelled=run_dir.cancel_file.exists,
        hands_back=True,
        seed=job.options.seed,
        until=None if limit_s is None else time.time() + (1 - margins.last_part) * limit_s,
    ).execute()


def _is_done(scheduler: Scheduler) -> bool:
    if scheduler.stopping not in (None, StopReason.INTERRUPTED):
        return True
    return all(state in FINAL_STATES for state, n_quanta in scheduler.counts().items() if n_quanta)
