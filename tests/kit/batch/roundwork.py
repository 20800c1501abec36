"""Plans, jobs and job journals made by hand, for tests of what belongs to batch systems."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qgexec.batch.jobs import Jobs
from qgexec.batch.planning import make_jobs, make_round
from qgexec.batch.rounds import Round
from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.clustering.algorithms import make_clusters
from qgexec.clustering.rules import ClusterRules
from qgexec.config.batchsettings import BatchSettings
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    EndReason,
    Event,
    RunEnded,
    RunStarted,
)
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources
from qgexec.scheduling.plan import Plan
from qgexec.testing import make_plan

PLAN = make_plan("isr:1 isr:2 isr:3 -> coadd; coadd -> stack")


def jobs_of(plan: Plan, rules: ClusterRules | None = None, *attempts: Attempt, **settings: Any) -> Jobs:
    """Return jobs of all quanta of a plan."""
    clusters = make_clusters(plan, np.arange(len(plan)), rules or ClusterRules(chunk_size=2))
    given = {each.index: each for each in attempts}
    todo = [given.get(index, attempt(plan, index)) for index in range(len(plan))]
    return make_jobs(clusters, todo, BatchSettings(**settings))


def attempt(plan: Plan, index: int, cores: int = 1, memory: int | None = None, **kwargs: Any) -> Attempt:
    """Return an attempt at a quantum."""
    return Attempt(
        index, 1, plan.quantum_id(index), plan.label(index), Resources(cores, memory), kwargs.get("timeout_s")
    )


def round_of(path: Path, jobs: Jobs) -> Round:
    """Return a round of these jobs in a run directory of its own."""
    return make_round(RunDir.create(path), "hand", jobs, BatchSettings(), ("qgexec",), {})


BEGAN = RunStarted(1.0, "node", 2, 3.0, "job", 4)
ENDED = RunEnded(9.0, EndReason.COMPLETED)


def started(index: int, number: int = 1) -> Event:
    return AttemptStarted(1.0, index, number)


def succeeded(index: int, number: int = 1) -> Event:
    return AttemptSucceeded(2.0, Outcome(index, number, OutcomeStatus.SUCCEEDED, 1.0, 2.0))


def failed(index: int, number: int = 1, *, retried: bool = False) -> Event:
    why = ExceptionSummary("builtins.ValueError", "no stars")
    outcome = Outcome(index, number, OutcomeStatus.FAILED, 1.0, 2.0, exception=why)
    return AttemptFailed(2.0, outcome, retried)


def lost(index: int, number: int = 1, *, retried: bool = True) -> Event:
    return AttemptLost(2.0, index, number, "killed", retried=retried)


def returned(index: int, number: int = 1) -> Event:
    return AttemptReturned(2.0, index, number)


def write(batch_round: Round, job: int, events: Iterable[Event], after: int = 0) -> Path:
    """Write the journal of a try of a job; return its file."""
    folder = batch_round.journal(job)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal.create(folder, after=after) as journal:
        for event in events:
            journal.append(event)
        return journal.path
