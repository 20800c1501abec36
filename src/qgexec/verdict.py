"""What the end of a run means for its caller, in upstream's words: its report, and its errors."""

from __future__ import annotations

from pathlib import Path

from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_reports import Report

from qgexec.assembly import OpenRun
from qgexec.books.rundir import RunDir
from qgexec.errors import QgexecError
from qgexec.events import StopReason
from qgexec.reports.report import read_report
from qgexec.rubin.qgfile import QgFile
from qgexec.rubin.upstream_report import make_upstream_report
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["QuantaFailedError", "QuantaTimedOutError", "raise_if_failed", "upstream_report"]


class QuantaFailedError(QgexecError, MPGraphExecutorError):
    """Some quanta failed; the run itself went as it should."""


class QuantaTimedOutError(QuantaFailedError, MPTimeoutError):
    """Some quanta took longer than allowed, and none failed in another way."""


def upstream_report(opened: OpenRun, scheduler: Scheduler) -> Report:
    """Return upstream's report of a run, as far as it has come."""
    failures = {failure.index: failure for failure in read_report(opened.run_dir.path).failures}
    with QgFile(Path(opened.context.graph_file)) as file:
        header = file.header
    return make_upstream_report(opened.plan, map(scheduler.state, range(len(opened.plan))), failures, header)


def raise_if_failed(run_dir: RunDir, scheduler: Scheduler) -> None:
    """Raise if not all quanta of a run that has ended succeeded.

    Raises
    ------
    QuantaFailedError
        Quanta failed, or are left.
    QuantaTimedOutError
        All failures were time-outs.
    KeyboardInterrupt
        The run was interrupted.
    """
    if scheduler.stopping is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    counts = scheduler.counts()
    n_quanta = sum(counts.values())
    if not counts[State.FAILED]:
        if n_left := counts[State.WAITING] + counts[State.READY]:
            raise QuantaFailedError(
                f"{n_left} of {n_quanta} quanta were not run",
                hint=f"Go on with: qgexec resume {run_dir.path}",
            )
        return
    failures = read_report(run_dir.path).failures
    first = failures[0]
    message = (
        f"{len(failures)} of {n_quanta} quanta failed (blocked by them: {counts[State.BLOCKED]}); "
        f"the first: {first} {first.exception_type or ''}: {first.message}"
    )
    timed_out = all(failure.timed_out for failure in failures)
    error = QuantaTimedOutError if timed_out else QuantaFailedError
    raise error(message, hint=f"See them all with: qgexec report {run_dir.path}")
