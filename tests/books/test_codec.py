"""Tests of `qgexec.books.codec`."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec import events as ev
from qgexec.books.codec import JOURNAL_VERSION, decode, encode
from qgexec.errors import IllegalEventError
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, SegmentRef

_FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
_WHOLE = st.integers(min_value=0, max_value=2**53)
_TEXT = st.text(max_size=20) | st.sampled_from(["line\nbreak", "\u2028", "\udcff", '"\\', "\0"])
_STATUS = {
    ev.AttemptSucceeded: OutcomeStatus.SUCCEEDED,
    ev.AttemptSkipped: OutcomeStatus.SKIPPED,
    ev.AttemptFailed: OutcomeStatus.FAILED,
}


def _outcomes(status: OutcomeStatus) -> st.SearchStrategy[Outcome]:
    return st.builds(
        Outcome,
        index=_WHOLE,
        attempt=_WHOLE,
        status=st.just(status),
        started_at=_FINITE,
        ended_at=_FINITE,
        cpu_s=_FINITE,
        peak_rss_bytes=st.none() | _WHOLE,
        host=_TEXT,
        pid=_WHOLE,
        caveats=st.integers(0, 127),
        exception=st.none()
        | st.builds(ExceptionSummary, _TEXT, _TEXT, _TEXT, st.none() | st.integers(-99, 255)),
        detail=st.none() | st.builds(SegmentRef, _TEXT, _WHOLE, _WHOLE),
    )


def _events(event_type: type[ev.Event]) -> st.SearchStrategy[ev.Event]:
    if event_type in _STATUS:
        others = {"retried": st.booleans()} if event_type is ev.AttemptFailed else {}
        return st.builds(event_type, at=_FINITE, outcome=_outcomes(_STATUS[event_type]), **others)
    by_annotation: dict[object, st.SearchStrategy[object]] = {
        "float": _FINITE,
        "int": _WHOLE,
        "int | None": st.none() | st.integers(-99, 2**31),
        "bool": st.booleans(),
        "str": _TEXT,
        "Birth | None": st.none() | st.builds(ev.Birth, _TEXT, _TEXT, _WHOLE),
        "str | None": st.none() | _TEXT,
        "tuple[int, ...]": st.lists(_WHOLE, max_size=5).map(tuple),
        "EndReason": st.sampled_from(ev.EndReason),
        "StopReason": st.sampled_from(ev.StopReason),
    }
    values = {field.name: by_annotation[field.type] for field in dataclasses.fields(event_type)}
    return st.builds(event_type, **values)


ALL_TYPES: tuple[type[ev.Event], ...] = typing.get_args(ev.Event)


@pytest.mark.parametrize("event_type", ALL_TYPES, ids=lambda t: t.__name__)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(event_type: type[ev.Event], data: st.DataObject) -> None:
    """Each type of the union, a new one too, is written as one line of ASCII JSON and read back equal."""
    event = data.draw(_events(event_type))
    line = encode(event)
    assert decode(line) == event
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")


def test_a_usual_outcome_takes_about_200_bytes() -> None:
    """What every quantum costs in the journal is as small as the design says."""
    outcome = Outcome(
        123456,
        1,
        OutcomeStatus.SUCCEEDED,
        1760000000.123456,
        1760000001.654321,
        1.234567,
        812345344,
        "node0123.example.org",
        123456,
        detail=SegmentRef("0001-worker-0003.jsonl", 123456789, 1234),
    )
    assert len(encode(ev.AttemptSucceeded(1760000001.66, outcome))) < 220


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("event_type", [ev.AttemptStarted, ev.AttemptReturned])
def test_a_number_that_is_not_finite_is_refused(event_type: type[ev.Event], value: float) -> None:
    """It would make a line that is no JSON."""
    with pytest.raises(IllegalEventError, match="cannot be written"):
        encode(typing.cast("typing.Any", event_type)(value, 1, 1))


def test_numpy_numbers_are_written_as_numbers() -> None:
    """Their text form is no JSON."""
    event = ev.AttemptStarted(np.float64(1.5), typing.cast("int", np.int64(3)), 1)
    assert decode(encode(event)) == ev.AttemptStarted(1.5, 3, 1)


def test_an_outcome_of_another_status_is_refused() -> None:
    """The line does not hold the status besides the kind of event, so they must agree."""
    outcome = Outcome(1, 1, OutcomeStatus.FAILED, 0.0, 1.0)
    with pytest.raises(IllegalEventError, match="its outcome is failed"):
        encode(ev.AttemptSucceeded(1.0, outcome))


def test_something_that_is_no_event_is_refused() -> None:
    """It names what it was given."""
    with pytest.raises(IllegalEventError, match="no event"):
        encode(typing.cast("ev.Event", "no event"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"7\n",
        b"{}\n",
        b'{"e":"start","t":1,"i":1,"a":1}',
        b'{"e":"start","t":1,"i":1,"a":1} \n',
        b'{"e":"start","t":1,"i":1,"a":1}{}\n',
        b'{"e":"start","t":1,"i":1}\n',
        b'{"e":"start","t":"1","i":1,"a":1}\n',
        b'{"e":"start","t":NaN,"i":1,"a":1}\n',
        b'{"e":"start","t":1,"i":1.5,"a":1}\n',
        b'{"e":"start","t":1,"i":null,"a":1}\n',
        b'{"e":"dance","t":1}\n',
        b'{"e":[],"t":1}\n',
        b'{"e":"end","t":1,"r":"bored"}\n',
        b'{"e":"end","t":1}\n',
        b'{"e":"in","t":1,"i":7,"n":1}\n',
        b'{"e":"again","t":1}\n',
        b'{"e":"again","t":1,"i":[0.5]}\n',
        b'{"e":"late","t":1,"i":1,"a":1,"l":4.0,"y":1}\n',
        b'{"e":"oom","t":1,"i":1,"a":1,"k":"true"}\n',
        b'{"e":"oom","t":1,"i":1,"a":1,"u":"5 GB"}\n',
        b'{"e":"fail","t":1,"i":1,"a":1,"s":1,"f":1,"c":1,"h":"h","p":1,"y":"no"}\n',
        b'{"e":"ok","t":1,"i":1,"a":1,"s":1,"f":1,"c":"1","h":"h","p":1}\n',
        b'{"e":"ok","t":1,"i":1,"a":1,"s":1,"f":1,"c":1,"h":7,"p":1}\n',
        b'{"e":"ok","t":1,"i":1,"a":1,"s":1,"f":1,"c":1,"h":"h","p":1,"d":["x"]}\n',
        b'{"e":"ok","t":1,"i":1,"a":1,"s":1,"f":1,"c":1,"h":"h","p":1,"x":["x",1,"",null]}\n',
        b'{"e":"end","t":1,"r":"compl\xff"}\n',
        b"\0\0\0\0\n",
    ],
)
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    """Whatever is wrong with a line, one type of error says so."""
    with pytest.raises(ValueError):  # noqa: PT011 - any sentence will do
        decode(line)


def test_keys_of_a_later_minor_change_are_passed_over() -> None:
    """A new optional key makes no new version."""
    values = {**json.loads(encode(ev.AttemptStarted(1.0, 2, 1))), "z": "new"}
    assert decode(json.dumps(values).encode() + b"\n") == ev.AttemptStarted(1.0, 2, 1)


def test_what_is_usual_is_not_written() -> None:
    """An attempt that is not retried costs not one byte more than in the first version."""
    lost = ev.AttemptLost(1.0, 2, 1, "its host is gone")
    assert encode(lost) == b'{"e":"lost","t":1.0,"i":2,"a":1,"r":"its host is gone"}\n'
    again = dataclasses.replace(lost, retried=True)
    assert encode(again) == b'{"e":"lost","t":1.0,"i":2,"a":1,"r":"its host is gone","y":true}\n'


def test_a_flag_that_is_written_as_false_is_none() -> None:
    """A later version may write it."""
    line = b'{"e":"late","t":1.0,"i":2,"a":1,"l":4.0,"y":false}\n'
    assert decode(line) == ev.AttemptTimedOut(1.0, 2, 1, 4.0)


_NEW: dict[int, set[type[ev.Event]]] = {2: {ev.AttemptOutOfMemory, ev.RunReopened}, 3: {ev.AttemptBegan}}
"""Events that a version brought."""


@pytest.mark.parametrize("version", range(1, JOURNAL_VERSION + 1))
def test_every_version_is_still_read(version: int) -> None:
    """Each fixture was written by that version, with every kind of event it had, and is never rewritten."""
    path = Path(__file__).parents[1] / "data" / f"journal-v{version}.jsonl"
    header, *lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(header)["version"] == version
    events = [decode(line) for line in lines]
    later = {kind for since, kinds in _NEW.items() if since > version for kind in kinds}
    assert {type(event) for event in events} == set(ALL_TYPES) - later
    assert [encode(event) for event in events] == lines


def test_version_1_knows_no_retries() -> None:
    """Every failure in it is final, and the first event is what it was."""
    lines = (Path(__file__).parents[1] / "data" / "journal-v1.jsonl").read_bytes().splitlines(keepends=True)
    events = [decode(line) for line in lines[1:]]
    assert events[0] == ev.RunStarted(1760000000.5, "node1", 4242, 1760000000.25, "pool", 9)
    assert {event.retried for event in events if isinstance(event, ev.FailureEvent)} == {False}


def test_version_2_knows_who_is_retried() -> None:
    """Of each kind of failure there is one that is followed by another attempt, and one that is not."""
    lines = (Path(__file__).parents[1] / "data" / "journal-v2.jsonl").read_bytes().splitlines(keepends=True)
    events = [decode(line) for line in lines[1:]]
    failures = {(type(event), event.retried) for event in events if isinstance(event, ev.FailureEvent)}
    assert failures == {(kind, retried) for kind in typing.get_args(ev.FailureEvent) for retried in (0, 1)}
    assert ev.RunReopened(1790000100.5, (0,)) in events
    assert ev.AttemptOutOfMemory(1790000005.5, 7, 1, None, 16000000000, by_kernel=True, worker=4) in events
