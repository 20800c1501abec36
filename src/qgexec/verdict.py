"""What the end of a run means for its caller, in upstream's words: its report, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_reports import Report

from qgexec.assembly import OpenRun
from qgexec.books.rundir import RunDir
from qgexec.errors import QgexecError
from qgexec.events import StopReason
from qgexec.models.base import ModelFacts
from qgexec.reports.failures import TroubledQuantum
from qgexec.reports.report import RunReport, read_report
from qgexec.rubin.upstream_report import FailedQuantum, make_upstream_report
from qgexec.scheduling.policy import Cause
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["QuantaFailedError", "QuantaTimedOutError", "ReportSource", "raise_if_failed"]


class QuantaFailedError(QgexecError, MPGraphExecutorError):
    """Some quanta failed; the run itself went as it should."""


class QuantaTimedOutError(QuantaFailedError, MPTimeoutError):
    """Some quanta took longer than allowed, and none failed in another way."""


@dataclass(slots=True)
class ReportSource:
    """Gives upstream's report of a run, as far as it has come when it is called."""

    opened: OpenRun
    scheduler: Scheduler
    facts: ModelFacts | None = None
    """Of the execution model; `None` where it is one of which nothing is known."""
    error: Exception | None = None
    """What the run raised."""

    def __call__(self) -> Report:
        """Read the run's journal, and its graph for the numbers of datasets."""
        opened, facts = self.opened, self.facts
        found = read_report(opened.run_dir.path)
        return make_upstream_report(
            opened.plan,
            Path(opened.context.graph_file),
            map(self.scheduler.state, range(len(opened.plan))),
            {each.index: _failed(each, found) for each in found.failures},
            in_process=facts is not None and not (facts.parallel or facts.orders_itself),
            error=self.error,
        )

    @contextmanager
    def noting_error(self) -> Iterator[None]:
        """Keep what is raised in the block, for the report."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def _failed(quantum: TroubledQuantum, report: RunReport) -> FailedQuantum:
    last = quantum.last
    return FailedQuantum(Cause(last.ended), last.exception_type, report.message(last), last.exit_code)


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
