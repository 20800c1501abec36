"""What a worker process does: opens a bench, executes attempts one after another, tells of each as it ends.

It owns what attempts and events look like between driver and worker. It
does not know who decides what runs, nor what a quantum is.

One attempt is one message, and so is one outcome. An outcome is under way
before the next attempt begins, so none is ever withheld; and an attempt that
has not begun can be taken back by the driver (`qgexec.processes.forked.Process.take_back`).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import UUID

from qgexec.errors import ModelError
from qgexec.events import AttemptFailed, AttemptLost, AttemptSkipped, AttemptSucceeded, Event
from qgexec.models.guard import WorkerGuard
from qgexec.processes.forked import Channel, Message
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources, SegmentRef

__all__ = [
    "ENDED",
    "ENDED_LAST",
    "RAISED",
    "READY",
    "STACKS_SIGNAL",
    "OutcomeEvent",
    "Said",
    "WorkRules",
    "as_outcome_event",
    "decode_attempt",
    "decode_event",
    "encode_attempt",
    "encode_event",
    "with_peak",
    "work",
]

READY = "ready"
"""First word of the message of a worker whose bench is open."""

ENDED = "ended"
"""First word of the message about an attempt that came to its own end; see `encode_event`."""

ENDED_LAST = "ended last"
"""The same of a worker that takes no more: it ends, for its memory has grown too much."""

RAISED = "raised"
"""First word of a process's last message: message, hint and traceback of what ended it."""

STACKS_SIGNAL = signal.SIGUSR2
"""Asks a worker that does not heed SIGTERM for the stacks of its threads; see `WorkRules.stack_file`."""

OutcomeEvent = AttemptSucceeded | AttemptSkipped | AttemptFailed | AttemptLost
"""What a bench may say of an attempt."""

_KINDS = (AttemptSucceeded, AttemptSkipped, AttemptFailed)
_LOST = len(_KINDS)
_SAYINGS = (*_KINDS, AttemptLost)
_STATUSES = tuple(OutcomeStatus)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Bench(Protocol):
    """`qgexec.models.base.Bench`, which lies on a floor above this one."""

    def execute(self, attempt: Attempt) -> Event: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkRules:
    """What a worker does about itself."""

    stack_file: str = ""
    """Where the stacks of all threads go when it crashes or is ended by SIGTERM; empty for nowhere."""

    growth_bytes: int | None = None
    """It ends when it holds so much more memory after a quantum than it did before the first."""


def work(
    channel: Channel,
    open_bench: Callable[[str], _Bench],
    name: str,
    rules: WorkRules = WorkRules(),
) -> None:
    """Execute what arrives until the driver sends no more.

    Parameters
    ----------
    channel
        To the driver.
    open_bench
        Opens the bench.
    name
        Names the segment file that this process alone writes.
    rules
        What it does about itself.

    Raises
    ------
    qgexec.errors.ModelError
        The bench said something that is no outcome, or raised: its contract forbids both.
    """
    bench = open_bench(name)
    stacks = _Stacks(rules.stack_file)
    stacks.keep()
    guard = WorkerGuard(stacks.keep)
    try:
        _work_at(bench, channel, rules.growth_bytes, guard)
    finally:
        guard.close()
        bench.close()


def _work_at(bench: _Bench, channel: Channel, growth_bytes: int | None, guard: WorkerGuard) -> None:
    with Path("/proc/self/statm").open("rb", buffering=0) as statm:
        bound = None if growth_bytes is None else _resident_bytes(statm) + growth_bytes
        channel.send((READY,))
        while (message := channel.receive()) is not None:
            attempt = decode_attempt(message)
            began = time.perf_counter()
            said, left = guard.run(attempt, bench.execute)
            event = as_outcome_event(said, attempt)
            took_s = time.perf_counter() - began
            is_last = bool(left) or (bound is not None and _resident_bytes(statm) > bound)
            channel.send(encode_event(event, took_s, is_last=is_last, left=left, kept=guard.kept))
            if is_last:
                guard.end_processes()
                return


def _resident_bytes(statm: IO[bytes]) -> int:
    """Return the resident set of this process; about 2 us, as the file stays open."""
    return int(os.pread(statm.fileno(), 100, 0).split()[1]) * _PAGE_BYTES


