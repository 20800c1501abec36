"""Kills a process of its own in the middle of a put, at a place that a test names."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import sqlalchemy
from lsst.daf.butler import FormatterV2
from lsst.resources.file import FileResourcePath

__all__ = ["STAGES", "die", "die_in_put", "dies", "killed_at_commit"]

STAGES = ("writing", "written", "renamed")
"""Of a put: half of the temporary file is there; all of it; the file itself, and no record of it."""


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies(action: Callable[[], object]) -> None:
    """Run something in a fork of this process; it must be killed there."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def killed_at_commit(number: int, action: Callable[[], object]) -> bool:
    """Run something in a fork that is killed before its so many-th commit (from 1); return whether it was."""
    pid = os.fork()
    if pid == 0:
        n_commits = 0

        def count(_connection: object) -> None:
            nonlocal n_commits
            n_commits += 1
            if n_commits == number:
                die()

        try:
            sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", count)
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def die_in_put(number: int, stage: str) -> None:
    """Have this process killed in its so many-th put of a file, from 1; for good."""
    write, transfer = FormatterV2.write_locally_then_move, FileResourcePath.transfer_from
    n_puts = 0

    def counted(formatter: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal n_puts
        n_puts += 1
        write(formatter, *args, **kwargs)

    def deadly(target: Any, source: Any, *args: Any, **kwargs: Any) -> None:
        if n_puts == number and stage == "writing":
            os.truncate(source.ospath, source.size() // 2)
        if n_puts == number and stage != "renamed":
            die()
        transfer(target, source, *args, **kwargs)
        if n_puts == number:
            die()

    FormatterV2.write_locally_then_move = counted  # type: ignore[method-assign, assignment]
    FileResourcePath.transfer_from = deadly  # type: ignore[method-assign, assignment]
