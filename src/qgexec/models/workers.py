"""What a pool knows of one worker process, and why it ends one; knows no rules by which it does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qgexec.events import AttemptBegan
from qgexec.processes.forked import Process
from qgexec.quantum import Attempt

__all__ = ["OverMemory", "OverTime", "Sentence", "Unresponsive", "Worker"]

NEVER = float("inf")
"""A moment that does not come."""


@dataclass(frozen=True, slots=True)
class OverTime:
    """The attempt ran over its time limit."""

    attempt: Attempt
    timeout_s: float


@dataclass(frozen=True, slots=True)
class OverMemory:
    """The attempt used more memory than it may."""

    attempt: Attempt
    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Unresponsive:
    """The worker has stopped answering."""

    why: str
    """In plain words, to follow the worker's name: ``did not become ready within 300 s``."""


Sentence = OverTime | OverMemory | Unresponsive
"""Why a worker is ended before its time."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process and what it holds."""

    number: int
    """From 1, never used again."""
    process: Process
    """The process."""
    label: str | None
    """Label that it is dedicated to; `None` for the common ones."""
    announced: bool = False
    """The loop has its `WorkerStarted` on record: only then may it be given quanta."""
    ready: bool = False
    """Its bench is open."""
    began_at: float = 0.0
    """When it began with what it is running, UNIX seconds."""
    told: Attempt | None = None
    """The last attempt of which the loop was told that it has begun with it."""
    took_any: bool = False
    """It has begun a quantum."""
    doomed: bool = False
    """It was told to end, or is about to by itself."""
    asked: bool = False
    """It was asked for its stacks, for it did not heed SIGTERM."""
    killed: bool = False
    """It was sent SIGKILL."""
    strays: list[int] = field(default_factory=list)
    """Pidfds of what it has started and a signal to its group does not reach."""
    talks_nonsense: bool = False
    """It has sent what it could not mean: what it says is not heard any more."""
    kept: frozenset[int] = frozenset()
    """Process IDs of what its quanta have started that may stay; not charged to any quantum."""
    left: str = ""
    """What a quantum has left in it that nothing can put back, in words."""
    left_by: str = ""
    """Label of that quantum's task."""
    sentence: Sentence | None = None
    """Why it was, where that is said of its attempt."""
    deadline: float = NEVER
    """When its time to start, to run a quantum or to end is up, by the monotonic clock."""
    alarm_at: float = NEVER
    """When the pool will look at that, by the monotonic clock."""
    held: deque[Attempt] = field(default_factory=deque)
    """What it was sent and has not ended, in order; the first is running, or about to."""
    expected: deque[float] = field(default_factory=deque)
    """How long each was expected to take when it was sent, seconds."""
    expected_s: float = 0.0
    """Sum of those."""
    watched: Attempt | None = None
    """What it was running when the watch came by."""
    watched_since: float = 0.0
    """Since when it does, by the monotonic clock."""
    stopped_since: float = NEVER
    """Since when a signal has it stopped, as far as the watch has seen, by the monotonic clock."""
    used_bytes: int | None = None
    """Memory of it and its descendants when the watch last looked, during that attempt."""
    peak_bytes: int = 0
    """Most that the watch has seen during that attempt."""

    @property
    def name(self) -> str:
        """Name of its process, its segment and its logs."""
        return self.process.name

    def tell_begin(self) -> AttemptBegan:
        """Return that it has begun with what it is running, to be told once."""
        attempt = self.told = self.held[0]
        return AttemptBegan(self.began_at, attempt.index, attempt.number, self.number)

    @property
    def free(self) -> bool:
        """It can be sent attempts."""
        return self.announced and self.ready and not self.doomed
