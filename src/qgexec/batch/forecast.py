"""What a round would cost: jobs of each kind, their requests, and how long it takes at the least; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from qgexec.batch.jobs import JobRequest, Jobs
from qgexec.scheduling.plan import Plan

__all__ = ["START_S", "Forecast", "JobKind", "critical_path_s", "expected_s", "forecast"]

START_S = 10.0
"""Time from a job's beginning to its first quantum, seconds: a Python process that imports the stack."""


@dataclass(frozen=True, slots=True)
class JobKind:
    """All jobs of one name that ask for the same."""

    name: str
    n_jobs: int
    n_quanta: int
    request: JobRequest
    """With the longest time limit of them."""
    expected_s: float | None
    """Expected run time of all of them together, seconds; `None` where that of a task is not known."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a round would cost."""

    kinds: tuple[JobKind, ...]
    """Its jobs by kind."""
    total_s: float | None
    """Expected run time of all jobs together, seconds; `None` where that of a task is not known."""
    critical_path_s: float | None
    """Expected time until the end if every job could begin as soon as its parents have ended, seconds."""
    least_s: float | None
    """The same, with all that the batch system has jobs wait for."""


def expected_s(jobs: Jobs, plan: Plan, durations: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return how long each job is expected to run.

    Parameters
    ----------
    jobs
        The jobs.
    plan
        The quanta.
    durations
        Mean run time of one quantum by task label, seconds.

    Returns
    -------
    seconds
        Shape ``(n,)``; not a number for jobs with a task that is not in ``durations``.
    """
    by_label = np.asarray([durations.get(label, np.nan) for label in plan.labels])
    codes = np.asarray(plan.label_codes)
    return np.asarray(
        [START_S + by_label[codes[list(jobs.quanta(job))]].sum() for job in jobs], dtype=np.float64
    )


def critical_path_s(jobs: Jobs, seconds: npt.NDArray[np.float64]) -> float:
    """Return the time that the longest chain of jobs takes, however many run at once."""
    ends = np.zeros(len(jobs))
    for job in jobs:
        begins = max((float(ends[parent]) for parent in jobs.parents(job)), default=0.0)
        ends[job] = begins + seconds[job]
    return float(ends.max(initial=0.0))


def forecast(
    jobs: Jobs,
    plan: Plan,
    durations: Mapping[str, float],
    least_s: Callable[[npt.NDArray[np.float64]], float] | None = None,
) -> Forecast:
    """Return what a round would cost.

    Parameters
    ----------
    jobs, plan, durations
        As for `expected_s`.
    least_s
        Returns for the run times of the jobs how long the batch system takes, however many of them run at
        once; where it is not given, every job begins as soon as its parents have ended.
    """
    seconds = expected_s(jobs, plan, durations)
    known = not np.isnan(seconds).any()
    return Forecast(
        tuple(_kinds(jobs, seconds)),
        float(seconds.sum()) if known else None,
        critical_path_s(jobs, seconds) if known else None,
        (least_s or partial(critical_path_s, jobs))(seconds) if known else None,
    )


def _kinds(jobs: Jobs, seconds: npt.NDArray[np.float64]) -> list[JobKind]:
    """Return the kinds of jobs, in the order in which they come first."""
    members: dict[tuple[str, int, int | None], list[int]] = {}
    for job in jobs:
        request = jobs.request(job)
        members.setdefault((jobs.name(job), request.cores, request.memory_bytes), []).append(job)
    kinds = []
    for (name, cores, memory_bytes), own in members.items():
        limit_s = float(jobs.walltime_s[own].max())
        total_s = float(seconds[own].sum())
        request = JobRequest(cores, memory_bytes, None if np.isinf(limit_s) else limit_s)
        n_quanta = sum(len(jobs.quanta(job)) for job in own)
        kinds.append(JobKind(name, len(own), n_quanta, request, None if np.isnan(total_s) else total_s))
    return kinds
