"""Forked children: does something in one, and ends those that come back where their parent has called."""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from qgexec.plaintext import encodable

__all__ = ["Answer", "do_apart", "end_if_child"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a child."""

    value: Any
    """What it returned; `None` where it ended without a word."""
    exit_code: int
    """Exit status; minus the signal's number where a signal ended it."""
    peak_rss_bytes: int
    """Its largest resident set, and that of children it waited for."""


def do_apart(do: Callable[[], Any]) -> Answer:
    """Call a function in a child of this process, and wait for the child's end.

    All that this process has opened and imported is there in the child. What the child leaves, ends with it,
    but for processes that it has started.

    Parameters
    ----------
    do
        Returns what `json.dumps` takes, and raises nothing.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        _be_child(do, write_end)
    os.close(write_end)
    try:
        text = _read_until_end(pid, read_end)
    finally:
        os.close(read_end)
    _, status, used = os.wait4(pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    value = json.loads(text) if text and exit_code == 0 else None
    return Answer(value, exit_code, used.ru_maxrss * 1024)


def _read_until_end(pid: int, read_end: int) -> bytes:
    """Return what a child writes until it ends; what it has started may keep its end of the pipe open."""
    chunks: list[bytes] = []
    pidfd = os.pidfd_open(pid)
    try:
        os.set_blocking(read_end, False)
        poll = select.poll()
        poll.register(read_end, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        has_ended = False
        while not has_ended:
            has_ended = any(end == pidfd for end, _ in poll.poll())
            _read_all(read_end, chunks)
            if not has_ended and chunks and not chunks[-1]:
                poll.unregister(read_end)
    finally:
        os.close(pidfd)
    return b"".join(chunks)


def _read_all(read_end: int, chunks: list[bytes]) -> None:
    """Read what is there; an empty chunk is the end."""
    while not chunks or chunks[-1]:
        try:
            chunks.append(os.read(read_end, 1 << 20))
        except BlockingIOError:
            return


def _be_child(do: Callable[[], Any], write_end: int) -> NoReturn:
    status = 1
    atexit._clear()  # noqa: SLF001 - those that exist are the parent's
    gc.freeze()  # the first collection would copy every page of what the parent has
    try:
        text = json.dumps(do()).encode()
        atexit._run_exitfuncs()  # noqa: SLF001
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(text)
        status = 0
    finally:
        os._exit(status)


def end_if_child(pid: int, error: BaseException | None = None) -> None:
    """End this process, without exit handlers, where it is not the one with this process ID."""
    if os.getpid() != pid:
        _end_child(error)


def _end_child(error: BaseException | None) -> NoReturn:
    status = 1 if error is not None else 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        with suppress(BaseException):  # whatever formatting an exception may do
            os.write(2, encodable("".join(traceback.format_exception(error))).encode())
    os._exit(status & 0xFF)
