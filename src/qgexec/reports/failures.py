"""What is said of attempts that ended badly: each one, the quantum it was at, and what looks alike.

It knows events, not files: where logs are is told to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never
from uuid import UUID

from qgexec.config.units import size_text
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptSucceeded,
    AttemptTimedOut,
    FailureEvent,
)
from qgexec.quantum import DataIdValue, SegmentRef, describe
from qgexec.scheduling.policy import Cause, cause_of
from qgexec.scheduling.states import State

__all__ = [
    "AttemptRecord",
    "Ending",
    "FailureGroup",
    "KeptFiles",
    "TroubledQuantum",
    "attempt_record",
    "group_failures",
    "normalise",
    "reason_of",
]

Ending = FailureEvent | AttemptSucceeded | AttemptSkipped | AttemptReturned
"""What may end an attempt."""


class KeptFiles(Protocol):
    """Knows which files were kept of an attempt."""

    def log(self, index: int, attempt: int) -> Path | None:
        """Return its log."""
        ...

    def stack(self, index: int, attempt: int) -> Path | None:
        """Return the stacks that it was at when it was ended."""
        ...


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt at a quantum that had trouble, as far as it is known."""

    number: int
    """From 1."""
    at: float
    """When its end was recorded, UNIX seconds."""
    ended: str
    """How: a value of `qgexec.scheduling.policy.Cause`, or "succeeded", "skipped" or "returned"."""
    message: str = ""
    """The exception's, or the reason in plain words; empty where it did not end badly."""
    exception_type: str | None = None
    """Fully qualified class name, where it raised."""
    where: str = ""
    """``file:line function`` of the innermost frame, where it raised."""
    exit_code: int | None = None
    """What the exception class asks for, or the worker's exit status (minus the signal's number)."""
    worker: int | None = None
    """Number of the worker that was lost or ended."""
    wall_s: float | None = None
    """Its wall time, seconds; `None`, here and below, where it did not come to an end of its own."""
    cpu_s: float | None = None
    """Its CPU time, seconds."""
    peak_rss_bytes: int | None = None
    """Its peak resident set size; of one that was ended or lost what it used when last looked at."""
    limit_bytes: int | None = None
    """What it might have used, where it was ended for its memory."""
    host: str = ""
    """Where it ran."""
    detail: SegmentRef | None = None
    """Where the traceback is."""
    log: Path | None = None
    """Its log, where one was kept in the run directory."""
    stack: Path | None = None
    """The stacks of all threads when it was ended or crashed, where they were kept."""

    @property
    def ended_badly(self) -> bool:
        """Whether it was not the end that one wishes for."""
        return self.ended in _BAD


_BAD = frozenset(cause.value for cause in Cause)


@dataclass(frozen=True, slots=True)
class TroubledQuantum:
    """A quantum of which at least one attempt ended badly."""

    index: int
    quantum_id: UUID
    task_label: str
    data_id: Mapping[str, DataIdValue]
    state: State
    """Its state now."""
    attempts: tuple[AttemptRecord, ...]
    """Its attempts from the first that ended badly, in order; not the one that runs."""
    n_blocked: int = 0
    """Quanta that became blocked by its failure; one that an earlier failure had blocked counts there."""

    @property
    def bad(self) -> tuple[AttemptRecord, ...]:
        """The attempts that ended badly."""
        return tuple(attempt for attempt in self.attempts if attempt.ended_badly)

    @property
    def last(self) -> AttemptRecord:
        """The last attempt that ended badly: what a failed quantum failed of."""
        return self.bad[-1]

    @property
    def exception_type(self) -> str | None:
        """Fully qualified class name of what was raised last, where it was."""
        return self.last.exception_type

    @property
    def message(self) -> str:
        """What was raised last, or the reason in plain words."""
        return self.last.message

    @property
    def exit_code(self) -> int | None:
        """Exit code that the exception asks for, or the worker's exit status."""
        return self.last.exit_code

    @property
    def timed_out(self) -> bool:
        """Ended for its time limit."""
        return self.last.ended == Cause.TIMED_OUT.value

    def __str__(self) -> str:
        return describe(self.task_label, self.data_id)


def attempt_record(event: Ending, files: KeptFiles) -> AttemptRecord:
    """Return what is known of an attempt.

    Parameters
    ----------
    event
        What ended it.
    files
        Which files were kept of it.
    """
    number, index = event.attempt, event.index
    log, stack = files.log(index, number), files.stack(index, number)
    match event:
        case (
            AttemptFailed(outcome=outcome)
            | AttemptSucceeded(outcome=outcome)
            | AttemptSkipped(outcome=outcome)
        ):
            error = outcome.exception
            return AttemptRecord(
                number,
                event.at,
                ended=cause_of(event).value if isinstance(event, AttemptFailed) else outcome.status.value,
                message=reason_of(event) if isinstance(event, AttemptFailed) else "",
                exception_type=(error.type or None) if error else None,
                where=error.where if error else "",
                exit_code=error.exit_code if error else None,
                wall_s=outcome.ended_at - outcome.started_at,
                cpu_s=outcome.cpu_s,
                peak_rss_bytes=outcome.peak_rss_bytes,
                host=outcome.host,
                detail=outcome.detail,
                log=log,
                stack=stack,
            )
        case AttemptReturned():
            return AttemptRecord(number, event.at, ended="returned", log=log, stack=stack)
        case AttemptLost() | AttemptTimedOut() | AttemptOutOfMemory():
            return AttemptRecord(
                number,
                event.at,
                ended=cause_of(event).value,
                message=reason_of(event),
                exit_code=None if isinstance(event, AttemptOutOfMemory) else event.exit_code,
                worker=event.worker,
                peak_rss_bytes=None if isinstance(event, AttemptTimedOut) else event.used_bytes,
                limit_bytes=event.limit_bytes if isinstance(event, AttemptOutOfMemory) else None,
                log=log,
                stack=stack,
            )
    assert_never(event)


