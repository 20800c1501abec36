"""Runs `pipetask` and `qgexec`, several at a time: as forks that are there at once, or as programs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.checkout import PYTHONPATH
from tests.kit.processes import warm

__all__ = ["Command", "Running"]

_TIMEOUT_S = 120.0


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

    def start(self, *, anew: bool = False) -> Running:
        """Start it: a fork of this process, or the installed program itself."""
        popen: type[subprocess.Popen[Any]] = subprocess.Popen if anew else warm.Popen
        with self.log.open("ab") as log:
            return Running(
                popen(
                    [Path(sys.executable).parent / self.program, *self.arguments],
                    cwd=self.folder,
                    env={**os.environ, **self.environment, "PYTHONPATH": PYTHONPATH},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )


@dataclass(frozen=True, slots=True)
class Running:
    """A command under way."""

    process: subprocess.Popen[Any]

    def wait(self) -> int:
        """Wait for its end, and return its exit code; it is killed when it takes too long."""
        try:
            return self.process.wait(_TIMEOUT_S)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
