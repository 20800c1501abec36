"""Owns what is counted while a run's events are folded: outcomes by task, failures; knows no files.

The states are the scheduler's own: the fold is the live run once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, assert_never
from uuid import UUID

import numpy as np

from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.plan import Plan
from qgexec.policy import Policy
from qgexec.quantum import DataIdValue, ExceptionSummary, Outcome, SegmentRef
from qgexec.scheduler import Scheduler, State

__all__ = ["CAVEATS", "Failure", "FailureKind", "Fold", "TaskReport", "total_of"]

CAVEATS: Mapping[int, str] = {
    1: "ANY_OUTPUTS_MISSING",
    2: "ALL_OUTPUTS_MISSING",
    4: "NO_WORK",
    8: "ADJUST_QUANTUM_RAISED",
    16: "UPSTREAM_FAILURE_NO_WORK",
    32: "UNPROCESSABLE_DATA",
    64: "PARTIAL_OUTPUTS_ERROR",
}
"""Names of `lsst.pipe.base.QuantumSuccessCaveats`, here because reading a report must not load the stack."""


class FailureKind(Enum):
    """How a quantum failed."""

    RAISED = "raised"
    """The task, or the code around it, raised an exception."""

    LOST = "lost"
    """Its worker died."""

    TIMED_OUT = "timed out"
    """It ran over its time limit and was ended."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A quantum that failed, with its last attempt."""

    index: int
    quantum_id: UUID
    task_label: str
    data_id: Mapping[str, DataIdValue]
    attempt: int
    at: float
    """When it was recorded, UNIX seconds."""
    kind: FailureKind
    message: str
    """The exception's, or the reason in plain words."""
    n_blocked: int
    """Quanta that became blocked by this failure; one that an earlier failure had blocked counts there."""
    exception_type: str | None = None
    """Fully qualified class name, where it raised."""
    where: str = ""
    """``file:line function`` of the innermost frame, where it raised."""
    exit_code: int | None = None
    """What the exception class asks for, or the worker's exit status (minus the signal's number)."""
    worker: int | None = None
    """Number of the worker that was lost or ended."""
    detail: SegmentRef | None = None
    """Where the traceback is."""
    log: Path | None = None
    """Log of the attempt, where one was kept in the run directory."""

    @property
    def timed_out(self) -> bool:
        """Ended for its time limit."""
        return self.kind is FailureKind.TIMED_OUT

    @property
    def cause(self) -> tuple[object, ...]:
        """The same for failures that look like one and the same trouble: type and place, or exit status."""
        if self.kind is FailureKind.RAISED:
            return (self.kind, self.exception_type, self.where)
        return (self.kind, self.exit_code)

    def __str__(self) -> str:
        values = ", ".join(f"{key}: {value!r}" for key, value in self.data_id.items())
        return f"{self.task_label}{{{values}}}"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The quanta of one task, or of all, counted."""

    label: str
    n_quanta: int
    succeeded: int = 0
    skipped: int = 0
    failed: int = 0
    blocked: int = 0
    running: int = 0
    """Where the driver is gone: they were running then."""
    not_run: int = 0
    """Neither started nor blocked, up to now."""
    quantum_s: float = 0.0
    """Wall time of all attempts that came to their own end, added up, seconds."""
    cpu_s: float = 0.0
    """Their CPU time, added up, seconds."""
    peak_rss_bytes: int | None = None
    """Largest peak resident set size of one attempt; `None` where it is unknown."""
    ingested: int = 0
    """Quanta whose outputs are in the registry."""
    caveats: Mapping[str, int] = field(default_factory=dict)
    """Succeeded quanta by caveat, as in `CAVEATS`; one quantum may have several."""

    @property
    def done(self) -> int:
        """Quanta that nothing more will happen to."""
        return self.succeeded + self.skipped + self.failed + self.blocked


class Fold:
    """The state of a run, and what a report says besides, folded from its events.

    Parameters
    ----------
    plan
        The quanta.
    """

    def __init__(self, plan: Plan) -> None:
        n_labels = len(plan.labels)
        self._plan = plan
        self.scheduler = Scheduler(plan, policy=Policy())
        self.driver: RunStarted | None = None
        self.end: EndReason | None = None
        self.stop_reason: StopReason | None = None
        self.last_event_at: float | None = None
        self._closed_s = 0.0
        self._failures: dict[int, tuple[AttemptFailed | AttemptLost | AttemptTimedOut, int]] = {}
        self._caveats: dict[int, int] = {}
        self._ingested = bytearray(len(plan))
        self._quantum_s = [0.0] * n_labels
        self._cpu_s = [0.0] * n_labels
        self._peak_rss_bytes: list[int | None] = [None] * n_labels
        self._notes: Mapping[type[Any], Callable[[Any], None]] = {
            AttemptStarted: self._note_started,
            AttemptSucceeded: self._note_succeeded,
            AttemptSkipped: self._note_succeeded,
            OutputsIngested: self._note_ingested,
            RunStarted: self._note_run_started,
            RunEnded: self._note_run_ended,
            StopRequested: self._note_stop,
        }

    def apply(self, event: Event) -> None:
        """Take in the next event; about 5 us.

        Raises
        ------
        qgexec.errors.IllegalEventError
            It does not follow from those before.
        """
        if isinstance(event, AttemptFailed | AttemptLost | AttemptTimedOut):
            self._apply_failure(event)
        else:
            self.scheduler.apply(event)
            if (note := self._notes.get(type(event))) is not None:
                note(event)
        self.last_event_at = event.at

    @property
    def wall_s(self) -> float:
        """Time in which a driver had the run in hand, seconds."""
        return self._closed_s + self._open_s()

    def _open_s(self) -> float:
        if self.driver is None or self.end is not None or self.last_event_at is None:
            return 0.0
        return max(0.0, self.last_event_at - self.driver.at)

    def _apply_failure(self, event: AttemptFailed | AttemptLost | AttemptTimedOut) -> None:
        blocked_before = self.scheduler.counts()[State.BLOCKED]
        self.scheduler.apply(event)
        n_blocked = self.scheduler.counts()[State.BLOCKED] - blocked_before
        self._failures[event.index] = (event, n_blocked)
        if isinstance(event, AttemptFailed):
            self._add_usage(event.outcome)

    def _note_started(self, event: AttemptStarted) -> None:
        if event.attempt > 1:  # what an earlier attempt left is no longer true
            self._failures.pop(event.index, None)
            self._caveats.pop(event.index, None)
            self._ingested[event.index] = 0

    def _note_succeeded(self, event: AttemptSucceeded | AttemptSkipped) -> None:
        outcome = event.outcome
        if outcome.caveats:
            self._caveats[outcome.index] = outcome.caveats
        self._add_usage(outcome)

    def _add_usage(self, outcome: Outcome) -> None:
        code = self._plan.label_codes[outcome.index]
        self._quantum_s[code] += outcome.ended_at - outcome.started_at
        self._cpu_s[code] += outcome.cpu_s
        if outcome.peak_rss_bytes is not None:
            self._peak_rss_bytes[code] = max(outcome.peak_rss_bytes, self._peak_rss_bytes[code] or 0)

    def _note_ingested(self, event: OutputsIngested) -> None:
        for index in event.indices:
            self._ingested[index] = 1

    def _note_run_started(self, event: RunStarted) -> None:
        self._closed_s += self._open_s()
        self.driver, self.end, self.stop_reason = event, None, None

    def _note_run_ended(self, event: RunEnded) -> None:
        if self.driver is not None:
            self._closed_s += max(0.0, event.at - self.driver.at)
        self.end = event.reason

    def _note_stop(self, event: StopRequested) -> None:
        self.stop_reason = event.reason

    def tasks(self) -> tuple[TaskReport, ...]:
        """Count the quanta of each task."""
        plan = self._plan
        n_labels = len(plan.labels)
        codes = np.asarray(plan.label_codes)
        ingested = np.bincount(codes[np.frombuffer(self._ingested, dtype=np.bool_)], minlength=n_labels)
        caveats: list[Counter[str]] = [Counter() for _ in range(n_labels)]
        for index, flags in self._caveats.items():
            caveats[plan.label_codes[index]].update(_caveat_names(flags))
        return tuple(
            TaskReport(
                label=label,
                n_quanta=sum(counts.values()),
                succeeded=counts[State.SUCCEEDED],
                skipped=counts[State.SKIPPED],
                failed=counts[State.FAILED],
                blocked=counts[State.BLOCKED],
                running=counts[State.RUNNING],
                not_run=counts[State.WAITING] + counts[State.READY],
                quantum_s=self._quantum_s[code],
                cpu_s=self._cpu_s[code],
                peak_rss_bytes=self._peak_rss_bytes[code],
                ingested=int(ingested[code]),
                caveats=dict(caveats[code]),
            )
            for code, (label, counts) in enumerate(self.scheduler.counts_by_label().items())
        )

    def failures(self, log_of: Callable[[int, int], Path | None]) -> tuple[Failure, ...]:
        """Describe the quanta that have failed, in the order of their indices.

        Parameters
        ----------
        log_of
            Returns the log of an attempt (index, number), where one was kept.
        """
        return tuple(
            self._describe(event, n_blocked, log_of)
            for _, (event, n_blocked) in sorted(self._failures.items())
        )

    def _describe(
        self,
        event: AttemptFailed | AttemptLost | AttemptTimedOut,
        n_blocked: int,
        log_of: Callable[[int, int], Path | None],
    ) -> Failure:
        describe = partial(
            Failure,
            index=event.index,
            quantum_id=self._plan.quantum_id(event.index),
            task_label=self._plan.label(event.index),
            data_id=self._plan.data_id(event.index),
            attempt=event.attempt,
            at=event.at,
            n_blocked=n_blocked,
            log=log_of(event.index, event.attempt),
        )
        match event:
            case AttemptFailed(outcome=Outcome(exception=error, detail=detail)):
                error = error or ExceptionSummary("", "it failed without an exception")
                return describe(
                    kind=FailureKind.RAISED,
                    message=error.message,
                    exception_type=error.type or None,
                    where=error.where,
                    exit_code=error.exit_code,
                    detail=detail,
                )
            case AttemptLost(reason=reason, exit_code=exit_code, worker=worker):
                return describe(kind=FailureKind.LOST, message=reason, exit_code=exit_code, worker=worker)
            case AttemptTimedOut(timeout_s=timeout_s, worker=worker):
                message = f"ran over its time limit of {timeout_s:g} s"
                return describe(kind=FailureKind.TIMED_OUT, message=message, worker=worker)
        assert_never(event)


def _caveat_names(flags: int) -> Iterable[str]:
    for bit in range(flags.bit_length()):
        if flags & (flag := 1 << bit):
            yield CAVEATS.get(flag, f"FLAG_{flag}")


def total_of(tasks: Sequence[TaskReport]) -> TaskReport:
    """Return all tasks together."""
    numbers = {
        f.name: sum(getattr(task, f.name) for task in tasks)
        for f in fields(TaskReport)
        if f.name not in {"label", "peak_rss_bytes", "caveats"}
    }
    return TaskReport(
        label="total",
        peak_rss_bytes=max((t.peak_rss_bytes for t in tasks if t.peak_rss_bytes is not None), default=None),
        caveats=dict(sum((Counter(task.caveats) for task in tasks), Counter())),
        **numbers,
    )
