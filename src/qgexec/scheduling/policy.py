"""What a run does about failures, and what its quanta may use: decided from numbers, without any state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf

from qgexec.errors import UsageError
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptTimedOut,
    FailureEvent,
    StopReason,
)
from qgexec.quantum import Resources

__all__ = [
    "INVALID_QUANTUM_EXIT_CODE",
    "REPEATABLE_QUANTUM_EXIT_CODE",
    "Account",
    "Cause",
    "Policy",
    "Retries",
    "TaskRules",
    "cause_of",
]

INVALID_QUANTUM_EXIT_CODE = 21
"""``lsst.pipe.base.InvalidQuantumError.EXIT_CODE``: the graph or the configuration is wrong."""

REPEATABLE_QUANTUM_EXIT_CODE = 20
"""``lsst.pipe.base.RepeatableQuantumError.EXIT_CODE``: another attempt would fail in the same way."""

_SENT_FROM_OUTSIDE = frozenset({-1, -2, -9, -15})
"""SIGHUP, SIGINT, SIGKILL, SIGTERM: no process gets one of them by its own doing."""


class Cause(Enum):
    """Why an attempt ended badly."""

    RAISED = "raised"
    """The task, or the code around it, raised an exception."""

    EXITED = "exited"
    """Its process ended itself."""

    SIGNALLED = "signalled"
    """Its process was ended by a signal that it brought upon itself, as a segmentation fault."""

    OUT_OF_MEMORY = "out of memory"
    """It used more memory than it may, or than there is."""

    TIMED_OUT = "timed out"
    """It ran over its time limit."""

    LOST = "lost"
    """Its worker, host or batch job went away, by no fault of the quantum that is known."""


def cause_of(event: FailureEvent) -> Cause:
    """Return why this attempt ended badly."""
    match event:
        case AttemptFailed():
            return Cause.RAISED
        case AttemptOutOfMemory():
            return Cause.OUT_OF_MEMORY
        case AttemptTimedOut():
            return Cause.TIMED_OUT
        case AttemptLost(exit_code=code):
            if code is None or code in _SENT_FROM_OUTSIDE:
                return Cause.LOST
            return Cause.EXITED if code >= 0 else Cause.SIGNALLED


Account = tuple[Cause | None, str | int | None]
"""What a retry is charged to: a rule's own cause and name, or no cause for the task's common budget."""

_COMMON: Account = (None, None)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a quantum of one task is tried again, by cause; each number is a budget of its own.

    The most particular rule counts: that of an exception type, exit code or
    signal, then that of a cause, then the common budget.
    """

    common: int = 0
    """For all that the task brings upon itself and that no other rule is about."""

    lost: int = 3
    """For losses of infrastructure."""

    out_of_memory: int | None = None
    """`None`: 5 where the quantum's memory grows with each, else the common budget."""

    timed_out: int | None = None
    """`None` for the common budget, here and below."""

    raised: int | None = None
    """For exceptions that `exceptions` does not name."""

    exceptions: Mapping[str, int] = field(default_factory=dict)
    """By type, fully qualified or by its last name; subclasses are not looked for."""

    exit_codes: Mapping[int, int] = field(default_factory=dict)
    """By exit status of a process that ended itself."""

    signals: Mapping[int, int] = field(default_factory=dict)
    """By number of the signal."""

    def __post_init__(self) -> None:
        numbers = (self.common, self.lost, self.out_of_memory or 0, self.timed_out or 0, self.raised or 0)
        tables = (self.exceptions, self.exit_codes, self.signals)
        if min(*numbers, 0, *(number for table in tables for number in table.values())) < 0:
            raise UsageError("a quantum cannot be retried less than 0 times", hint="Give 0 for never.")

    def budget(self, event: FailureEvent, *, memory_grows: bool) -> tuple[Account, int]:
        """Return what another attempt after this event would be charged to, and how much is in it."""
        cause = cause_of(event)
        match event:
            case AttemptFailed(outcome=outcome):
                return self._budget_of_exception(outcome.exception.type if outcome.exception else "")
            case AttemptLost(exit_code=int(code)):
                table = self.exit_codes if code >= 0 else self.signals
                if abs(code) in table:
                    return (cause, abs(code)), table[abs(code)]
            case AttemptOutOfMemory():
                number = self.out_of_memory
                if number is None and memory_grows:
                    number = _GROWTHS
                if number is not None:
                    return (cause, None), number
            case AttemptTimedOut() if self.timed_out is not None:
                return (cause, None), self.timed_out
        if cause is Cause.LOST:
            return (cause, None), self.lost
        return _COMMON, self.common

    def _budget_of_exception(self, name: str) -> tuple[Account, int]:
        for key in (name, name.rpartition(".")[2]):
            if key in self.exceptions:
                return (Cause.RAISED, key), self.exceptions[key]
        if self.raised is not None:
            return (Cause.RAISED, None), self.raised
        return _COMMON, self.common


_GROWTHS = 5
"""Times that a quantum's memory grows unless told otherwise; ``numberOfRetries`` of BPS's own defaults."""

_KILLED = -9
"""Exit code of a process that was ended by SIGKILL."""

_MOST_BYTES = 2**60
"""More than any machine has."""


