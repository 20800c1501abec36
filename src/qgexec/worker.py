"""What a worker process does: opens a bench, executes attempts one after another, tells of each as it ends.

It owns what attempts and events look like between driver and worker. It
does not know who decides what runs, nor what a quantum is.

One attempt is one message, and so is one outcome. An outcome is under way
before the next attempt begins, so none is ever withheld; and an attempt that
has not begun can be taken back by the driver (`qgexec.processes.Process.take_back`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from qgexec.errors import ModelError
from qgexec.events import AttemptFailed, AttemptSkipped, AttemptSucceeded, Event
from qgexec.processes import Channel, Message
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources, SegmentRef

__all__ = [
    "ENDED",
    "RAISED",
    "READY",
    "OutcomeEvent",
    "as_outcome_event",
    "decode_attempt",
    "decode_event",
    "encode_attempt",
    "encode_event",
    "work",
]

READY = "ready"
"""First word of the message of a worker whose bench is open."""

ENDED = "ended"
"""First word of the message about an attempt that came to its own end; see `encode_event`."""

RAISED = "raised"
"""First word of a process's last message: message, hint and traceback of what ended it."""

OutcomeEvent = AttemptSucceeded | AttemptSkipped | AttemptFailed
"""What a bench may say of an attempt."""

_KINDS = (AttemptSucceeded, AttemptSkipped, AttemptFailed)
_STATUSES = tuple(OutcomeStatus)


class _Bench(Protocol):
    """`qgexec.models.base.Bench`, which lies on a floor above this one."""

    def execute(self, attempt: Attempt) -> Event: ...

    def close(self) -> None: ...


def work(channel: Channel, open_bench: Callable[[str], _Bench], name: str) -> None:
    """Execute what arrives until the driver sends no more.

    Parameters
    ----------
    channel
        To the driver.
    open_bench
        Opens the bench.
    name
        Names the segment file that this process alone writes.

    Raises
    ------
    qgexec.errors.ModelError
        The bench said something that is no outcome, or raised: its contract forbids both.
    """
    bench = open_bench(name)
    try:
        channel.send((READY,))
        while (message := channel.receive()) is not None:
            attempt = decode_attempt(message)
            began = time.perf_counter()
            event = as_outcome_event(bench.execute(attempt), attempt)
            channel.send(encode_event(event, time.perf_counter() - began))
    finally:
        bench.close()


def as_outcome_event(event: object, attempt: Attempt) -> OutcomeEvent:
    """Return what a bench said of an attempt.

    Raises
    ------
    qgexec.errors.ModelError
        It is no outcome of this attempt.
    """
    if not isinstance(event, _KINDS):
        raise ModelError(
            f"quantum {attempt.index} ({attempt.task_label}): the bench returned {event!r} "
            "instead of AttemptSucceeded, AttemptSkipped or AttemptFailed"
        )
    if event.index != attempt.index or event.attempt != attempt.number:
        raise ModelError(
            f"quantum {attempt.index} ({attempt.task_label}), attempt {attempt.number}: "
            f"the bench returned the outcome of quantum {event.index}, attempt {event.attempt}"
        )
    return event


def encode_attempt(attempt: Attempt) -> Message:
    """Return an attempt as a message."""
    return (
        attempt.index,
        attempt.number,
        attempt.quantum_id.bytes,
        attempt.task_label,
        attempt.resources.cores,
        attempt.resources.memory_bytes,
        attempt.timeout_s,
    )


def decode_attempt(message: Message) -> Attempt:
    """Return the attempt of a message."""
    index, number, quantum_id, task_label, cores, memory_bytes, timeout_s = message
    return Attempt(
        index, number, UUID(bytes=quantum_id), task_label, Resources(cores, memory_bytes), timeout_s
    )


def encode_event(event: OutcomeEvent, took_s: float) -> Message:
    """Return an event as a message.

    Parameters
    ----------
    event
        What the bench said.
    took_s
        How long the bench was busy with it, seconds.
    """
    outcome = event.outcome
    exception, detail = outcome.exception, outcome.detail
    # The conversions matter: marshal writes numpy's numbers as raw bytes, and refuses subclasses of str.
    return (
        ENDED,
        took_s,
        _KINDS.index(type(event)),
        float(event.at),
        outcome.index,
        outcome.attempt,
        _STATUSES.index(outcome.status),
        float(outcome.started_at),
        float(outcome.ended_at),
        float(outcome.cpu_s),
        None if outcome.peak_rss_bytes is None else int(outcome.peak_rss_bytes),
        str(outcome.host),
        outcome.pid,
        int(outcome.caveats),
        None if exception is None else _encode_exception(exception),
        None if detail is None else (detail.segment, detail.offset, detail.length),
    )


def _encode_exception(exception: ExceptionSummary) -> Message:
    # The socket would cut what is too long for a message, in the middle of the tuple.
    texts = (str(text)[:2000] for text in (exception.type, exception.message, exception.where))
    return (*texts, None if exception.exit_code is None else int(exception.exit_code))


def decode_event(message: Message) -> tuple[OutcomeEvent, float]:
    """Return the event of a message, and how long the bench was busy with it, seconds."""
    _, took_s, kind, at, index, attempt, status, *figures, exception, detail = message
    started_at, ended_at, cpu_s, peak_rss_bytes, host, pid, caveats = figures
    outcome = Outcome(
        index,
        attempt,
        _STATUSES[status],
        started_at,
        ended_at,
        cpu_s,
        peak_rss_bytes,
        host,
        pid,
        caveats,
        None if exception is None else ExceptionSummary(*exception),
        None if detail is None else SegmentRef(*detail),
    )
    return _KINDS[kind](at, outcome), took_s
