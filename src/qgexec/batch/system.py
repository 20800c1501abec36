"""The seam to a batch system: writes and submits a round of jobs, says what became of it, removes it.

A batch system knows jobs. It knows no quanta, no journal and no policy; what became of the quanta of a
job stands in the job's own journal (`qgexec.batch.rounds.Round.journal`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qgexec.batch.rounds import Round, Ticket
from qgexec.config.batchsettings import BatchSettings

__all__ = ["BatchSystem", "JobEnd", "JobState", "JobStatus", "Pace", "PlannedCall", "RoundStatus"]


class JobState(Enum):
    """Where a job is, as its batch system says."""

    QUEUED = "queued"
    """It waits for a machine, or for other jobs."""

    RUNNING = "running"
    """It runs."""

    HELD = "held"
    """It was stopped by the batch system or an administrator, and waits for somebody to release it."""

    ENDED = "ended"
    """It is over, and no further try follows in this round."""


class JobEnd(Enum):
    """How a job's last try ended, as its batch system says."""

    EXITED = "exited"
    """By itself, with an exit status."""

    SIGNALLED = "signalled"
    """By a signal, nobody says why."""

    OUT_OF_MEMORY = "out of memory"
    """The batch system ended it, for it used more memory than it had asked for."""

    TIMED_OUT = "timed out"
    """The batch system ended it, for it ran longer than it had asked for."""

    LOST = "lost"
    """Its machine failed, or it had to make room for others."""

    CANCELLED = "cancelled"
    """Somebody removed it."""

    NOT_STARTED = "not started"
    """It never ran: what it depended on cannot be had any more."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a batch system says of one job."""

    state: JobState
    reason: str = ""
    """In the batch system's own words: why it waits, is held, or has ended."""
    end: JobEnd | None = None
    """Set where the state is ENDED."""
    exit_code: int | None = None
    """Exit status; minus the signal's number where a signal ended it; `None` where unknown."""
    host: str = ""
    """Where it runs or ran."""


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """What a batch system says of a round, from few queries for all jobs together."""

    is_over: bool
    """No job of the round is left in the batch system, the closing job excepted."""
    jobs: Mapping[int, JobStatus] = field(default_factory=dict)
    """By job number: the jobs that it still knows; what has ended long ago may be forgotten."""
    counts: Mapping[JobState, int] = field(default_factory=dict)
    """Jobs in each state; those that have not been handed over yet are queued."""
    closing: JobStatus | None = None
    """The job that ingests and closes the books after all others; `None` where it is not known any more."""
    reason: str = ""
    """Why the round as a whole ended or waits, where the batch system says so."""
    is_stuck: bool = False
    """The batch system waits for what will never be: whoever watches has the round removed, and goes on."""


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """What would be called to submit, for ``--dry-run``."""

    command: Sequence[str]
    """Program and arguments."""
    n_jobs: int
    """Jobs that this call brings in."""
    waits_for: str = ""
    """What the batch system is told to wait for, in words."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a batch system and what its jobs write are looked at, and how long it is waited for."""

    status_s: float = 10.0
    """Least time between two questions to it, seconds: many ask the same one."""
    journals_s: float = 1.0
    """Least time between two looks at the jobs' journals, seconds."""
    rest_factor: float = 10
    """Nothing that took t seconds is done again before this many times t."""
    submit_s: float = 0.2
    """Least time between two submissions of one round, seconds: others use the same batch system."""
    answer_s: float = 60.0
    """Longest time that one question to it may take, seconds; its programs themselves try for some time."""
    removal_s: float = 300.0
    """Longest time that jobs may take to go away after they were told to, seconds."""


class BatchSystem(Protocol):
    """One kind of batch system."""

    name: str
    """Name of the execution model that uses it."""

    pace: Pace
    """How often it is asked."""

    def check(self) -> None:
        """Check that it can be used from here.

        Raises
        ------
        qgexec.errors.ModelError
            Its programs are missing, or it does not answer; says what to do.
        """
        ...

    def most_jobs(self, settings: BatchSettings) -> int | None:
        """Return how many jobs one round may have; `None` for any number.

        Raises
        ------
        qgexec.errors.ModelError
            It does not say.
        """
        ...

    def write(self, batch_round: Round) -> Sequence[PlannedCall]:
        """Write all files that submission needs into the round's folder; submits nothing.

        Raises
        ------
        qgexec.errors.UsageError
            The settings ask for something that it cannot do.
        qgexec.errors.RunDirError
            A file cannot be written.
        """
        ...

    def least_s(self, batch_round: Round, seconds: npt.NDArray[np.float64]) -> float:
        """Return how long a round takes at the least, however many of its jobs run at once, seconds.

        Where a batch system cannot be told that each job waits for its parents alone, it is longer than
        their longest path takes.

        Parameters
        ----------
        batch_round
            The round.
        seconds
            Run time of each of its jobs; shape ``(n,)``.
        """
        ...

    def submit(self, batch_round: Round) -> Ticket:
        """Hand the round over, the closing job included; returns what it can be found again by.

        Raises
        ------
        qgexec.errors.ModelError
            It refuses (queue, account, memory over any machine's, ...): its own words, and what to
            do. Nothing of the round is left in it then.
        """
        ...

    def find(self, batch_round: Round) -> Ticket | None:
        """Look for a round by its name: whoever submitted it died before writing the ticket down."""
        ...

    def look(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        """Ask what has become of a round; few calls, however many jobs.

        Raises
        ------
        qgexec.errors.ModelError
            It does not answer at the moment: ask again later.
        """
        ...

    def cancel(self, batch_round: Round, ticket: Ticket) -> None:
        """Ask it to remove all jobs of a round, those that wait to be handed over too; `look` shows when.

        The closing job is removed too: whoever cancels closes the books. Once more does no harm.

        Raises
        ------
        qgexec.errors.ModelError
            It does not answer, or refuses.
        """
        ...
