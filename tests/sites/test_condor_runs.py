"""Runs on a real HTCondor pool: all outputs, each once, whatever is killed, removed or stopped."""

from __future__ import annotations

import pytest

from qgexec.events import AttemptLost
from tests.kit.sites.condorruns import RUN_S, Site
from tests.kit.tasks.jobtask import GO

pytestmark = [pytest.mark.condor, pytest.mark.timeout(900)]


@pytest.mark.site
def test_a_run_is_watched_to_its_end(site: Site) -> None:
    """The driver waits, shows progress, and takes in what a local run makes of the same graph."""
    done = site.qgexec("run", *site.arguments())
    assert "19/19 succeeded" in done.stderr
    site.check_outputs()
    assert site.n_rounds() == 1


def test_a_run_goes_on_alone(site: Site) -> None:
    """After submission nobody is there: the closing job takes everything in, and the DAG has ended well."""
    site.submit()
    site.wait_for_the_end()
    site.check_outputs()
    ended = site.pool.run(
        "condor_history",
        str((site.round().ticket or {})["cluster"]),
        "-autoformat",
        "ExitCode",
        "DAG_NodesFailed",
    )
    assert ended.stdout.split() == ["0", "0"]
    assert "succeeded" in site.qgexec("status", site.run_dir).stdout


@pytest.mark.thorough
def test_a_killed_job_is_tried_again(site: Site) -> None:
    """What a job was doing when it was killed with SIGKILL is lost, charged, and done by its next try."""
    site.moods(isr_1_2="wait")
    site.submit()
    site.wait_for("isr 1,2")
    site.pool.run("pkill", "-KILL", "-f", f"qgexec worker .*{site.folder.name[-20:]}.*--job")
    (site.folder / GO).touch()
    site.wait_for_the_end()
    site.check_outputs()
    lost = [event for event in site.events() if isinstance(event, AttemptLost)]
    assert lost
    assert all(event.retried for event in lost)
    assert site.n_rounds() == 1


@pytest.mark.site
def test_a_removed_dag_can_be_resumed(site: Site) -> None:
    """Who removes DAGMan stops the run: its books are closed, nothing new is submitted; resume finishes."""
    site.moods(calibrate_1_2="wait")
    site.submit()
    site.wait_for("calibrate 1,2")
    site.pool.run("condor_rm", str((site.round().ticket or {})["cluster"]))
    site.wait_for_the_end()
    assert site.n_rounds() == 1
    (site.folder / GO).touch()
    site.qgexec("resume", site.run_dir)
    assert site.n_rounds() == 2
    site.check_outputs()


@pytest.mark.site
def test_a_stopped_schedd_is_waited_for(site: Site) -> None:
    """While the schedd is away jobs and driver go on; afterwards DAGMan does."""
    site.moods(isr_1_2="wait")
    driver = site.pool.popen("qgexec", "run", *site.arguments(), env=site.env)
    with driver:
        try:
            site.wait_for("isr 1,2")
            site.pool.stop_schedd()
            site.pool.start_schedd()
            (site.folder / GO).touch()
            out, _ = driver.communicate(timeout=RUN_S)
        finally:
            driver.kill()
    assert driver.returncode == 0, out
    site.check_outputs()


@pytest.mark.site
def test_the_driver_is_killed(site: Site) -> None:
    """The jobs go on; resume takes up what they did, and submits nothing."""
    site.moods(isr_1_2="wait")
    driver = site.pool.popen("qgexec", "run", *site.arguments(), env=site.env)
    with driver:
        site.wait_for("isr 1,2")
        driver.kill()
        driver.communicate(timeout=RUN_S)
    (site.folder / GO).touch()
    site.qgexec("resume", site.run_dir)
    site.check_outputs()
    assert site.n_rounds() == 1
    site.wait_for_the_end()


@pytest.mark.site
def test_cancel_cancels(site: Site) -> None:
    """After `qgexec cancel` nothing of the run is in the queue; what was done is kept, resume finishes."""
    site.moods(calibrate_1_2="wait")
    site.submit()
    site.wait_for("calibrate 1,2")
    said = site.qgexec("cancel", site.run_dir)
    assert "Nothing of the run is left in any queue" in said.stderr
    assert not site.queue()
    (site.folder / GO).touch()
    site.qgexec("resume", site.run_dir)
    site.check_outputs()


@pytest.mark.site
def test_a_refused_account_is_told(site: Site) -> None:
    """The schedd's own words are in the message, and nothing was submitted."""
    done = site.qgexec("submit", *site.arguments("accountingGroup: refused\n"), check=False)
    assert done.returncode == 2
    assert "the account refused has no time left" in done.stderr
    assert not site.queue()
