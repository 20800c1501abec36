"""From jobs to job arrays, and what each array waits for; pure.

One call of sbatch brings in one array, with one request and one dependency for all of its jobs. An array
is one of two things:

- a *lane*: each of its jobs has one parent, and that is the job of the same index in one other array. Each
  starts as soon as its own parent has ended well (``aftercorr``).
- a *barrier*: all of its jobs wait until all jobs of some arrays have ended, however (``afterany``).

Jobs with the same parents' arrays go into the same array, so that a barrier makes a job wait for as few
others as one dependency for an array allows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qgexec.batch.jobs import JobRequest, Jobs

__all__ = ["Array", "least_s", "make_arrays", "waves"]

_FREE = 32
"""So many lanes, and barriers, each wave and request may have, however small they are."""

_MEAN_SIZE = 50
"""Beyond those there is one more lane, or barrier, for each so many jobs: calls of sbatch are dear."""

_Class = tuple[int, int, int]
"""Cores, bytes of memory, and class of the time limit."""


@dataclass(frozen=True, slots=True)
class Array:
    """Jobs that are submitted in one call."""

    jobs: tuple[int, ...]
    """Numbers of its jobs."""

    indices: tuple[int, ...]
    """Their indices in the array, ascending from 0; a lane may leave some out."""

    request: JobRequest
    """What each of them asks for: the most that one does."""

    lane_of: int | None = None
    """Position of the array whose job of the same index is the only parent of each; `None` for a barrier."""

    waits_for: tuple[int, ...] = ()
    """Positions of the arrays of which all jobs must have ended before any of these begins, ascending."""

    def index_list(self) -> str:
        """Return the indices as sbatch takes them: ``0-4,7``."""
        parts, first = [], 0
        for i in range(1, len(self.indices) + 1):
            if i == len(self.indices) or self.indices[i] != self.indices[i - 1] + 1:
                low, high = self.indices[first], self.indices[i - 1]
                parts.append(str(low) if low == high else f"{low}-{high}")
                first = i
        return ",".join(parts)


def make_arrays(jobs: Jobs, max_tasks: int, *, lanes: bool = True) -> list[Array]:
    """Divide jobs into arrays, each after those that it waits for.

    Parameters
    ----------
    jobs
        The jobs.
    max_tasks
        The most jobs that an array may have; their indices are smaller.
    lanes
        Use lanes; `False` is for comparisons.

    Returns
    -------
    arrays
        Each job is in one of them. Time and memory grow with the number of jobs and of their parents.
    """
    making = _Making(jobs, max_tasks, lanes=lanes)
    for members in waves(jobs):
        making.add_wave(members)
    return making.arrays


def waves(jobs: Jobs) -> list[list[int]]:
    """Return the jobs by the number of jobs on the longest path that ends at each."""
    depth = np.zeros(len(jobs), dtype=np.int64)
    found: list[list[int]] = []
    for job in jobs:
        depth[job] = max((int(depth[parent]) + 1 for parent in jobs.parents(job)), default=0)
        if depth[job] == len(found):
            found.append([])
        found[depth[job]].append(job)
    return found


def least_s(jobs: Jobs, arrays: Sequence[Array], seconds: npt.NDArray[np.float64]) -> float:
    """Return the time that the arrays take, however many jobs run at once.

    Parameters
    ----------
    jobs, arrays
        The jobs, and what `make_arrays` made of them.
    seconds
        Run time of each job; shape ``(n,)``.
    """
    ends = np.zeros(len(jobs))
    last = np.zeros(len(arrays))
    for number, array in enumerate(arrays):
        own = list(array.jobs)
        if array.lane_of is None:
            begins: float | npt.NDArray[np.float64] = max((last[a] for a in array.waits_for), default=0.0)
        else:
            begins = np.asarray([ends[jobs.parents(job)[0]] for job in own])
        ends[own] = begins + seconds[own]
        last[number] = ends[own].max()
    return float(last.max(initial=0.0))


class _Making:
    def __init__(self, jobs: Jobs, max_tasks: int, *, lanes: bool) -> None:
        self.arrays: list[Array] = []
        self._jobs = jobs
        self._max_tasks = max_tasks
        self._with_lanes = lanes
        self._array_of = [0] * len(jobs)
        self._index_of = [0] * len(jobs)

    def add_wave(self, members: Sequence[int]) -> None:
        """Add jobs that do not wait for each other; those that they wait for are in arrays already."""
        by_class: dict[_Class, list[int]] = {}
        for job in members:
            by_class.setdefault(_class_of(self._jobs.request(job)), []).append(job)
        for own in by_class.values():
            in_lanes = set()
            for array, lane in self._lanes(own) if self._with_lanes else ():
                self._add(lane, [self._index_of[self._jobs.parents(job)[0]] for job in lane], lane_of=array)
                in_lanes.update(lane)
            for waits_for, group in self._barriers([job for job in own if job not in in_lanes]):
                for at in range(0, len(group), self._max_tasks):
                    part = group[at : at + self._max_tasks]
                    self._add(part, range(len(part)), waits_for=waits_for)

    def _lanes(self, own: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return which jobs can follow one other each, with the array that those are in.

        Of a parent with several such children the first is in one lane, the second in another. One that
        is alone in its array needs none: to wait for the array is to wait for it, in one call for all.
        """
        lanes: dict[tuple[int, int], list[int]] = {}
        n_children: Counter[int] = Counter()
        for job in own:
            parents = self._jobs.parents(job)
            if len(parents) == 1 and len(self.arrays[self._array_of[parents[0]]].jobs) > 1:
                key = (self._array_of[parents[0]], n_children[parents[0]])
                n_children[parents[0]] += 1
                lanes.setdefault(key, []).append(job)
        largest = sorted(lanes.items(), key=lambda lane: -len(lane[1]))
        chosen = largest[: _FREE + len(own) // _MEAN_SIZE]
        return [
            (array, sorted(lane, key=lambda job: self._index_of[self._jobs.parents(job)[0]]))
            for (array, _), lane in sorted(chosen)
        ]

    def _barriers(self, own: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Yield which arrays jobs wait for, and the jobs; those with rare needs wait for each other's."""
        groups: dict[frozenset[int], list[int]] = {}
        for job in own:
            awaited = frozenset(self._array_of[parent] for parent in self._jobs.parents(job))
            groups.setdefault(awaited, []).append(job)
        most = _FREE + len(own) // _MEAN_SIZE
        if len(groups) > most:
            by_size = sorted(groups.items(), key=lambda group: -len(group[1]))
            rare = by_size[most - 1 :]
            groups = dict(by_size[: most - 1])
            union: frozenset[int] = frozenset().union(*(awaited for awaited, _ in rare))
            groups[union] = sorted([*groups.get(union, ()), *(job for _, group in rare for job in group)])
        for awaited, group in sorted(groups.items(), key=lambda item: item[1][0]):
            yield tuple(sorted(awaited)), group

    def _add(
        self,
        own: Sequence[int],
        indices: Sequence[int],
        *,
        lane_of: int | None = None,
        waits_for: tuple[int, ...] = (),
    ) -> None:
        for job, index in zip(own, indices, strict=True):
            self._array_of[job], self._index_of[job] = len(self.arrays), index
        request = _most([self._jobs.request(job) for job in own])
        self.arrays.append(Array(tuple(own), tuple(indices), request, lane_of, waits_for))


def _class_of(request: JobRequest) -> _Class:
    """Return what jobs must have in common to be in one array: cores, memory, and nearly the same time.

    Time limits are sums over the quanta of a job, so that hardly two are the same. Those between two
    powers of 2 are together, and ask for the longest of them.
    """
    time_class = (
        -1 if request.walltime_s is None else max(0, math.ceil(math.log2(max(1.0, request.walltime_s))))
    )
    return (request.cores, -1 if request.memory_bytes is None else request.memory_bytes, time_class)


def _most(requests: Sequence[JobRequest]) -> JobRequest:
    limits = [request.walltime_s for request in requests if request.walltime_s is not None]
    return JobRequest(requests[0].cores, requests[0].memory_bytes, max(limits) if limits else None)
