"""What a run did not bring to a good end, for another run that is to do only that."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from qgexec.books.rundir import RunDir
from qgexec.reports.snapshot import read_fold
from qgexec.scheduling.states import State

__all__ = ["failed_quanta"]


def failed_quanta(run_dir: Path) -> list[tuple[UUID, str]]:
    """Return the quanta that failed in a run, and those that these blocked.

    Parameters
    ----------
    run_dir
        Its run directory; the run need not have ended.

    Returns
    -------
    quanta
        ID, and task label and data ID as `qgexec.scheduling.plan.Plan.describe` gives them.

    Raises
    ------
    qgexec.errors.RunDirError
        It is none, or cannot be read.
    """
    books = RunDir.open(run_dir)
    plan = books.load_plan()
    state = read_fold(books.journal, plan, books.snapshot_file).scheduler.state
    failed = (State.FAILED, State.BLOCKED)
    return [(plan.quantum_id(i), plan.describe(i)) for i in range(len(plan)) if state(i) in failed]
