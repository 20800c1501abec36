"""The events of a run, in the past tense: all that the journal holds and the scheduler folds.

An event is small and frozen. ``at`` is always UNIX seconds (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from qgexec.quantum import Outcome

__all__ = [
    "COLLECTING",
    "AttemptBegan",
    "AttemptEvent",
    "AttemptFailed",
    "AttemptLost",
    "AttemptOutOfMemory",
    "AttemptReturned",
    "AttemptSkipped",
    "AttemptStarted",
    "AttemptSucceeded",
    "AttemptTimedOut",
    "Birth",
    "EndReason",
    "Event",
    "FailureEvent",
    "OutputsIngested",
    "RunEnded",
    "RunReopened",
    "RunStarted",
    "StopReason",
    "StopRequested",
    "WorkerEnded",
    "WorkerStarted",
]


class StopReason(Enum):
    """Why no further quantum is started although some could be."""

    FAILED_FAST = "failed fast"
    """A quantum failed and the run was told to stop at the first failure."""

    INVALID_QUANTUM = "invalid quantum"
    """A quantum raised upstream's InvalidQuantumError: the graph or the configuration is wrong."""

    TOO_MANY_FAILURES = "too many failures"
    """As many quanta failed as the run was told to bear."""

    INTERRUPTED = "interrupted"
    """The user asked for it: Ctrl-C, SIGTERM or SIGHUP."""


class EndReason(Enum):
    """What a driver says when it closes its books."""

    COMPLETED = "completed"
    """Nothing is left that could run."""

    STOPPED = "stopped"
    """Told to stop; quanta that could run are left."""

    BROKEN = "broken"
    """The execution model or the disk failed under it."""


COLLECTING = "collect"
"""What stands for the model where a driver only takes in what others have executed."""


class Birth(NamedTuple):
    """What the kernel says of the beginning of a process; no clock is in it that anybody could set."""

    boot_id: str
    """Of the kernel that it runs under: another one after each start of the machine."""
    namespaces: str
    """Of process IDs and of time: in another one its number is another's, and its ticks are others."""
    start_ticks: int
    """From the kernel's start to its own (proc_pid_stat(5), field 22)."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A driver took the run in hand."""

    at: float
    host: str
    pid: int
    pid_started_at: float
    """When that process started, UNIX seconds, by a clock that may have been set since."""
    model: str
    """Name of the execution model, or `COLLECTING`."""
    n_quanta: int
    birth: Birth | None = None
    """`None` in what older versions wrote, and where the kernel does not tell."""
    sends_ahead: bool = False
    """The model has more in hand than it executes, and tells of `AttemptBegan`."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A driver closed its books; nothing of its own runs any more."""

    at: float
    reason: EndReason


@dataclass(frozen=True, slots=True)
class RunReopened:
    """What had failed, and what was blocked by it, is to be run after all; nothing runs at that moment."""

    at: float
    revoked: tuple[int, ...] = ()
    """Quanta that had succeeded, but whose outputs are not there any more: they are run again, too."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """No further quantum is started; what runs goes on unless it is returned."""

    at: float
    reason: StopReason


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """An execution model started a worker process or job."""

    at: float
    worker: int
    """Number of the worker, from 1, never used again by this driver; 0 is the ingester."""
    host: str
    pid: int
    pid_started_at: float
    birth: Birth | None = None
    """Of the process; without one, and where it cannot be seen, its end is taken on trust."""


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker is gone."""

    at: float
    worker: int
    exit_code: int | None
    """Exit status; minus the signal's number where a signal ended it; `None` where unknown."""
    task_label: str | None = None
    """Label of the task whose quantum has left something in it that cost the worker."""
    left: str | None = None
    """What that was, in words that follow "leaves"."""


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An attempt was handed to the execution model."""

    at: float
    index: int
    attempt: int
    seed: int | None = None
    """What its random generators begin with, 32 bits."""


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A worker began with an attempt that it had been sent; changes no state.

    Told of the first attempt of each worker, and of those that go on for longer than a moment.
    """

    at: float
    index: int
    attempt: int
    worker: int
    """Number of the worker."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt came to its own end."""

    at: float
    outcome: Outcome

    @property
    def index(self) -> int:
        """Index of the quantum in the plan."""
        return self.outcome.index

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return self.outcome.attempt


@dataclass(frozen=True, slots=True)
class AttemptSucceeded(_Ended):
    """The quantum ran to its end."""


@dataclass(frozen=True, slots=True)
class AttemptSkipped(_Ended):
    """The quantum had been done before and was not executed."""


@dataclass(frozen=True, slots=True)
class AttemptFailed(_Ended):
    """The quantum raised."""

    retried: bool = False
    """The quantum is tried again; models leave this, here and below, to the scheduler."""


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """The attempt ended without an outcome: its worker died."""

    at: float
    index: int
    attempt: int
    reason: str
    """In plain words: ``worker 3 was killed by signal 9 (SIGKILL)``."""
    exit_code: int | None = None
    """Exit status of the worker; minus the signal's number where a signal ended it."""
    worker: int | None = None
    """The worker that had it; its log is in the run directory."""
    used_bytes: int | None = None
    """Resident memory of the worker and its children when last looked at, where it was."""
    retried: bool = False


@dataclass(frozen=True, slots=True)
class AttemptTimedOut:
    """The attempt was ended because it ran over its time limit."""

    at: float
    index: int
    attempt: int
    timeout_s: float
    worker: int | None = None
    retried: bool = False
    exit_code: int | None = None
    """Exit status of the worker; minus the signal's number where a signal ended it."""


@dataclass(frozen=True, slots=True)
class AttemptOutOfMemory:
    """The attempt was ended because it used too much memory: by us over its limit, or by the kernel."""

    at: float
    index: int
    attempt: int
    used_bytes: int | None
    """Resident memory, children included, when last looked at; `None` where nobody had looked."""
    limit_bytes: int | None
    """What it, or where the kernel ended it all of us together, might have used."""
    by_kernel: bool = False
    """The kernel ended it, for the whole machine or control group had no more."""
    worker: int | None = None
    retried: bool = False


@dataclass(frozen=True, slots=True)
class AttemptReturned:
    """The attempt was taken back, by no fault of the quantum: it never began, or the run was interrupted."""

    at: float
    index: int
    attempt: int


@dataclass(frozen=True, slots=True)
class OutputsIngested:
    """The outputs of these quanta are in the registry, as their last attempt left them."""

    at: float
    indices: tuple[int, ...]
    n_datasets: int
    """Datasets newly taken in or replaced."""


AttemptEvent = (
    AttemptStarted
    | AttemptSucceeded
    | AttemptSkipped
    | AttemptFailed
    | AttemptLost
    | AttemptTimedOut
    | AttemptOutOfMemory
    | AttemptReturned
)
"""Events that move one quantum in the state table."""

FailureEvent = AttemptFailed | AttemptLost | AttemptTimedOut | AttemptOutOfMemory
"""Events that end an attempt badly."""

Event = (
    AttemptEvent
    | AttemptBegan
    | RunStarted
    | RunReopened
    | RunEnded
    | StopRequested
    | WorkerStarted
    | WorkerEnded
    | OutputsIngested
)
"""Everything that a journal may hold."""
