"""Executes single quanta without a driver, and takes what came of them into the books afterwards.

A process that executes quanta on its own writes an outcome file each, aside
and renamed, so that any number of them may run at once; `collect` is the one
writer that brings them into the journal and the registry.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qgexec.books.codec import decode, encode
from qgexec.books.history import History
from qgexec.books.holder import read_when_free, this_process
from qgexec.books.journal import Journal
from qgexec.books.linefile import file_error
from qgexec.books.rundir import RunDir
from qgexec.errors import RunDirError, UsageError
from qgexec.events import (
    COLLECTING,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
)
from qgexec.ingestion.base import Ingestion
from qgexec.models.base import BenchOpener
from qgexec.quantum import Attempt
from qgexec.regularfile import read_regular
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import FINAL_STATES

__all__ = ["collect", "execute_quanta"]

_FOLDER = "outcomes"

_DRAIN_S = 3600.0


def execute_quanta(run_dir: RunDir, plan: Plan, indices: Sequence[int], bench_opener: BenchOpener) -> bool:
    """Execute quanta in this process, one after another, each with an outcome file.

    Parameters
    ----------
    run_dir
        The run's books.
    plan
        The quanta.
    indices
        Which, each after its prerequisites.
    bench_opener
        Opens the bench to execute them at.

    Returns
    -------
    succeeded
        Whether none failed; after a failure the rest is still tried.

    Raises
    ------
    UsageError
        An index is not in the plan.
    """
    for index in indices:
        if not 0 <= index < len(plan):
            raise UsageError(
                f"There is no quantum {index} in {run_dir.path}.",
                hint=f"Indices go from 0 to {len(plan) - 1}.",
            )
    folder = run_dir.path / _FOLDER
    folder.mkdir(mode=0o775, exist_ok=True)
    bench = bench_opener(f"job-{socket.gethostname()}-{os.getpid()}")
    try:
        outcomes = [_execute_one(folder, plan, index, bench.execute) for index in indices]
    finally:
        bench.close()
    return all(outcomes)


def _execute_one(folder: Path, plan: Plan, index: int, execute: Callable[[Attempt], Event]) -> bool:
    number = 1 + len(list(folder.glob(f"{index}.*.jsonl")))
    started = AttemptStarted(time.time(), index, number)
    ended = execute(Attempt(index, number, plan.quantum_id(index), plan.label(index)))
    path = folder / f"{index}.{number}.jsonl"
    aside = path.with_suffix(".partial")
    aside.write_bytes(encode(started) + encode(ended))
    aside.replace(path)
    return isinstance(ended, AttemptSucceeded | AttemptSkipped)


def collect(
    run_dir: RunDir,
    plan: Plan,
    ingestion: Ingestion,
    *,
    policy: Policy | None = None,
    harvest: Callable[[History, Journal], bool] = lambda _history, _journal: True,
    force: bool = False,
) -> int:
    """Bring outcome files into the journal, and outputs that are not there yet into the registry.

    Parameters
    ----------
    run_dir
        The run's books; its journal gets a new writer.
    plan
        The quanta.
    ingestion
        Takes outputs into the registry; closed at the end.
    policy
        What the run does about failures, where jobs may have been lost.
    harvest
        Records what jobs of a batch system did, and what became of attempts whose driver died; returns
        whether none of the jobs is left.
    force
        Believe that a driver that has not closed its books, and cannot be seen from here, is gone, if it
        gives no sign of life.

    Returns
    -------
    n_datasets
        Number of datasets newly taken in.

    Raises
    ------
    qgexec.errors.RunHeldError
        A driver has the run in hand, or may have.
    """
    history = read_when_free(
        run_dir.journal, lambda: History.read(run_dir.journal, plan, policy or Policy()), force=force
    )
    me = this_process()
    with Journal.create(run_dir.journal, after=history.epoch, read=history.positions, writer=me) as journal:

        def record(event: Event) -> None:
            history.scheduler.check(event)
            journal.append(event)
            history.apply(event)

        now = time.time()
        record(RunStarted(now, me.host, me.pid, me.pid_started_at, COLLECTING, len(plan), me.birth))
        try:
            for event in _new_events(run_dir.path / _FOLDER, history.scheduler):
                record(event)
            none_left = harvest(history, journal)
            for index, ref in history.awaiting_ingest.items():
                ingestion.offer(index, ref)
            # A job that is left may be at the next attempt already, and write what would be removed.
            for index in sorted(history.left_behind) if none_left else ():
                ingestion.discard(index)
            ingested = ingestion.drain(_DRAIN_S)
            for event in ingested:
                record(event)
        finally:
            ingestion.close()
            record(RunEnded(time.time(), _end_reason(history.scheduler)))
    return sum(event.n_datasets for event in ingested if isinstance(event, OutputsIngested))


def _end_reason(scheduler: Scheduler) -> EndReason:
    ended = all(state in FINAL_STATES for state, count in scheduler.counts().items() if count)
    return EndReason.COMPLETED if ended else EndReason.STOPPED


def _new_events(folder: Path, scheduler: Scheduler) -> Iterator[Event]:
    """Yield the events of outcome files that the journal does not have, prerequisites first."""
    found = sorted(
        (tuple(int(part) for part in path.name.split(".")[:2]), path) for path in folder.glob("*.*.jsonl")
    )
    for (index, attempt), path in found:
        if scheduler.attempts(index) < attempt:
            yield from _read_outcome(path)


def _read_outcome(path: Path) -> list[Event]:
    try:
        return [decode(line) for line in read_regular(path).splitlines(keepends=True)]
    except OSError as error:
        raise file_error("read", path, error, RunDirError) from error
    except ValueError as error:
        raise RunDirError(
            f"The outcome file {path} is damaged: {error}",
            hint="Remove it and execute its quantum again, then collect.",
        ) from error
