"""Jobs as numbers: what each has and asks for, and that they survive being written down."""

from __future__ import annotations

import pytest

from qgexec.batch.jobs import JobRequest, Jobs
from qgexec.errors import RunDirError
from tests.kit.batch.roundwork import PLAN, attempt, jobs_of


def test_what_a_job_asks_for() -> None:
    """The most cores and the most memory of its quanta; the sum of their times, and a moment to begin."""
    asking = attempt(PLAN, 0, 2, 100, timeout_s=60.0), attempt(PLAN, 1, 1, 300, timeout_s=30.0)
    jobs = jobs_of(PLAN, None, *asking)
    assert list(jobs.quanta(0)) == [0, 1]
    assert jobs.request(0) == JobRequest(2, 300, 60.0 + 30.0 + 120.0)


def test_no_request_and_no_limit() -> None:
    """Nothing is asked for where no quantum says anything; one quantum without a limit is enough for none."""
    jobs = jobs_of(PLAN, None, attempt(PLAN, 0, timeout_s=60.0))
    assert [jobs.request(job) for job in jobs] == [JobRequest(1, None, None)] * len(jobs)


def test_a_time_limit_for_all() -> None:
    """Quanta without time limits get that of the settings; those that have some need it not."""
    asking = attempt(PLAN, 0, timeout_s=60.0), attempt(PLAN, 1, timeout_s=30.0)
    jobs = jobs_of(PLAN, None, *asking, walltime_s=1000.0)
    assert [jobs.request(job).walltime_s for job in jobs] == [210.0, 1000.0, 1000.0, 1000.0]


def test_order_and_urgency() -> None:
    """Parents come first, and those with most behind them are most urgent."""
    jobs = jobs_of(PLAN)
    assert [list(jobs.parents(job)) for job in jobs] == [[], [], [0, 1], [2]]
    assert jobs.priorities().tolist() == [3, 3, 2, 1]
    assert [jobs.name(job) for job in jobs] == ["isr", "isr", "coadd", "stack"]


def test_jobs_come_back_as_they_were() -> None:
    """Quanta, parents, names and requests."""
    jobs = jobs_of(PLAN, None, attempt(PLAN, 0, 2, 100, timeout_s=60.0), walltime_s=50.0)
    again = Jobs.from_arrays(jobs.to_arrays())
    assert list(again) == list(jobs) != []
    for job in jobs:
        assert list(again.quanta(job)) == list(jobs.quanta(job))
        assert list(again.parents(job)) == list(jobs.parents(job))
        assert (again.name(job), again.request(job)) == (jobs.name(job), jobs.request(job))


@pytest.mark.parametrize("name", sorted(jobs_of(PLAN).to_arrays()))
@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_damaged_jobs(name: str, harm: str) -> None:
    """Arrays that are missing or do not fit together are an error, not other jobs."""
    arrays = jobs_of(PLAN).to_arrays()
    if harm == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name][: len(arrays[name]) // 2]
    with pytest.raises(RunDirError, match="the stored jobs are damaged"):
        Jobs.from_arrays(arrays)