@dataclass(frozen=True, slots=True)
class TaskRules:
    """What a quantum of one task may use, and how often it is tried again."""

    request: Resources = field(default_factory=Resources)
    """Cores and memory that its first attempt asks for."""

    enforce_memory: bool = False
    """An attempt that uses more memory than it asked for is ended."""

    memory_multiplier: float = 1.0
    """After an attempt that ran out of memory, the next asks for this many times as much."""

    memory_max_bytes: int | None = None
    """It never asks for more than this."""

    timeout_s: float | None = None
    """Wall time after which an attempt is ended."""

    retries: Retries = field(default_factory=Retries)

    isolated: bool = False
    """Each quantum is executed in a process of its own."""

    keeps_processes: bool = False
    """Processes that a quantum leaves behind are wanted until the end of the run."""

    def __post_init__(self) -> None:
        memory = self.request.memory_bytes
        if self.request.cores < 1 or (memory or 0) < 0:
            raise UsageError(
                f"a quantum cannot ask for {self.request.cores} cores and {memory} bytes of memory",
                hint="Ask for at least one core, and no negative memory.",
            )
        if not 1 <= self.memory_multiplier < inf:
            raise UsageError(
                f"memory cannot grow by a factor of {self.memory_multiplier}", hint="Give 1 or more."
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(
                f"a time limit of {self.timeout_s} s ends every quantum at once", hint="Give more than 0."
            )

    @property
    def memory_grows(self) -> bool:
        """Whether an attempt after one that ran out of memory asks for more."""
        return self.memory_multiplier > 1 and self.request.memory_bytes is not None

    def request_after(self, n_out_of_memory: int) -> Resources:
        """Return what an attempt asks for after so many that ran out of memory."""
        memory = self.request.memory_bytes
        if memory is None or not (n_out_of_memory and self.memory_grows):
            return self.request
        most = _MOST_BYTES if self.memory_max_bytes is None else self.memory_max_bytes
        grown = memory
        for _ in range(n_out_of_memory):
            if grown >= most:
                break
            grown = int(min(grown * self.memory_multiplier, most))
        return replace(self.request, memory_bytes=grown)

    def ran_out_of_memory(self, event: FailureEvent, n_out_of_memory: int) -> bool:
        """Return whether an attempt ran out of memory, or probably did: then the next one asks for more.

        Nobody says why a process got SIGKILL from outside. One that used more than it had asked for, when it
        was last looked at, is the likeliest that the kernel or a batch system picks.

        Parameters
        ----------
        event
            What ended the attempt.
        n_out_of_memory
            How many attempts at the quantum did before it.
        """
        if isinstance(event, AttemptOutOfMemory):
            return True
        if not isinstance(event, AttemptLost) or event.exit_code != _KILLED or event.used_bytes is None:
            return False
        asked = self.request_after(n_out_of_memory).memory_bytes
        return asked is not None and event.used_bytes > asked

    def request_following(self, failures: Iterable[FailureEvent]) -> Resources:
        """Return what the next attempt at a quantum asks for, after all those that ended badly, in order."""
        n_out_of_memory = 0
        for event in failures:
            n_out_of_memory += self.ran_out_of_memory(event, n_out_of_memory)
        return self.request_after(n_out_of_memory)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for."""

    fail_fast: bool = False
    """Start nothing more after the first failure, and end what runs."""

    max_failures: int | None = None
    """Start nothing more after so many failures; `None` for any number."""

    rules: Mapping[str, TaskRules] = field(default_factory=dict)
    """By task label."""

    common_rules: TaskRules = field(default_factory=TaskRules)
    """For labels that `rules` does not name."""

    def rules_of(self, label: str) -> TaskRules:
        """Return the rules of a task."""
        return self.rules.get(label, self.common_rules)

    def wants_stop(self, event: FailureEvent, n_failed: int) -> StopReason | None:
        """Return why the run should stop after this event, or `None` if it should go on.

        Parameters
        ----------
        event
            What ended an attempt that is not followed by another.
        n_failed
            Quanta that have failed, this one included.
        """
        if _exit_code(event) == INVALID_QUANTUM_EXIT_CODE:
            return StopReason.INVALID_QUANTUM
        if self.fail_fast:
            return StopReason.FAILED_FAST
        if self.max_failures is not None and n_failed >= self.max_failures:
            return StopReason.TOO_MANY_FAILURES
        return None

    def account(self, event: FailureEvent, label: str) -> tuple[Account, int]:
        """Return what another attempt at such a quantum would be charged to, and how much is in it."""
        rules = self.rules_of(label)
        return rules.retries.budget(event, memory_grows=rules.memory_grows)

    def wants_retry(
        self, event: FailureEvent, label: str, charged: Mapping[Account, int], n_out_of_memory: int
    ) -> bool:
        """Return whether another attempt follows this one.

        Parameters
        ----------
        event
            What ended the attempt.
        label
            The quantum's task.
        charged
            What earlier attempts of this quantum were charged to.
        n_out_of_memory
            How many of them ran out of memory.
        """
        if _exit_code(event) in (INVALID_QUANTUM_EXIT_CODE, REPEATABLE_QUANTUM_EXIT_CODE):
            return False
        rules = self.rules_of(label)
        if isinstance(event, AttemptOutOfMemory) and not event.by_kernel and rules.memory_grows:
            # With no more than this attempt had, the next would be ended in the same way.
            had, would_have = (rules.request_after(n_out_of_memory + n) for n in (0, 1))
            if would_have == had:
                return False
        account, budget = self.account(event, label)
        return charged.get(account, 0) < budget


def _exit_code(event: FailureEvent) -> int | None:
    """Return the exit code that an exception asks for."""
    if isinstance(event, AttemptFailed) and event.outcome.exception is not None:
        return event.outcome.exception.exit_code
    return None
