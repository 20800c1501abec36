"""Owns the form of an event in the journal: one line of compact JSON each; knows nothing of files.

Keys are one letter: ``e`` the kind of event, ``t`` its time, ``i`` the quantum's index, ``a`` the attempt.
A value that is `None` (or the default that most have) is left out. Numbers come back exactly as they went in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from math import isfinite
from operator import index as as_index
from typing import Any, TypeVar, cast

from qgexec import events as ev
from qgexec.errors import IllegalEventError
from qgexec.events import Event
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, SegmentRef

__all__ = ["JOURNAL_VERSION", "decode", "encode"]

JOURNAL_VERSION = 3
"""Version of the journal's lines.

1: the first.
2: out of memory ("oom"), reopened ("again"); "y" where an attempt that ended badly is followed by another.
3: a worker has begun with what it was sent ("begin").

Readers pass over keys that they do not know, so a new optional key makes no
new version; a new event does.
"""

# ASCII only: no separator that some other reader takes for the end of a line, and the lone surrogates that
# undecodable file names bring into messages survive.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=lambda value: value.value).encode
_from_json = json.JSONDecoder().raw_decode


def _number(value: Any) -> float:
    if not isfinite(value):
        raise ValueError("a number that is not finite")
    return cast("float", value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("a text is missing")
    return value


def _indices(value: Any) -> tuple[int, ...]:
    return tuple(map(as_index, value))


def _flag(value: Any) -> bool:
    if value is not None and type(value) is not bool:
        raise TypeError("neither true nor false")
    return value is True


_Value = TypeVar("_Value")


def _optional(convert: Callable[[Any], _Value]) -> Callable[[Any], _Value | None]:
    return lambda value: None if value is None else convert(value)


def _birth(value: Any) -> ev.Birth:
    boot_id, namespaces, start_ticks = value
    return ev.Birth(_text(boot_id), _text(namespaces), as_index(start_ticks))


_Field = tuple[str, str, Callable[[Any], Any]]
"""Key in the file, name of the attribute, conversion and check of what was read."""

_AT: _Field = ("t", "at", _number)
_ATTEMPT: tuple[_Field, ...] = (_AT, ("i", "index", as_index), ("a", "attempt", as_index))
_HOST: _Field = ("h", "host", _text)
_PROCESS: tuple[_Field, ...] = (_HOST, ("p", "pid", as_index), ("b", "pid_started_at", _number))
_BIRTH: _Field = ("o", "birth", _optional(_birth))
_WORKER: _Field = ("w", "worker", as_index)
_PERHAPS_WORKER: _Field = ("w", "worker", _optional(as_index))
_EXIT_CODE: _Field = ("x", "exit_code", _optional(as_index))
_USED: _Field = ("u", "used_bytes", _optional(as_index))
_RETRIED: _Field = ("y", "retried", _flag)

_PLAIN: Mapping[type[Any], tuple[str, tuple[_Field, ...]]] = {
    ev.RunStarted: (
        "run",
        (
            _AT,
            *_PROCESS,
            ("m", "model", _text),
            ("n", "n_quanta", as_index),
            _BIRTH,
            ("s", "sends_ahead", _flag),
        ),
    ),
    ev.RunReopened: ("again", (_AT, ("i", "revoked", _indices))),
    ev.RunEnded: ("end", (_AT, ("r", "reason", ev.EndReason))),
    ev.StopRequested: ("stop", (_AT, ("r", "reason", ev.StopReason))),
    ev.WorkerStarted: ("hired", (_AT, _WORKER, *_PROCESS, _BIRTH)),
    ev.WorkerEnded: (
        "gone",
        (_AT, _WORKER, _EXIT_CODE, ("l", "task_label", _optional(_text)), ("r", "left", _optional(_text))),
    ),
    ev.AttemptStarted: ("start", _ATTEMPT),
    ev.AttemptBegan: ("begin", (*_ATTEMPT, _WORKER)),
    ev.AttemptLost: (
        "lost",
        (*_ATTEMPT, ("r", "reason", _text), _EXIT_CODE, _PERHAPS_WORKER, _USED, _RETRIED),
    ),
    ev.AttemptTimedOut: (
        "late",
        (*_ATTEMPT, ("l", "timeout_s", _number), _PERHAPS_WORKER, _RETRIED, _EXIT_CODE),
    ),
    ev.AttemptOutOfMemory: (
        "oom",
        (
            *_ATTEMPT,
            _USED,
            ("l", "limit_bytes", _optional(as_index)),
            ("k", "by_kernel", _flag),
            _PERHAPS_WORKER,
            _RETRIED,
        ),
    ),
    ev.AttemptReturned: ("back", _ATTEMPT),
    ev.OutputsIngested: ("in", (_AT, ("i", "indices", _indices), ("n", "n_datasets", as_index))),
}
"""Events without an outcome: their tag (key ``e``) and fields. `None` and `False` are not written."""

_ENDED: Mapping[type[Any], tuple[str, OutcomeStatus]] = {
    ev.AttemptSucceeded: ("ok", OutcomeStatus.SUCCEEDED),
    ev.AttemptSkipped: ("skip", OutcomeStatus.SKIPPED),
    ev.AttemptFailed: ("fail", OutcomeStatus.FAILED),
}
"""Events with an outcome: their tag and the outcome's status, which is not written besides."""

_PLAIN_BY_TAG = {tag: (event_type, fields) for event_type, (tag, fields) in _PLAIN.items()}
_ENDED_BY_TAG = {tag: (event_type, status) for event_type, (tag, status) in _ENDED.items()}


