"""What the arrays of Slurm cost: jobs that wait for more than their prerequisites, in a simulated cluster.

The arrays are those that are submitted (`qgexec.batch.slurmarrays`); the cluster starts what may start in
the order of submission, as Slurm does where nothing else decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.compare import Settings
from benchmarks.tables import Section, Table
from qgexec.batch.jobs import JobRequest, Jobs
from qgexec.batch.slurmarrays import Array, make_arrays, waves
from qgexec.clustering.clusters import Clusters

__all__ = ["simulated_s", "wave_arrays", "waves_cost"]

_MAX_TASKS = 1000

_ARRAYS_PER_S = 5
"""Calls of sbatch in a second."""

Parents = list[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A graph of jobs, and what they are on average."""

    name: str
    jobs: Jobs
    mean_s: npt.NDArray[np.float64]
    """Shape ``(n,)``, seconds."""


def waves_cost(settings: Settings) -> Section:
    """Compare what Slurm can be told with jobs that wait for their parents alone."""
    rng = np.random.default_rng(settings.seed)
    shapes = [_visits(settings.exposures or 50, settings.detectors or 189), _coadds(rng)]
    rows, data = [], []
    for shape in shapes:
        seconds = _durations(shape.mean_s, rng)
        ways = {
            "ideal": _one_by_one(shape.jobs),
            "waves": wave_arrays(shape.jobs),
            "barriers": make_arrays(shape.jobs, _MAX_TASKS, lanes=False),
            "lanes": make_arrays(shape.jobs, _MAX_TASKS),
            "lanes of 200": make_arrays(shape.jobs, 200),
        }
        for slots in (200, 2000, len(shape.jobs)):
            found = {name: simulated_s(arrays, shape.jobs, seconds, slots) for name, arrays in ways.items()}
            where = "no limit" if slots == len(shape.jobs) else str(slots)
            ratios = (f"{found[name] / found['ideal']:.2f}" for name in ways if name != "ideal")
            rows.append((shape.name, where, f"{found['ideal'] / 60:.0f} min", *ratios))
            data.append({"shape": shape.name, "slots": slots, **found})
        calls = (str(len(arrays)) for name, arrays in ways.items() if name != "ideal")
        rows.append((shape.name, "calls of sbatch", f"({len(shape.jobs)} jobs)", *calls))
    header = ("jobs", "running at once", "ideal", *(name for name in ways if name != "ideal"))
    return Section(
        name="waves",
        title="Waiting that Slurm's arrays cost, simulated",
        tables=(Table(header, tuple(rows)),),
        data={"runs": data},
        notes=(
            "Wall time, divided by that of jobs that each wait for their parents alone (ideal).",
            "waves: one barrier for each step of the longest path.",
            "barriers: jobs whose parents are in the same arrays share an array.",
            f"lanes: chains wait for their own parent alone; this is submitted, in arrays of {_MAX_TASKS}.",
            f"Submission, {_ARRAYS_PER_S} calls a second, is not in the times.",
            "Run times are log-normal, a factor of 1.6 either way; one job in 50 takes 5 times as long.",
        ),
    )


def simulated_s(arrays: Sequence[Array], jobs: Jobs, seconds: npt.NDArray[np.float64], slots: int) -> float:
    """Return the time until all jobs have ended.

    Parameters
    ----------
    arrays
        The arrays in the order of submission.
    jobs
        The jobs.
    seconds
        Run time of each job; shape ``(n,)``.
    slots
        How many run at once.
    """
    array_of = {job: number for number, array in enumerate(arrays) for job in array.jobs}
    left = [len(array.jobs) for array in arrays]
    awaited = [len(array.waits_for) for array in arrays]
    waiting: list[list[int]] = [[] for _ in arrays]
    followers: dict[int, list[int]] = {}
    ready: list[tuple[int, int]] = []
    for number, array in enumerate(arrays):
        for other in array.waits_for:
            waiting[other].append(number)
        if array.lane_of is not None:
            for job in array.jobs:
                followers.setdefault(jobs.parents(job)[0], []).append(job)
        elif not array.waits_for:
            ready += [(number, job) for job in array.jobs]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, job = heapq.heappop(ready)
            heapq.heappush(running, (now + float(seconds[job]), job))
        now, job = heapq.heappop(running)
        begun = followers.get(job, [])
        number = array_of[job]
        left[number] -= 1
        if not left[number]:
            for other in waiting[number]:
                awaited[other] -= 1
                if not awaited[other]:
                    begun = [*begun, *arrays[other].jobs]
        for each in begun:
            heapq.heappush(ready, (array_of[each], each))
    return now


