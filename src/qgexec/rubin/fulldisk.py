"""Tells the repository's full disk from all other reasons for which a quantum fails; executes nothing.

What a task writes elsewhere, to a folder of its own, is its own affair, and perhaps that of the machine it
runs on. Where the datastore has no room, every other quantum would fail for that too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from lsst.daf.butler.datastore import Datastore
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.utils.introspection import get_full_type_name

from qgexec.errors import RepositoryFullError
from qgexec.events import AttemptFailed, Event
from qgexec.rubin.datastores import leaf_datastores

__all__ = ["check_room", "refuse_without_room"]

_CODES = (errno.ENOSPC, errno.EDQUOT)
_WORDS = tuple(os.strerror(code) for code in _CODES)
_PUTS = ("put", "put_new")

_NO_ROOM_BYTES = 1 << 20
"""A file system with less room for files is full."""


def check_room(datastore: Datastore, error: BaseException) -> None:
    """Raise another error where the reason for this one is that a datastore's disk is full.

    Parameters
    ----------
    datastore
        The repository's.
    error
        What the execution of a quantum has raised.

    Raises
    ------
    qgexec.errors.RepositoryFullError
        That is the reason: a put found no room, or a file below a datastore's root did.
    """
    for each in _causes(error):
        if (words := _no_room(each)) and (root := _full_root(datastore, each)):
            raise RepositoryFullError(f"the disk of the datastore {Path(root)} is full: {words}")


def refuse_without_room(event: Event) -> None:
    """Raise the error again that `check_room` has raised while a quantum was executed.

    Parameters
    ----------
    event
        What was said of the attempt.

    Raises
    ------
    qgexec.errors.RepositoryFullError
        The event says so; the attempt is nobody's failure.
    """
    if not isinstance(event, AttemptFailed) or (exception := event.outcome.exception) is None:
        return
    if exception.type == get_full_type_name(RepositoryFullError):
        raise RepositoryFullError(
            exception.message,
            hint="Make room there, or raise the quota. What did not fit counts as not tried.",
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    pending, seen = [error], set()
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__context__, each.__cause__]


def _no_room(error: BaseException) -> str:
    """Return what an error says about want of room; libraries in C and C++ raise types of their own."""
    if isinstance(error, OSError) and error.errno in _CODES:
        return os.strerror(error.errno)
    with suppress(Exception):  # str() may be anybody's code
        text = str(error)
        return next((words for words in _WORDS if words in text), "")
    return ""


def _full_root(datastore: Datastore, error: BaseException) -> str:
    """Return the root of the datastore that had no room; empty where it was something else."""
    roots = _roots(leaf_datastores(datastore))
    names = [getattr(error, "filename", None), getattr(error, "filename2", None)]
    paths = [Path(os.fsdecode(name)).absolute() for name in names if isinstance(name, str | bytes)]
    found = [root for root in roots if any(path.is_relative_to(root) for path in paths)]
    if not (found or paths):
        found = _put_to(error.__traceback__)
    return next(iter(found or filter(_has_no_room, roots)), "")


def _roots(datastores: Iterable[object]) -> list[str]:
    """Return the roots of those that write to a file system."""
    return [each.root.ospath for each in datastores if isinstance(each, FileDatastore) and each.root.isLocal]


def _put_to(trace: TracebackType | None) -> list[str]:
    """Return the root of the datastore whose put raised an error: it writes beside where files are to be."""
    owners = [frame.f_locals.get("self") for frame, _ in walk_tb(trace) if frame.f_code.co_name in _PUTS]
    return _roots(owners)


def _has_no_room(root: str) -> bool:
    try:
        room = os.statvfs(root)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < _NO_ROOM_BYTES or (room.f_files > 0 and room.f_favail == 0)
