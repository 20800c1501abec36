"""HTCondor as a batch system: a round is one DAG, which DAGMan orders; asks it in few queries.

The DAG's own rules: a job is tried again as long as it says, by its exit status, that another try
has something to do; its last try always counts as a success, so that the jobs that
come after it start and do what they can; the FINAL node closes the books.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qgexec.batch.condorapi import Ad, CondorApi, CondorCalls, is_root
from qgexec.batch.dagfile import (
    CLOSING_NODE,
    DAG,
    NODES_LOG,
    job_of_node,
    probe_description,
    requested_mib,
    write_dag,
)
from qgexec.batch.forecast import critical_path_s
from qgexec.batch.jobs import JobRequest
from qgexec.batch.nodeslog import NodesLog, is_memory_hold, is_time_hold
from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.system import JobEnd, JobState, JobStatus, Pace, PlannedCall, RoundStatus
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError

__all__ = ["HTCondorSystem"]

_logger = logging.getLogger(__name__)

_IDLE, _RUNNING, _REMOVED, _COMPLETED, _HELD = 1, 2, 3, 4, 5
_STATES = {_IDLE: JobState.QUEUED, _HELD: JobState.HELD}
"""By HTCondor's JobStatus; all others are about to run, run, or leave their machine."""

_ATTRIBUTES = (
    *("ClusterId", "DAGNodeName", "JobStatus", "RemoteHost", "LastRejMatchReason"),
    *("HoldReason", "HoldReasonCode", "HoldReasonSubCode", "RemoveReason", "ExitCode"),
)

_STUCK = (
    "DAGMan waits for jobs that are not in the queue any more: their ends are missing in its log, as after "
    "a full disk; qgexec resume has the DAG removed, and goes on"
)

_SCHEDULER_UNIVERSE = 7
_MIB = 1 << 20


