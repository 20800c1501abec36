"""Runs `pipetask` and `qgexec`, several at a time: as programs, or as forks of a server."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.kit.checkout import PYTHONPATH

__all__ = ["Command", "Forks", "Running", "start_program"]

_TIMEOUT_S = 120.0
_ENVIRONMENT = {"PYTHONPATH": PYTHONPATH, "PYTHONHASHSEED": "0"}
"""The order in which mock tasks put their outputs is that of a set: the same for all."""

_PRELOAD = [
    "lsst.ctrl.mpexec.cli.cmd",
    "lsst.ctrl.mpexec.cli.pipetask",
    "lsst.pipe.base.tests.mocks",
    "qgexec.api",
    "qgexec.cli.main",
    "qgexec.cli.run",
    "qgexec.cli.display",
    "tests.kit.peer.programs",
]


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and where it runs."""

    program: str
    """``pipetask`` or ``qgexec``."""

    arguments: Sequence[str]
    """Its arguments."""

    folder: Path
    """Its current folder."""

    log: Path
    """Gets what it prints."""

    environment: Mapping[str, str]
    """Variables to add."""

    def variables(self) -> dict[str, str]:
        """Return all variables that differ from those here."""
        return {**self.environment, **_ENVIRONMENT}


@dataclass(frozen=True, slots=True)
class Running:
    """A command under way."""

    wait: Callable[[], int]
    """Wait for its end, and return its exit code; kills it when it takes too long."""


def start_program(command: Command) -> Running:
    """Start the installed program itself."""
    path = Path(sys.executable).parent / command.program
    with command.log.open("ab") as log:
        process = subprocess.Popen(
            [path, *command.arguments],
            cwd=command.folder,
            env={**os.environ, **command.variables()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def wait() -> int:
        try:
            return process.wait(_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.wait()
            raise

    return Running(wait)


class Forks:
    """Starts commands without their imports, which take longer than a small graph.

    Python's fork server imports both programs once; each command is a fresh
    fork of it, so that no command sees what another one left in memory.
    """

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        before = dict(os.environ)
        os.environ.update(_ENVIRONMENT)
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self, command: Command) -> Running:
        """Start a command."""
        process = self._context.Process(target=_run, args=(command,), daemon=False)
        process.start()
        return Running(lambda: _wait(process, command))


def _wait(process: BaseProcess, command: Command) -> int:
    try:
        process.join(_TIMEOUT_S)
    finally:
        process.kill()  # nothing, where it has ended
        process.join()
    assert process.exitcode is not None
    if process.exitcode < 0:
        raise TimeoutError(f"{command.program} was killed:\n{command.log.read_text()}")
    return process.exitcode


def _run(command: Command) -> Any:
    """Be that program: its folder, variables, output and arguments."""
    os.environ.update(command.variables())
    os.chdir(command.folder)
    with command.log.open("ab") as log, contextlib.suppress(OSError):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = [command.program, *command.arguments]
    sys.exit(_mains()[command.program]())


def _mains() -> dict[str, Callable[[], Any]]:
    from lsst.ctrl.mpexec.cli import pipetask

    from qgexec.cli import main

    return {"pipetask": pipetask.main, "qgexec": main.main}