class _Stacks:
    """Has the stacks of all threads written to a file when this process crashes or is ended by SIGTERM.

    Parameters
    ----------
    path
        The file; empty for nowhere.
    """

    def __init__(self, path: str) -> None:
        self._descriptor: int | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        with suppress(OSError):  # a disk that is full stops what needs it, and nothing does need this
            self._descriptor = os.open(path, flags, 0o666) if path else None
        # A child that a quantum forks is sent the same signals, and would write between the lines.
        os.register_at_fork(after_in_child=self._leave_alone)

    def keep(self) -> None:
        """Begin, or begin anew where a quantum has put other handlers in the place of these."""
        if self._descriptor is None:
            return
        self._leave_alone()
        # Handlers in C work in the middle of a long call, too. Then the signal does what it always does.
        for number in (signal.SIGTERM, STACKS_SIGNAL):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(self._descriptor)
        faulthandler.register(signal.SIGTERM, self._descriptor, chain=True)
        faulthandler.register(STACKS_SIGNAL, self._descriptor)

    def _leave_alone(self) -> None:
        if self._descriptor is not None:
            for number in (signal.SIGTERM, STACKS_SIGNAL):
                faulthandler.unregister(number)
            faulthandler.disable()


def as_outcome_event(event: object, attempt: Attempt) -> OutcomeEvent:
    """Return what a bench said of an attempt.

    Raises
    ------
    qgexec.errors.ModelError
        It is no outcome of this attempt.
    """
    if not isinstance(event, _SAYINGS):
        raise ModelError(
            f"quantum {attempt.index} ({attempt.task_label}): the bench returned {event!r} "
            "instead of AttemptSucceeded, AttemptSkipped, AttemptFailed or AttemptLost"
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
        attempt.memory_limit_bytes,
        attempt.seed,
        attempt.isolated,
        attempt.keeps_processes,
    )


def decode_attempt(message: Message) -> Attempt:
    """Return the attempt of a message."""
    index, number, quantum_id, task_label, cores, memory_bytes, *others = message
    return Attempt(index, number, UUID(bytes=quantum_id), task_label, Resources(cores, memory_bytes), *others)


def encode_event(
    event: OutcomeEvent,
    took_s: float,
    *,
    is_last: bool = False,
    left: str = "",
    kept: Collection[int] = (),
) -> Message:
    """Return an event as a message.

    Parameters
    ----------
    event
        What the bench said.
    took_s
        How long the bench was busy with it, seconds.
    is_last
        The worker takes no more.
    left
        What the quantum has left that nothing can put back, in words.
    kept
        Process IDs of what quanta have started that may stay.
    """
    kind = ENDED_LAST if is_last else ENDED
    head = (kind, took_s, left, tuple(kept))
    if isinstance(event, AttemptLost):
        return (*head, _LOST, float(event.at), event.index, event.attempt, str(event.reason)[:2000])
    outcome = event.outcome
    exception, detail = outcome.exception, outcome.detail
    # The conversions matter: marshal writes numpy's numbers as raw bytes, and refuses subclasses of str.
    return (
        *head,
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


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker says of an attempt that came to its own end."""

    event: OutcomeEvent
    """What the bench said."""
    took_s: float
    """How long the bench was busy with it, seconds."""
    left: str
    """What the quantum has left that costs the worker, in words."""
    kept: frozenset[int]
    """Process IDs of what quanta have started that may stay."""


def decode_event(message: Message) -> Said:
    """Return what a message says.

    Raises
    ------
    ValueError, TypeError, LookupError
        It is no message that `encode_event` makes.
    """
    _, took_s, left, kept, *event = message
    return Said(_decode_event(event), float(took_s), str(left), frozenset(map(int, kept)))


def _decode_event(message: Sequence[Any]) -> OutcomeEvent:
    if message[0] == _LOST:
        _, at, index, attempt, reason = message
        return AttemptLost(at, index, attempt, reason)
    kind, at, index, attempt, status, *figures, exception, detail = message
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
    return _KINDS[kind](at, outcome)


def with_peak(event: OutcomeEvent, seen_bytes: int) -> OutcomeEvent:
    """Return an event with the peak that was seen of the whole process tree, where that is higher."""
    if isinstance(event, AttemptLost):
        return event
    own_bytes = event.outcome.peak_rss_bytes
    if own_bytes is None or own_bytes >= seen_bytes:
        return event  # what was seen now and then is no peak without the worker's own
    return replace(event, outcome=replace(event.outcome, peak_rss_bytes=seen_bytes))