class HTCondorSystem:
    """One schedd of an HTCondor pool: that of the machine that submits.

    Parameters
    ----------
    calls
        How to call HTCondor; by its package if nothing else is said.
    """

    name = "htcondor"
    pace = Pace()

    def __init__(self, calls: CondorCalls | None = None) -> None:
        self._calls = calls or CondorApi()
        self._logs: dict[str, NodesLog] = {}
        self.stuck_s = 300.0
        """DAGMan waits in vain that does nothing for so long while none of its jobs is in the queue, seconds.

        By itself it would notice after 8 hours, or not at all.
        """

    def check(self) -> None:
        """Check that jobs can be submitted from here.

        Raises
        ------
        qgexec.errors.ModelError
            The package is missing, no schedd answers, or this is root.
        """
        if is_root():
            raise ModelError(
                "HTCondor takes no jobs from root", hint="Submit as the user whose files they write."
            )
        schedd = self._local_schedd()
        self._calls.query(schedd, "ClusterId == 0", ["ClusterId"])

    def _local_schedd(self) -> str:
        try:
            return self._calls.schedd_name()
        except ModelError as error:
            error.hint = error.hint or (
                "Submit from a machine where condor_q works; CONDOR_CONFIG names its configuration."
            )
            raise

    def most_jobs(self, settings: BatchSettings) -> int | None:
        """Return `None`: DAGMan hands over as many at a time as it is told to."""
        return None

    def write(self, batch_round: Round) -> Sequence[PlannedCall]:
        """Write the DAG and all that belongs to it.

        Raises
        ------
        qgexec.errors.UsageError
            HTCondor cannot be told of something in the settings.
        qgexec.errors.RunDirError
            A file cannot be written.
        """
        if batch_round.settings.queue is not None:
            _logger.warning(
                "HTCondor has no queues: %r is ignored. A site's own way to choose machines goes "
                "into submitLines.",
                batch_round.settings.queue,
            )
        largest_mib = None
        with contextlib.suppress(ModelError):  # a rehearsal needs no pool
            largest_mib = max((mib for _, mib in self._calls.machines()), default=None)
        write_dag(batch_round, os.environ, largest_mib)
        command = ["condor_submit_dag", "-usedagdir", "-batch-name", batch_round.name]
        return [PlannedCall([*command, str(batch_round.folder / DAG)], len(batch_round.jobs) + 1)]

    def least_s(self, batch_round: Round, seconds: npt.NDArray[np.float64]) -> float:
        """Return how long the longest path takes: in a DAG each job waits for its parents alone."""
        return critical_path_s(batch_round.jobs, seconds)

    def submit(self, batch_round: Round) -> Ticket:
        """Hand the DAG over to DAGMan.

        DAGMan itself would notice only later, and job by job, that the schedd refuses them: one is
        submitted first, on hold, and removed at once.

        Raises
        ------
        qgexec.errors.ModelError
            The schedd refuses jobs, no machine is large enough, or nothing answers.
        """
        schedd = self._local_schedd()
        self._check_sizes(batch_round)
        self._probe(batch_round, schedd)
        cluster = self._calls.submit_dag(batch_round.folder / DAG, batch_round.name)
        return {"cluster": cluster, "schedd": schedd}

    def _check_sizes(self, batch_round: Round) -> None:
        """Raise where a job asks for more than any machine has: it would wait for ever.

        A pool that has no machines at the moment may get some of any size.
        """
        machines = self._calls.machines()
        jobs = batch_round.jobs
        needs: dict[tuple[int, int], int] = {}
        for job in jobs:
            request = jobs.request(job)
            needs.setdefault((request.cores, requested_mib(request)), job)
        for (cores, memory_mib), job in sorted(needs.items()):
            if machines and not any(cores <= has and memory_mib <= mib for has, mib in machines):
                largest = max(machines, key=lambda machine: machine[1])
                asked, has_most = (JobRequest(n, mib * _MIB) for n, mib in ((cores, memory_mib), largest))
                raise ModelError(
                    f"no machine of the pool can take {jobs.name(job)}: it asks for {asked}, "
                    f"and the largest has {has_most}",
                    hint="Ask for less (requestMemory, requestCpus, memoryLimit), or add larger machines.",
                )

    def _probe(self, batch_round: Round, schedd: str) -> None:
        cluster = self._calls.submit(probe_description(batch_round))
        self._calls.remove(schedd, f"ClusterId == {cluster}")

    def find(self, batch_round: Round) -> Ticket | None:
        """Look for the round's DAGMan by its name, in the queue of this machine's schedd and its history."""
        schedd = self._local_schedd()
        constraint = f'JobUniverse == {_SCHEDULER_UNIVERSE} && JobBatchName == "{batch_round.name}"'
        attributes = ["ClusterId"]
        found = [
            *self._calls.query(schedd, constraint, attributes),
            self._calls.history(schedd, constraint, attributes),
        ]
        for ad in found:
            if ad is not None:
                return {"cluster": int(ad["ClusterId"]), "schedd": schedd}
        return None

    def look(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        """Ask the schedd for what is in its queue, and read what DAGMan's log says of the rest.

        Raises
        ------
        qgexec.errors.ModelError
            The schedd does not answer at the moment, or answers what cannot be read.
        """
        cluster, schedd = int(str(ticket["cluster"])), str(ticket["schedd"])
        ads = self._calls.query(schedd, f"DAGManJobId == {cluster} || ClusterId == {cluster}", _ATTRIBUTES)
        if not all("ClusterId" in ad for ad in ads):  # nothing may be concluded from what is not there
            raise ModelError(f"HTCondor: schedd {schedd} says of jobs what cannot be read")
        dagman = next((ad for ad in ads if ad.get("ClusterId") == cluster), None)
        nodes = {str(ad["DAGNodeName"]): ad for ad in ads if "DAGNodeName" in ad}
        closing = nodes.pop(CLOSING_NODE, None)
        log = self._logs.setdefault(batch_round.name, NodesLog(batch_round.folder / NODES_LOG))
        log.read()
        # Between two jobs there may be none in the queue; only the closing job comes after all others.
        is_over = not nodes and (dagman is None or closing is not None)
        dagman_says = self._last_words(schedd, cluster) if dagman is None else _why_dagman_waits(dagman)
        # With nothing in the queue DAGMan hands over the next jobs within seconds.
        waits = not is_over and not dagman_says and not nodes and closing is None
        is_stuck = waits and log.silent_s() > self.stuck_s
        statuses = _statuses(batch_round, nodes, log, is_over=is_over)
        return RoundStatus(
            is_over=is_over,
            jobs=statuses,
            counts=_counts(len(batch_round.jobs), statuses, is_over=is_over),
            closing=_closing_status(closing, log, is_gone=dagman is None),
            reason=_STUCK if is_stuck else dagman_says,
            is_stuck=is_stuck,
        )

    def _last_words(self, schedd: str, cluster: int) -> str:
        """Return what became of a DAGMan that has left the queue; nothing where nobody knows any more."""
        with contextlib.suppress(ModelError):  # the queue's word is enough to go on
            ad = self._calls.history(schedd, f"ClusterId == {cluster}", _ATTRIBUTES)
            if ad is not None and ad.get("JobStatus") == _REMOVED:
                return f"the DAG was removed: {ad.get('RemoveReason', 'nobody says why')}"
            if ad is not None and ad.get("ExitCode", 0) != 0:
                return f"DAGMan ended with exit status {ad['ExitCode']}"
        return ""

    def cancel(self, batch_round: Round, ticket: Ticket) -> None:
        """Remove DAGMan, and with it its jobs; once more removes the closing job, which starts then.

        Raises
        ------
        qgexec.errors.ModelError
            The schedd does not answer, or refuses.
        """
        cluster, schedd = int(str(ticket["cluster"])), str(ticket["schedd"])
        self._calls.remove(schedd, f"DAGManJobId == {cluster} || ClusterId == {cluster}")


def _why_dagman_waits(dagman: Ad) -> str:
    match dagman.get("JobStatus"):
        case 5:
            return f"DAGMan is held: {dagman.get('HoldReason', 'nobody says why')}"
        case 3:
            return "the DAG is being removed"
        case 1:
            return "DAGMan waits for its start"
        case _:
            return ""


def _status_of(ad: Ad) -> JobStatus:
    """Return what the queue says of a job."""
    state = _STATES.get(ad.get("JobStatus", _IDLE), JobState.RUNNING)
    host = str(ad.get("RemoteHost", "")).rpartition("@")[2]
    if state is JobState.HELD:
        reason = str(ad.get("HoldReason", ""))
        codes = (int(ad.get("HoldReasonCode", 0)), int(ad.get("HoldReasonSubCode", 0)))
        if is_memory_hold(*codes) or is_time_hold(*codes):
            # Nobody need do anything: it is released, and goes on by the rules for its cause.
            return JobStatus(JobState.QUEUED, f"{reason}; it is tried again")
        return JobStatus(state, reason)
    reason = str(ad.get("LastRejMatchReason", "")).strip() if state is JobState.QUEUED else ""
    return JobStatus(state, reason, host=host if state is JobState.RUNNING else "")


def _statuses(
    batch_round: Round, nodes: Mapping[str, Ad], log: NodesLog, *, is_over: bool
) -> dict[int, JobStatus]:
    n_jobs = len(batch_round.jobs)
    found = {job: story.status(is_over=is_over) for job, story in log.nodes.items() if job < n_jobs}
    for name, ad in nodes.items():
        if (job := job_of_node(name)) is not None and job < n_jobs:
            found[job] = _status_of(ad)
    return found


def _counts(n_jobs: int, statuses: Mapping[int, JobStatus], *, is_over: bool) -> dict[JobState, int]:
    counts = Counter(status.state for status in statuses.values())
    counts[JobState.ENDED if is_over else JobState.QUEUED] += n_jobs - len(statuses)
    return {state: counts[state] for state in JobState}


def _closing_status(ad: Ad | None, log: NodesLog, *, is_gone: bool) -> JobStatus | None:
    if ad is not None:
        return _status_of(ad)
    if log.closing is not None:
        return log.closing.status(is_over=is_gone)
    return JobStatus(JobState.ENDED, end=JobEnd.NOT_STARTED) if is_gone else None
