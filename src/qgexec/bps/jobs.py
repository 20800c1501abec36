"""The jobs of BPS's reports: one for each quantum, and `finalJob` for what ingests and closes the run.

A job of BPS's is a quantum here: a batch job with a failed quantum in it has not failed. What the batch
system says of its own jobs counts where it knows better than the quanta: it holds them, or has them queued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from lsst.ctrl.bps import WmsJobReport, WmsStates

from qgexec.batch.rounds import last_round
from qgexec.batch.system import JobState, RoundStatus
from qgexec.errors import QgexecError
from qgexec.models.batch import ask
from qgexec.reports.report import RunReport, RunState
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["FINAL_JOB", "BatchJobs", "is_cancelled", "job_reports"]

FINAL_JOB = "finalJob"
"""Name and label of the job that takes the outputs into the registry, as ctrl_bps calls it."""

_ACTIVE = {RunState.RUNNING, RunState.PERHAPS_RUNNING, RunState.SUBMITTED}

_ENDED = {
    State.SUCCEEDED: WmsStates.SUCCEEDED,
    State.SKIPPED: WmsStates.SUCCEEDED,
    State.FAILED: WmsStates.FAILED,
    State.BLOCKED: WmsStates.PRUNED,
}


@dataclass(frozen=True, slots=True)
class BatchJobs:
    """What a batch system says of the jobs of a run; nothing where none has any in hand."""

    of_quanta: Mapping[int, JobState] = field(default_factory=dict)
    """State of the batch job that has a quantum, by the quantum's index; as far as it is known."""
    closing: JobState | None = None
    """State of the job that ingests after all others; `None` where it is not known."""
    words: Sequence[str] = ()
    """The same for people, in the words of the batch system."""

    @classmethod
    def of(cls, report: RunReport) -> Self:
        """Ask the batch system that has a run in hand; what it does not answer is said in words."""
        pending = last_round(report.run_dir) if report.submitted is not None else None
        if pending is None:
            return cls()
        try:
            found = ask(pending)
        except QgexecError as error:
            return cls(words=[f"Jobs: not known, {error.message}"])
        if found is None:
            return cls(words=["Jobs: none was submitted"])
        of_quanta = {
            int(index): status.state
            for job, status in found.jobs.items()
            for index in pending.jobs.quanta(job)
        }
        closing = None if found.closing is None else found.closing.state
        return cls(of_quanta, closing, list(_words(found)))


def _words(found: RoundStatus) -> Iterator[str]:
    counts = Counter({state.value: found.counts.get(state, 0) for state in JobState})
    yield "Jobs: " + (", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none left")
    reasons = {status.reason for status in found.jobs.values() if status.state is JobState.HELD}
    yield from (f"held: {reason}" for reason in sorted(reasons))


def is_cancelled(report: RunReport) -> bool:
    """Return whether a run was ended by ``cancel``."""
    return report.state is RunState.STOPPED and report.run_dir.cancel_file.exists()


def job_reports(
    report: RunReport, plan: Plan, scheduler: Scheduler, batch_jobs: BatchJobs
) -> list[WmsJobReport]:
    """Return the jobs of a run: its quanta in the order of the plan, then the final job.

    Parameters
    ----------
    report, plan, scheduler
        What became of the run.
    batch_jobs
        What a batch system says.

    Returns
    -------
    jobs
        About 15 us each: 15 s for a million.
    """
    is_active, was_cancelled = report.state in _ACTIVE, is_cancelled(report)
    jobs = []
    for index in range(len(plan)):
        label, job_state = plan.label(index), batch_jobs.of_quanta.get(index)
        state = _ENDED.get(scheduler.state(index))
        if state is None:
            state = WmsStates.DELETED if was_cancelled else _unended(scheduler.state(index), job_state)
        if state is WmsStates.RUNNING and not is_active:
            state = WmsStates.UNKNOWN
        name = "_".join([label, *map(str, plan.data_id(index).values())])
        jobs.append(WmsJobReport(str(index), name, label, state))
    jobs.append(WmsJobReport(FINAL_JOB, FINAL_JOB, FINAL_JOB, _final_state(report, batch_jobs.closing)))
    return jobs


def _unended(state: State, job_state: JobState | None) -> WmsStates:
    """Return the state of a quantum that has not come to an end, in a batch job or in none."""
    if job_state is JobState.HELD:
        return WmsStates.HELD
    if state is State.RUNNING:
        return WmsStates.RUNNING
    if state is State.WAITING:
        return WmsStates.UNREADY
    return WmsStates.READY if job_state is None else WmsStates.PENDING


def _final_state(report: RunReport, closing: JobState | None) -> WmsStates:
    match report.state:
        case RunState.SUBMITTED if closing is JobState.HELD:
            return WmsStates.HELD
        case RunState.SUBMITTED if closing is JobState.RUNNING:
            return WmsStates.RUNNING
        case state if state is RunState.NOT_STARTED or state in _ACTIVE:
            return WmsStates.UNREADY
        case RunState.STOPPED:
            return WmsStates.DELETED if is_cancelled(report) else WmsStates.UNREADY
        case RunState.BROKEN | RunState.DRIVER_GONE:
            return WmsStates.FAILED
        case _:  # its books are closed, whatever became of the quanta
            return WmsStates.SUCCEEDED
