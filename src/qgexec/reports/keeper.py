"""Keeps the snapshot of a large run up to date while a driver is at it, in a process of the lowest priority.

The driver does nothing for it but to start and end that process: a reader that comes while the run goes on,
or after its driver was killed, has no more to read than what came in since the last snapshot.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qgexec.books.rundir import RunDir
from qgexec.errors import RunDirError
from qgexec.processes.interpreter import module_command
from qgexec.processes.machine import offer_to_oom_killer
from qgexec.reports.snapshot import SnapshotReader

__all__ = ["LINES_BETWEEN", "WORTH_A_KEEPER", "keep", "keeping_snapshots"]

WORTH_A_KEEPER = 50_000
"""Quanta from which on a run has one: the journal of fewer is read in a second."""

LINES_BETWEEN = 50_000
"""Lines of the journal between two snapshots; what a reader may have to read itself, half a second."""

_LOOK_EVERY_S = 10.0
"""How often it looks whether there is more to read, seconds."""

_LOWEST = 19


@contextmanager
def keeping_snapshots(
    run_dir: RunDir,
    n_quanta: int,
    *,
    worth: int = WORTH_A_KEEPER,
    lines_between: int = LINES_BETWEEN,
    end_s: float = 5.0,
) -> Iterator[None]:
    """Have snapshots made while the block runs, if there are so many quanta that it is worth it.

    Parameters
    ----------
    run_dir
        The run directory, with plan and journal.
    n_quanta
        Quanta in it.
    worth
        How many are enough.
    lines_between
        As for `keep`.
    end_s
        Time that the one who makes them has to come to its end, seconds.
    """
    keeper = _start(run_dir, lines_between) if n_quanta >= worth else None
    try:
        yield
    finally:
        if keeper is not None:
            _end(keeper, end_s)


def _start(run_dir: RunDir, lines_between: int) -> subprocess.Popen[bytes] | None:
    words = map(str, (run_dir.path, os.getpid(), lines_between))
    try:
        # In a session of its own: Ctrl-C is the driver's.
        return subprocess.Popen(
            module_command("qgexec.reports.keeper", *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # no room for another process: readers take longer
        return None


def _end(keeper: subprocess.Popen[bytes], end_s: float) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()
    try:
        keeper.wait(end_s)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def keep(
    run_dir: Path, driver: int, *, lines_between: int = LINES_BETWEEN, look_every_s: float = _LOOK_EVERY_S
) -> None:
    """Make snapshots of a run, in this process, until standard input closes or the driver is gone.

    Parameters
    ----------
    run_dir
        The run directory.
    driver
        Process ID of the parent.
    lines_between
        New lines of the journal that are worth another snapshot.
    look_every_s
        Time between two looks, seconds.
    """
    books = RunDir(run_dir)
    reader = SnapshotReader(
        books.journal, books.load_plan(), books.snapshot_file, worth_keeping=lines_between
    )
    # Standard input stays open where some child of the driver has inherited its end of it.
    while os.getppid() == driver:
        reader.read_on()
        if select.select([sys.stdin], [], [], look_every_s)[0]:
            return


def main(arguments: list[str]) -> None:
    """Keep snapshots as the driver that started this process has said."""
    os.nice(_LOWEST)
    offer_to_oom_killer()
    # Whatever is wrong with the books, the driver meets it too, and says so.
    with suppress(RunDirError):
        keep(Path(arguments[0]), int(arguments[1]), lines_between=int(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