def encode(event: Event) -> bytes:
    """Return the journal's line for an event, newline included.

    Raises
    ------
    qgexec.errors.IllegalEventError
        A value cannot be written (not finite, not JSON), or an event of
        an attempt's end carries an outcome of another status.
    """
    try:
        if type(event) is ev.AttemptStarted:
            return _encode_started(event)
        if type(event) in _ENDED:
            return _encode_ended(cast("ev.AttemptSucceeded", event))
        tag, fields = _PLAIN[type(event)]
        values = {"e": tag}
        for key, name, _ in fields:
            value = getattr(event, name)
            if value is not None and value is not False:
                values[key] = value
        return (_to_json(values) + "\n").encode("ascii")
    except (TypeError, ValueError, AttributeError, KeyError) as err:
        raise IllegalEventError(f"cannot be written to the journal: {event!r} ({err})") from err


def _encode_started(event: ev.AttemptStarted) -> bytes:
    # By hand, here and for outcomes: every quantum has one of each, and json alone takes twice as long.
    seed = b"" if event.seed is None else b',"s":%d' % event.seed
    return b'{"e":"start","t":%a,"i":%d,"a":%d%b}\n' % (_plain(event.at), event.index, event.attempt, seed)


def _plain(number: float) -> float:
    """Check and return a number whose ``repr`` is JSON; numpy's are not, and come as a subclass of float."""
    if not isfinite(number):
        raise ValueError("a number is not finite")
    return number if type(number) is float else float(number)


def _encode_ended(event: ev.AttemptSucceeded | ev.AttemptSkipped | ev.AttemptFailed) -> bytes:
    outcome = event.outcome
    tag, status = _ENDED[type(event)]
    if outcome.status is not status:
        raise ValueError(f"its outcome is {outcome.status.value}")
    line = (
        f'{{"e":"{tag}","t":{_plain(event.at)!r},"i":{outcome.index:d},"a":{outcome.attempt:d}'
        f',"s":{_plain(outcome.started_at)!r},"f":{_plain(outcome.ended_at)!r},"c":{_plain(outcome.cpu_s)!r}'
        f',"h":{encode_basestring_ascii(outcome.host)},"p":{outcome.pid:d}'
    )
    if outcome.peak_rss_bytes is not None:
        line += f',"m":{outcome.peak_rss_bytes:d}'
    if outcome.caveats:
        line += f',"v":{outcome.caveats:d}'
    if (error := outcome.exception) is not None:
        line += f',"x":{_to_json([error.type, error.message, error.where, error.exit_code])}'
    if (ref := outcome.detail) is not None:
        line += f',"d":[{encode_basestring_ascii(ref.segment)},{ref.offset:d},{ref.length:d}]'
    if type(event) is ev.AttemptFailed and event.retried:
        line += ',"y":true'
    return (line + "}\n").encode("ascii")


def decode(line: bytes) -> Event:
    """Return the event of one line of a journal, newline included.

    Raises
    ------
    ValueError
        The line is not one that `encode` makes, or not a whole one.
    """
    try:
        values, end = _from_json(line.decode("ascii"))
        if end != len(line) - 1 or line[-1] != 0x0A:
            raise ValueError("more or less than one JSON object and a newline")
        tag = values["e"]
        if tag == "start":
            seed = values.get("s")
            return ev.AttemptStarted(
                _number(values["t"]),
                as_index(values["i"]),
                as_index(values["a"]),
                None if seed is None else as_index(seed),
            )
        if tag in _ENDED_BY_TAG:
            return _decode_ended(tag, values)
        if tag not in _PLAIN_BY_TAG:
            raise ValueError(f"an unknown event {tag!r}")
        event_type, fields = _PLAIN_BY_TAG[tag]
        return cast("Event", event_type(*[convert(values.get(key)) for key, _, convert in fields]))
    except KeyError as err:
        raise ValueError(f"the key {err} is missing") from err
    except (TypeError, OverflowError) as err:
        raise ValueError(f"a value of the wrong type ({err})") from err
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _decode_ended(tag: str, values: Mapping[str, Any]) -> Event:
    event_type, status = _ENDED_BY_TAG[tag]
    error, detail = values.get("x"), values.get("d")
    at, started_at, ended_at, cpu_s = values["t"], values["s"], values["f"], values["c"]
    _number(at + started_at + ended_at + cpu_s)  # one check for four: half of a large journal is this
    outcome = Outcome(
        index=as_index(values["i"]),
        attempt=as_index(values["a"]),
        status=status,
        started_at=started_at,
        ended_at=ended_at,
        cpu_s=cpu_s,
        peak_rss_bytes=None if (peak := values.get("m")) is None else as_index(peak),
        host=_text(values["h"]),
        pid=as_index(values["p"]),
        caveats=as_index(values.get("v", 0)),
        exception=None if error is None else _decode_exception(*error),
        detail=None if detail is None else _decode_ref(*detail),
    )
    if event_type is ev.AttemptFailed:
        return ev.AttemptFailed(at, outcome, _flag(values.get("y")))
    return cast("Event", event_type(at, outcome))


def _decode_exception(name: Any, message: Any, where: Any, exit_code: Any) -> ExceptionSummary:
    return ExceptionSummary(_text(name), _text(message), _text(where), _optional(as_index)(exit_code))


def _decode_ref(segment: Any, offset: Any, length: Any) -> SegmentRef:
    return SegmentRef(_text(segment), as_index(offset), as_index(length))