def wave_arrays(jobs: Jobs) -> list[Array]:
    """Return one array for each step of the longest path, whatever its jobs ask for."""
    found = []
    for number, members in enumerate(waves(jobs)):
        awaited = (number - 1,) if number else ()
        found.append(Array(tuple(members), tuple(range(len(members))), JobRequest(), waits_for=awaited))
    return found


def _one_by_one(jobs: Jobs) -> list[Array]:
    return [Array((job,), (0,), JobRequest(), waits_for=tuple(jobs.parents(job))) for job in jobs]


def _durations(mean_s: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    seconds = mean_s * rng.lognormal(0.0, 0.5, len(mean_s))
    seconds[rng.random(len(mean_s)) < 1 / 50] *= 5
    return seconds


def _visits(n_visits: int, n_detectors: int) -> Shape:
    """isr, calibrate: one each for a visit and detector; a summary for each visit; one for all."""
    n = n_visits * n_detectors
    parents: Parents = [() for _ in range(n)]
    parents += [(job,) for job in range(n)]
    parents += [range(n + v * n_detectors, n + (v + 1) * n_detectors) for v in range(n_visits)]
    parents.append(range(2 * n, 2 * n + n_visits))
    means = [60.0] * n + [240.0] * n + [120.0] * n_visits + [300.0]
    memory = [2] * n + [4] * n + [8] * (n_visits + 1)
    return Shape("visits", _jobs(parents, memory), np.asarray(means))


def _coadds(rng: np.random.Generator) -> Shape:
    """isr, calibrate, warps of what overlaps each of 400 patches, a coadd and a detection of each."""
    n, n_patches = 4000, 400
    parents: Parents = [() for _ in range(n)]
    parents += [(job,) for job in range(n)]
    means, memory = [60.0] * n + [240.0] * n, [2] * n + [4] * n
    coadds: list[list[int]] = []
    for _ in range(n_patches):
        visits = rng.choice(n // 20, 20, replace=False)
        coadds.append([])
        for visit in visits:
            first = int(visit) * 20 + int(rng.integers(17))
            coadds[-1].append(len(parents))
            parents.append(range(n + first, n + first + 4))
            means.append(90.0)
            memory.append(8)
    for warps in coadds:
        parents.append(warps)
    parents += [(len(parents) - n_patches + patch,) for patch in range(n_patches)]
    means += [600.0] * n_patches + [300.0] * n_patches
    memory += [16] * n_patches + [8] * n_patches
    return Shape("coadds", _jobs(parents, memory), np.asarray(means))


def _jobs(parents: Parents, memory_gib: Sequence[int]) -> Jobs:
    n = len(parents)
    clusters = Clusters.from_arrays(
        {
            "names": np.frombuffer(b"job", dtype=np.uint8),
            "name_codes": np.zeros(n, dtype=np.int64),
            "quantum_offsets": np.arange(n + 1),
            "quanta": np.arange(n),
            "parent_offsets": np.cumsum([0, *(len(row) for row in parents)]),
            "parents": np.concatenate([np.asarray(row, dtype=np.int64) for row in parents]),
        }
    )
    memory = np.asarray(memory_gib, dtype=np.int64) << 30
    return Jobs(clusters, np.ones(n, dtype=np.int32), memory, np.full(n, np.inf))
