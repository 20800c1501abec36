"""Runs on a real HTCondor pool: limits of memory, time and disk, and what somebody does to jobs by hand."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from qgexec.events import AttemptOutOfMemory, AttemptTimedOut
from tests.kit.butler.repos import N_QUANTA
from tests.kit.processes.disks import fill
from tests.kit.sites.condorruns import DISK_BYTES, Site, wait_until
from tests.kit.tasks.jobtask import GO

pytestmark = [pytest.mark.condor, pytest.mark.timeout(900)]


@pytest.mark.site
def test_a_job_over_its_memory_gets_more(site: Site) -> None:
    """A quantum for which the pool ends its job is tried again with more memory, and its DAG goes on."""
    site.moods(isr_1_2="hog 500")
    site.submit("requestMemory: 300\n")
    site.wait_for_the_end()
    site.check_outputs()
    ends = [event for event in site.events() if isinstance(event, AttemptOutOfMemory)]
    assert {event.index for event in ends} == {ends[0].index}
    assert all(event.retried for event in ends)
    assert site.n_rounds() == 1


@pytest.mark.site
def test_a_quantum_over_the_time_of_its_job(site: Site) -> None:
    """A quantum that would outlast its job has timed out; what does not wait for it is done."""
    site.moods(isr_1_2="wait")
    site.submit("jobWalltime: 40\n")
    site.wait_for_the_end()
    assert [event.retried for event in site.events() if isinstance(event, AttemptTimedOut)] == [False]
    report = site.qgexec("report", site.run_dir, check=False).stdout
    assert re.search(rf"^total +{N_QUANTA} +15 +1 ", report, re.MULTILINE), report


@pytest.mark.site
def test_a_stopped_job_is_ended_by_its_time_limit(site: Site) -> None:
    """A job that cannot end itself is ended by HTCondor, and its quantum is charged for the time."""
    site.moods(isr_1_2="wait")
    site.submit("jobWalltime: 40\n", "--retries", "1")
    site.wait_for("isr 1,2")
    site.pool.run("pkill", "-STOP", "-f", f"qgexec worker .*{site.folder.name[-20:]}.*--job")
    site.wait_for("isr 1,2", times=2)
    (site.folder / GO).touch()
    site.wait_for_the_end()
    site.check_outputs()
    assert [event.retried for event in site.events() if isinstance(event, AttemptTimedOut)] == [True]


@pytest.mark.site
def test_memory_over_any_machines_is_told(site: Site) -> None:
    """A job that would wait for ever is not submitted."""
    done = site.qgexec("submit", *site.arguments("requestMemory: 100000\n"), check=False)
    assert done.returncode == 2
    assert "no machine of the pool can take isr" in done.stderr
    assert "more than there is" not in done.stderr  # as a local run would say of its own machine
    assert not site.queue()


@pytest.mark.site
def test_a_held_job_is_told(site: Site) -> None:
    """A job on hold is in the status with HTCondor's reason, and goes on when it is released."""
    site.all_of_isr_wait()
    site.submit()
    site.wait_for_quanta(2)
    cluster = str((site.round().ticket or {})["cluster"])
    site.pool.run("condor_hold", "-constraint", f'DAGManJobId == {cluster} && DAGNodeName == "j0"')
    status = site.qgexec("status", site.run_dir).stdout
    assert "via condor_hold" in status, status
    (site.folder / GO).touch()
    site.pool.run("condor_release", "-constraint", f'DAGManJobId == {cluster} && DAGNodeName == "j0"')
    site.wait_for_the_end()
    site.check_outputs()


@pytest.mark.site
def test_what_somebody_does_by_hand(site: Site) -> None:
    """A job that is removed is tried again; while DAGMan is on hold what runs goes on, and nothing begins."""
    site.all_of_isr_wait()
    site.submit()
    site.wait_for_quanta(2)
    cluster = str((site.round().ticket or {})["cluster"])
    site.pool.run("condor_rm", "-constraint", f'DAGManJobId == {cluster} && DAGNodeName == "j0"')
    site.wait_for_quanta(3)
    site.pool.run("condor_hold", cluster)
    assert "DAGMan is held: via condor_hold" in site.qgexec("status", site.run_dir).stdout
    (site.folder / GO).touch()
    wait_until(lambda: site.queue() == [cluster], "jobs do not leave the queue")
    site.pool.run("condor_release", cluster)
    site.wait_for_the_end()
    site.check_outputs()
    assert site.n_rounds() == 1


@pytest.mark.site
def test_disk_of_the_run_directory_fills_up(site: Site) -> None:
    """Jobs end, for they cannot say what they do, and DAGMan ends too; with room again all goes on."""
    site.run_dir.mkdir()
    disk = site.pool.mount_disk(site.run_dir, DISK_BYTES)
    site.all_of_isr_wait()
    site.submit()
    site.wait_for_quanta(2)
    fill(disk / "ballast")
    (site.folder / GO).touch()
    wait_until(lambda: not _jobs_that_run(site), "jobs go on")
    assert site.qgexec("resume", site.run_dir, check=False).returncode == 2
    (disk / "ballast").unlink()
    site.qgexec("resume", site.run_dir)
    site.check_outputs()
    site.wait_for_the_end()
    assert len(list((disk / "batch").glob("*/round.json"))) == 1


@pytest.mark.site
def test_dagman_misses_how_jobs_ended(site: Site) -> None:
    """Where its log was torn it waits for a job that is long gone: the DAG is removed, the run goes on."""
    site.moods(calibrate_1_2="wait")
    site.submit()
    site.wait_for("calibrate 1,2")
    log = site.round().folder / "round.dag.nodes.log"
    with log.open("a") as file:
        file.write("005 (001.000.000) 2026-01-01 00:00:00 Jo")  # and then the disk was full
    (site.folder / GO).touch()
    wait_until(lambda: len(site.queue()) == 1, "jobs do not leave the queue")
    wait_until(lambda: time.time() - log.stat().st_mtime > 30, "DAGMan goes on")
    assert len(site.queue()) == 1, Path(f"{site.round().folder}/round.dag.dagman.out").read_text()
    ago_s = time.time() - 1000
    os.utime(log, (ago_s, ago_s))  # as if it had waited for so long
    assert "not in the queue any more" in site.qgexec("status", site.run_dir).stdout
    site.qgexec("resume", site.run_dir)
    site.check_outputs()
    site.wait_for_the_end()
    assert site.n_rounds() == 2


def _jobs_that_run(site: Site) -> list[str]:
    constraint = "JobStatus == 2 && DAGNodeName =!= undefined"
    shown = site.pool.run("condor_q", "-allusers", "-constraint", constraint, "-autoformat", "ClusterId")
    return shown.stdout.split()