def reason_of(event: FailureEvent) -> str:
    """Return in plain words why an attempt ended badly; of an exception its message."""
    match event:
        case AttemptFailed(outcome=outcome):
            return outcome.exception.message if outcome.exception else "it failed without an exception"
        case AttemptLost(reason=reason):
            return reason
        case AttemptTimedOut(timeout_s=timeout_s):
            return f"ran over its time limit of {timeout_s:g} s"
        case AttemptOutOfMemory(used_bytes=used, limit_bytes=limit, by_kernel=by_kernel):
            amounts = f"used {size_text(used)} of {size_text(limit)}"
            if used is None:
                amounts = (
                    f"there are {size_text(limit)}" if limit is not None else "how much it used is unknown"
                )
            return f"out of memory: {amounts}" + (", ended by the kernel" if by_kernel else "")
    assert_never(event)


_UUID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)
_HEX = re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE)
_PATH = re.compile(
    r"(?:\b[a-z][a-z0-9+.-]*://|(?<![\w/.])(?:\.{0,2}/)(?=[\w.]))[^\s'\",;:()\[\]{}]+", re.IGNORECASE
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBERS = re.compile(r"#(?:(?:,\s*|\s+)#)+")
_LONGEST = 200
"""Characters of a message that tell one cause from another: summaries are cut, and may be anywhere."""


@functools.lru_cache(maxsize=256)
def _as_value(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?<=['\"=])|(?<=: )){re.escape(value)}(?!\w)")


def normalise(message: str, data_id: Mapping[str, DataIdValue]) -> str:
    """Take out of a message what differs between quanta that have the same trouble.

    Parameters
    ----------
    message
        What was said.
    data_id
        Data ID of the quantum: its values are taken out, short ones only where they are
        written as values (``'r'``, ``band=r``, ``band: r``).

    Returns
    -------
    text
        With ``#`` for numbers and hexadecimal addresses, ``<id>`` for UUIDs, ``<path>`` for paths
        and URLs, and ``<key>`` for the values of the data ID that are texts.
    """
    text = _HEX.sub("#", _UUID.sub("<id>", message))
    if "/" in text:  # here and below: a search of its own is worth it only where there may be something
        text = _PATH.sub("<path>", text)
    texts = [(len(value), key, value) for key, value in data_id.items() if isinstance(value, str) and value]
    for length, key, value in sorted(texts, reverse=True):
        if value in text:
            text = text.replace(value, f"<{key}>") if length > 2 else _as_value(value).sub(f"<{key}>", text)
    return _NUMBERS.sub("#", _NUMBER.sub("#", text))[:_LONGEST]


_PER_TASK = frozenset({Cause.OUT_OF_MEMORY.value, Cause.TIMED_OUT.value})
"""Limits are the task's own: the same trouble in another one is another trouble."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures that look like one and the same trouble."""

    ended: str
    """A value of `qgexec.scheduling.policy.Cause`."""
    exception_type: str | None
    where: str
    exit_code: int | None
    message: str
    """What they have in common of their messages: see `normalise`."""
    quanta: tuple[TroubledQuantum, ...]
    """In the order of their indices."""

    @property
    def n_blocked(self) -> int:
        """Quanta that they block."""
        return sum(quantum.n_blocked for quantum in self.quanta)

    @property
    def example(self) -> TroubledQuantum:
        """The one to look at: it has a traceback or a log if any has."""
        return next(
            (
                quantum
                for quantum in self.quanta
                if quantum.last.detail or quantum.last.stack or quantum.last.log
            ),
            self.quanta[0],
        )


def group_failures(failures: Iterable[TroubledQuantum]) -> list[FailureGroup]:
    """Group failed quanta by what they failed of: the most frequent first, then the one met first."""
    groups: dict[tuple[object, ...], list[TroubledQuantum]] = {}
    for quantum in failures:
        last = quantum.last
        task = quantum.task_label if last.ended in _PER_TASK else None
        key = (last.ended, task, _place(last), normalise(last.message, quantum.data_id))
        groups.setdefault(key, []).append(quantum)
    return [_group(str(key[-1]), quanta) for key, quanta in sorted(groups.items(), key=lambda g: -len(g[1]))]


def _place(attempt: AttemptRecord) -> object:
    """Return what tells an ending from others of its kind, besides its message."""
    if attempt.ended == Cause.RAISED.value:
        return attempt.exception_type, attempt.where
    # How a worker died that was ended for its limit, by the first signal or the second, is no cause.
    return None if attempt.ended in _PER_TASK else attempt.exit_code


def _group(message: str, quanta: Sequence[TroubledQuantum]) -> FailureGroup:
    first = quanta[0].last
    exit_code = None if first.ended in _PER_TASK else first.exit_code
    return FailureGroup(first.ended, first.exception_type, first.where, exit_code, message, tuple(quanta))
