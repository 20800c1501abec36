"""`qgexec.models.worker`: attempts in, outcomes out, over a real socket and without a process."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import numpy as np
import pytest

from qgexec.errors import ModelError
from qgexec.events import AttemptFailed, AttemptLost, AttemptReturned, AttemptSkipped, AttemptSucceeded
from qgexec.models.worker import (
    ENDED,
    ENDED_LAST,
    OutcomeEvent,
    Said,
    WorkRules,
    as_outcome_event,
    decode_attempt,
    decode_event,
    encode_attempt,
    encode_event,
    with_peak,
    work,
)
from qgexec.processes.forked import Channel
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus, Resources, SegmentRef
from tests.kit.runs.benches import HOG_BYTES, Opener, attempts


def channels() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


def through(message: tuple[object, ...]) -> tuple[object, ...]:
    """Send a message through a channel."""
    ours, theirs = channels()
    ours.send(message)
    received = theirs.receive()
    ours.close()
    theirs.close()
    assert received is not None
    return received


@pytest.mark.parametrize("timeout_s", [None, 2.5])
@pytest.mark.parametrize("limit_bytes", [None, 10**12])
def test_attempt_comes_back(timeout_s: float | None, limit_bytes: int | None) -> None:
    """An attempt is the same on the other side."""
    attempt = Attempt(7, 2, uuid.uuid4(), "isr", Resources(3, 10**12), timeout_s, limit_bytes)
    assert decode_attempt(through(encode_attempt(attempt))) == attempt


FULL = Outcome(
    5,
    1,
    OutcomeStatus.FAILED,
    1.5,
    2.5,
    0.75,
    12345678901,
    "host",
    77,
    9,
    ExceptionSummary("a.B", "message", "file.py:3 f", 20),
    SegmentRef("0001-worker-0001.jsonl", 10, 20),
)


@pytest.mark.parametrize(
    "event",
    [
        AttemptFailed(3.5, FULL),
        AttemptSucceeded(3.5, Outcome(1, 1, OutcomeStatus.SUCCEEDED, 1.0, 2.0)),
        AttemptSkipped(3.5, Outcome(1, 2, OutcomeStatus.SKIPPED, 1.0, 2.0)),
        AttemptLost(3.5, 1, 2, "its input is not to be seen here"),
    ],
)
def test_event_comes_back(event: OutcomeEvent) -> None:
    """An event is the same on the other side, with how long it took and what the quantum has left."""
    sent = encode_event(event, 0.125, left="a thread 'poller'", kept=[17])
    assert decode_event(through(sent)) == Said(event, 0.125, "a thread 'poller'", frozenset({17}))


def test_peak_that_was_seen() -> None:
    """What the watch saw counts where it is more than the worker's own figure; what was lost has neither."""
    with_more = with_peak(AttemptFailed(3.5, FULL), 10**12)
    assert isinstance(with_more, AttemptFailed)
    assert with_more.outcome.peak_rss_bytes == 10**12
    lost = AttemptLost(3.5, 1, 2, "its input is not to be seen here")
    for event in (AttemptFailed(3.5, FULL), lost):
        assert with_peak(event, 1) == event
    assert with_peak(lost, 10**12) == lost


def test_numbers_of_numpy() -> None:
    """Numbers of numpy in an outcome arrive as numbers."""
    outcome = Outcome(
        1, 1, OutcomeStatus.SUCCEEDED, np.float64(1.5), 2.0, np.float64(0.5), peak_rss_bytes=int(np.int64(5))
    )
    event = decode_event(through(encode_event(AttemptSucceeded(np.float64(2.0), outcome), 0.0))).event
    assert event == AttemptSucceeded(2.0, outcome)
    assert isinstance(event, AttemptSucceeded)
    assert type(event.outcome.started_at) is float


def test_long_exception() -> None:
    """However long an exception's text, the message is whole."""
    summary = ExceptionSummary("x" * 9000, "ü" * 9000, "y" * 9000)
    outcome = Outcome(1, 1, OutcomeStatus.FAILED, 1.0, 2.0, exception=summary)
    event = decode_event(through(encode_event(AttemptFailed(2.0, outcome), 0.0))).event
    assert isinstance(event, AttemptFailed)
    assert event.outcome.exception is not None
    assert event.outcome.exception.message == "ü" * 2000


def test_work(tmp_path: Path) -> None:
    """A worker says that it is ready, answers each attempt, and closes its bench when there are no more."""
    ours, theirs = channels()
    for attempt in attempts("isr", "fail"):
        ours.send(encode_attempt(attempt))
    ours.finish()
    work(theirs, Opener(tmp_path), "worker-0001")
    messages = [ours.receive() for _ in range(3)]
    assert [message[0] for message in messages if message] == ["ready", ENDED, ENDED]
    assert [type(decode_event(message).event) for message in messages[1:] if message] == [
        AttemptSucceeded,
        AttemptFailed,
    ]
    assert (tmp_path / "worker-0001.closed").exists()
    ours.close()
    theirs.close()


def test_growth(tmp_path: Path) -> None:
    """A worker that has grown past its bound says so with an outcome, takes no more, and closes its bench."""
    ours, theirs = channels()
    for attempt in attempts("isr", "leak", "isr"):
        ours.send(encode_attempt(attempt))
    work(theirs, Opener(tmp_path), "worker-0001", WorkRules(growth_bytes=HOG_BYTES // 2))
    messages = [ours.receive() for _ in range(3)]
    assert [message[0] for message in messages if message] == ["ready", ENDED, ENDED_LAST]
    assert theirs.receive() == encode_attempt(attempts("isr", "leak", "isr")[2])
    assert (tmp_path / "worker-0001.closed").exists()
    ours.close()
    theirs.close()


def test_bench_is_closed_when_it_raises(tmp_path: Path) -> None:
    """An exception out of a bench ends the worker, after the bench is closed."""
    ours, theirs = channels()
    ours.send(encode_attempt(attempts("raise")[0]))
    with pytest.raises(RuntimeError, match="out of the bench"):
        work(theirs, Opener(tmp_path), "worker-0001")
    assert (tmp_path / "worker-0001.closed").exists()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "said",
    [
        None,
        "done",
        AttemptReturned(1.0, 0, 1),
        AttemptSucceeded(1.0, Outcome(9, 1, OutcomeStatus.SUCCEEDED, 1.0, 2.0)),
        AttemptSucceeded(1.0, Outcome(0, 2, OutcomeStatus.SUCCEEDED, 1.0, 2.0)),
    ],
)
def test_what_is_no_outcome(said: object) -> None:
    """What a bench may not say of an attempt is an error that names the quantum."""
    with pytest.raises(ModelError, match=r"quantum 0 \(isr\)"):
        as_outcome_event(said, attempts("isr")[0])
