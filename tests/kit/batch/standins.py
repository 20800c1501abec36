"""What tests ask of a batch system that stands in for a real one: its jobs and its troubles are theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qgexec.batch.rounds import Round
from qgexec.batch.system import JobEnd, JobState, JobStatus, Pace
from qgexec.models.batch import BatchModel

__all__ = [
    "AGAIN",
    "QUICK",
    "Entrusted",
    "RunsJob",
    "StandIn",
    "done",
    "killed",
    "machine_lost",
    "no_work",
    "open_round",
    "removed",
    "runs_on",
]

AGAIN = 75
"""Exit status of a job that says that another try of it has something to do."""

QUICK = Pace(status_s=0.0, journals_s=0.01, rest_factor=0, submit_s=0.0)
"""Of a batch system that answers at once, and may be asked as often as a test likes."""

RunsJob = Callable[[Round, int], JobStatus]
"""Does what a try of a job does, and says how it ended, or that it runs on."""


def no_work(batch_round: Round, job: int) -> JobStatus:
    """Stand for what jobs do where no test has said so."""
    raise AssertionError(f"nobody has said what job {job} of {batch_round.name} does")


def done(code: int = 0) -> JobStatus:
    """Return the end of a try that ended by itself."""
    return JobStatus(JobState.ENDED, f"exited with {code}", JobEnd.EXITED, code)


def killed() -> JobStatus:
    """Return the end of a try whose process was killed; what started it lives."""
    return JobStatus(JobState.ENDED, "signal 9", JobEnd.SIGNALLED, -9)


def machine_lost() -> JobStatus:
    """Return the end of a try whose machine went away."""
    return JobStatus(JobState.ENDED, "its machine failed", JobEnd.LOST)


def removed() -> JobStatus:
    """Return the end of a job that somebody removed while it ran, with all that belonged to it."""
    return JobStatus(JobState.ENDED, "removed", JobEnd.CANCELLED)


def runs_on() -> JobStatus:
    """Return what is said of a job that has begun and does not end."""
    return JobStatus(JobState.RUNNING)


@dataclass
class StandIn:
    """A batch system in this process: each time that it is asked about a round, one job or try runs."""

    runs: RunsJob = no_work
    """What jobs do."""
    pause: bool = False
    """It starts no further job."""
    silent: bool = False
    """It does not answer."""
    garbled: bool = False
    """What it says of jobs cannot be read, and none begins meanwhile."""
    forgets: bool = False
    """It knows nothing of a job any more as soon as that has ended."""
    loses: set[int] = field(default_factory=set)
    """Jobs that it never starts, and knows nothing of, once it has taken them."""
    refuses: str = ""
    """Words with which it refuses what it is given; where that is in parts, after it has taken the first."""
    submitted: list[str] = field(default_factory=list)
    """Names of the rounds that were handed over as a whole."""
    cancelled: list[str] = field(default_factory=list)
    """Names of the rounds that it was told to remove, once for each time."""
    n_runs: int = 1
    """How often a job whose process is killed each time begins in one round."""

    def left(self, name: str) -> set[int]:
        """Return the jobs of a round that have not ended; a job that can never begin has."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Entrusted:
    """A stand-in, and the execution model that leaves its quanta to it."""

    system: StandIn
    model: type[BatchModel]


@functools.cache
def open_round(folder: Path) -> Round:
    """Return the round in a folder; it is read once, for it does not change."""
    return Round.open(folder)
