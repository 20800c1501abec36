"""Stands between a task and its executor: ends children that come back, makes error texts encodable."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from lsst.pipe.base import PipelineTask, TaskMetadata

from qgexec.plaintext import encodable
from qgexec.processes.apart import end_if_child

__all__ = ["guard_task"]


def guard_task(task: PipelineTask) -> None:
    """Have ``task.runQuantum`` return, and raise, in the process that has called it, and in no other.

    A child of `os.fork` that comes back, for it raised or forgot `os._exit`, would write log and metadata of
    its parent's quantum, and then go on as a second worker.
    """
    run_quantum = task.runQuantum

    def run_here(*arguments: Any, **options: Any) -> None:
        pid = os.getpid()
        try:
            run_quantum(*arguments, **options)
        except BaseException as error:
            end_if_child(pid, error)
            _make_encodable(error)
            raise
        finally:
            end_if_child(pid)
            for each in task.getTaskDict().values():
                if (part := each()) is not None:
                    _escape_metadata(part.metadata)

    task.runQuantum = run_here  # type: ignore[method-assign]


def _escape_metadata(metadata: TaskMetadata) -> None:
    """Have all texts in metadata be encodable; about 5 us for 20 of them."""
    for name, value in metadata.scalars.items():
        if isinstance(value, str) and not value.isascii():
            metadata.scalars[name] = encodable(value)
    for values in metadata.arrays.values():
        place: Any = values  # of one type each, as upstream sees it
        place[:] = [encodable(value) if isinstance(value, str) else value for value in values]
    for part in metadata.metadata.values():
        _escape_metadata(part)


def _make_encodable(error: BaseException) -> None:
    """Have an exception's message be one that upstream can store; it is kept in log datasets."""
    with suppress(Exception):  # of a class with other ideas of its attributes
        if not _is_encodable(str(error)):
            error.args = tuple(encodable(each) if isinstance(each, str) else each for each in error.args)
            for name in ("filename", "filename2"):  # an OSError's message is made of these
                if isinstance(getattr(error, name, None), str):
                    setattr(error, name, encodable(getattr(error, name)))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
