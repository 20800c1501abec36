"""Which prerequisites of a job's quanta succeeded elsewhere, and where it is said what they wrote.

Other jobs ran them, or earlier tries of the same job, on whatever machine. Nobody promises when a file that
one machine wrote is seen on another: what must be there is waited for. Knows nothing of datasets.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from qgexec.batch.rounds import Round
from qgexec.books.journal import read_events
from qgexec.events import AttemptSkipped, AttemptSucceeded, Event, RunEnded
from qgexec.quantum import SegmentRef

__all__ = ["Successes", "earlier_successes", "job_successes", "parents_successes"]

Successes = dict[int, SegmentRef | None]
"""Quanta that have succeeded, by index, and where the details of their last attempts are."""

_LOOK_PERIOD_S = 0.5
"""Time between two looks at the journal of a parent, seconds."""


def parents_successes(batch_round: Round, job: int, awaited: Collection[int], patience_s: float) -> Successes:
    """Return those of these quanta that have succeeded, as the journals of a job's parents say.

    Parameters
    ----------
    batch_round, job
        The job.
    awaited
        Indices of quanta of its parents.
    patience_s
        The parents have ended, but perhaps their last words are not seen here yet: how long to wait for
        those of each, seconds.
    """
    found: Successes = {}
    for parent in batch_round.jobs.parents(job):
        wanted = set(awaited).intersection(batch_round.jobs.quanta(parent))
        deadline, pause_s = time.monotonic() + patience_s, _LOOK_PERIOD_S / 64
        while wanted:
            succeeded, is_over = _read(batch_round.journal(parent))
            if wanted <= succeeded.keys() or is_over or time.monotonic() >= deadline:
                found |= _those(wanted, succeeded)
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_PERIOD_S)
    return found


def earlier_successes(batch_round: Round, wanted: Iterable[int]) -> Successes:
    """Return those of these quanta that jobs of earlier rounds executed; opens none where there is none.

    What succeeded before there was any batch system is not found: that is long ago.
    """
    found: Successes = {}
    left = set(wanted)
    for number in range(batch_round.number - 1, 0, -1):
        if not left:
            break
        folder = batch_round.folder.with_name(f"{number:04d}")
        if not (folder / "round.json").exists():
            continue
        earlier = Round.open(folder)
        for job in earlier.jobs:
            if here := left.intersection(earlier.jobs.quanta(job)):
                found |= _those(here, job_successes(earlier, job))
        left -= found.keys()
    return found


def job_successes(batch_round: Round, job: int) -> Successes:
    """Return what the journal of a job says has succeeded."""
    return _read(batch_round.journal(job))[0]


def _read(folder: Path) -> tuple[Successes, bool]:
    """Return what a job says has succeeded, and whether it has said its last word."""
    if not folder.is_dir():
        return {}, False
    succeeded: Successes = {}
    event: Event | None = None
    for event in read_events(folder, damaged=[]):  # what is damaged says nothing
        if isinstance(event, AttemptSucceeded | AttemptSkipped):
            succeeded[event.index] = event.outcome.detail
    return succeeded, isinstance(event, RunEnded)


def _those(wanted: Iterable[int], succeeded: Successes) -> Successes:
    return {index: succeeded[index] for index in wanted if index in succeeded}
