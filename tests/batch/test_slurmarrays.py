"""Jobs are divided into arrays that wait for what they must, and for little else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.batch.forecast import critical_path_s
from qgexec.batch.jobs import Jobs
from qgexec.batch.slurmarrays import Array, least_s, make_arrays, waves
from tests.kit.batch.slurmrounds import jobs_of


@st.composite
def any_jobs(draw: Any) -> Jobs:
    n_jobs = draw(st.integers(1, 40))
    parents = [
        sorted(draw(st.sets(st.integers(0, job - 1), max_size=draw(st.sampled_from([0, 1, 1, 4])))))
        if job
        else []
        for job in range(n_jobs)
    ]
    memory = [draw(st.sampled_from([-1, 1 << 30, 3 << 30])) for _ in parents]
    walltime = [draw(st.sampled_from([60.0, 100.0, 3000.0, math.inf])) for _ in parents]
    return jobs_of(parents, memory_bytes=memory, walltime_s=walltime)


def _place(arrays: list[Array]) -> dict[int, tuple[int, int]]:
    return {
        job: (number, index)
        for number, array in enumerate(arrays)
        for job, index in zip(array.jobs, array.indices, strict=True)
    }


@given(jobs=any_jobs(), max_tasks=st.integers(1, 7), lanes=st.booleans())
def test_every_job_is_in_one_array(jobs: Jobs, max_tasks: int, lanes: bool) -> None:
    """Once, at an index that Slurm takes, with a request that is enough."""
    arrays = make_arrays(jobs, max_tasks, lanes=lanes)
    assert sorted(job for array in arrays for job in array.jobs) == list(jobs)
    for array in arrays:
        assert list(array.indices) == sorted(set(array.indices))
        assert 0 <= array.indices[0] <= array.indices[-1] < max_tasks
        for job in array.jobs:
            asked, given = jobs.request(job), array.request
            assert (asked.cores, asked.memory_bytes) == (given.cores, given.memory_bytes)
            assert (asked.walltime_s or math.inf) <= (given.walltime_s or math.inf)


@given(jobs=any_jobs(), max_tasks=st.integers(1, 7), lanes=st.booleans())
def test_every_parent_is_awaited(jobs: Jobs, max_tasks: int, lanes: bool) -> None:
    """By arrays that come later, so that there is no circle; in a lane only by the same index."""
    arrays = make_arrays(jobs, max_tasks, lanes=lanes)
    place = _place(arrays)
    for number, array in enumerate(arrays):
        assert all(awaited < number for awaited in array.waits_for)
        for job, index in zip(array.jobs, array.indices, strict=True):
            parents = [place[parent] for parent in jobs.parents(job)]
            if array.lane_of is None:
                assert {awaited for awaited, _ in parents} <= set(array.waits_for)
            else:
                assert parents == [(array.lane_of, index)]
                assert array.lane_of < number
                assert not array.waits_for


@given(jobs=any_jobs(), max_tasks=st.integers(1, 7))
def test_a_job_waits_for_no_less_than_its_parents(jobs: Jobs, max_tasks: int) -> None:
    """What the arrays take is what the jobs take at the least, or more."""
    seconds = np.arange(1.0, len(jobs) + 1.0)
    arrays = make_arrays(jobs, max_tasks)
    assert least_s(jobs, arrays, seconds) >= critical_path_s(jobs, seconds) - 1e-9


def test_chains_are_lanes() -> None:
    """Each quantum of a chain waits for its own parent alone, though the parents come in another order."""
    jobs = jobs_of([[], [], [], [2], [0], [1], [3], [4], [5]])
    arrays = make_arrays(jobs, 1000)
    assert [(array.jobs, array.lane_of) for array in arrays] == [
        ((0, 1, 2), None),
        ((4, 5, 3), 0),
        ((7, 8, 6), 1),
    ]
    seconds = np.asarray([1.0, 5.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    assert least_s(jobs, arrays, seconds) == critical_path_s(jobs, seconds) == 11.0
    assert least_s(jobs, make_arrays(jobs, 1000, lanes=False), seconds) == 15.0


def test_a_lane_leaves_indices_out() -> None:
    """Where only some parents have a child, the others' indices are not in its array."""
    arrays = make_arrays(jobs_of([[], [], [], [], [], [0], [1], [4]]), 1000)
    assert [array.index_list() for array in arrays] == ["0-4", "0-1,4"]


def test_the_second_child_is_in_another_lane() -> None:
    """An array has each index once."""
    arrays = make_arrays(jobs_of([[], [], [0], [0], [1]]), 1000)
    assert [(array.jobs, array.lane_of) for array in arrays] == [((0, 1), None), ((2, 4), 0), ((3,), 0)]


def test_children_of_one_job_are_one_call() -> None:
    """A parent that is alone in its array needs no lanes, of which each child would be one."""
    arrays = make_arrays(jobs_of([[], *([0] for _ in range(5))]), 1000)
    assert [(array.jobs, array.waits_for) for array in arrays] == [((0,), ()), ((1, 2, 3, 4, 5), (0,))]


def test_jobs_that_wait_for_the_same_are_together() -> None:
    """A barrier holds up those that need it, and not their neighbours."""
    names = ["a", "a", "b", "b", "c", "d"]
    memory = [1 << 30, 1 << 30, 2 << 30, 2 << 30, 1 << 30, 1 << 30]
    arrays = make_arrays(jobs_of([[], [], [], [], [0, 1], [2, 3]], names=names, memory_bytes=memory), 1000)
    assert [(array.jobs, array.waits_for) for array in arrays[2:]] == [((4,), (0,)), ((5,), (1,))]


def test_arrays_that_are_cut_are_waited_for_one_by_one() -> None:
    """What needs only the first part of a large wave begins after that part."""
    parents = [*([] for _ in range(8)), [0, 1, 2], [3, 4], [5, 6, 7]]
    arrays = make_arrays(jobs_of(parents), 4)
    assert [array.jobs for array in arrays] == [(0, 1, 2, 3), (4, 5, 6, 7), (8,), (9,), (10,)]
    assert [array.waits_for for array in arrays[2:]] == [(0,), (0, 1), (1,)]


def test_few_calls_even_where_all_differ() -> None:
    """Jobs with needs of their own are not submitted one by one: they wait for each other's."""
    n_roots = 400
    roots: list[list[int]] = [[] for _ in range(n_roots)]
    pairs = [[i, (i * 7 + 3) % n_roots] for i in range(n_roots)]
    arrays = make_arrays(jobs_of([*roots, *(sorted(set(pair)) for pair in pairs)]), 4)
    second = [array for array in arrays if min(array.jobs) >= n_roots and array.lane_of is None]
    assert len({array.waits_for for array in second}) <= 32 + n_roots // 50


def test_waves() -> None:
    """By the longest path that ends there."""
    assert waves(jobs_of([[], [0], [0, 1], []])) == [[0, 3], [1], [2]]


@pytest.mark.parametrize("n_jobs", [100_000])
def test_many_jobs(n_jobs: int) -> None:
    """Chains and gatherings of so many jobs are hundreds of calls, not thousands."""
    third = n_jobs // 3
    parents: list[list[int]] = [[] for _ in range(third)]
    parents += [[job] for job in range(third)]
    parents += [list(range(third + at, min(third + at + 100, 2 * third))) for at in range(0, third, 100)]
    arrays = make_arrays(jobs_of(parents), 1000)
    assert len(arrays) <= 2 * (third // 1000 + 1) + 40
