"""Runs on a real HTCondor pool: all outputs, each once, whatever is killed, removed or stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from repos import N_QUANTA, dump_repository

from qgexec.batch.rounds import Round
from qgexec.books.journal import read_events
from qgexec.events import AttemptLost, AttemptOutOfMemory, AttemptTimedOut, Event
from tests.sites.condor import CHECKOUT, UID, CondorPool, missing
from tests.sites.jobtask import GO, MOODS
from tests.test_faults import fill

pytestmark = [pytest.mark.condor, pytest.mark.timeout(900)]

_RUN_S = 300.0
_POLL_S = 0.5

_EXTRA = """
use POLICY : HOLD_IF_MEMORY_EXCEEDED
MachineMaxVacateTime = 5
SUBMIT_REQUIREMENT_NAMES = Account
SUBMIT_REQUIREMENT_Account = AcctGroup =!= "refused"
SUBMIT_REQUIREMENT_Account_REASON = "the account refused has no time left"
"""

_DISK_BYTES = 24 << 20
"""Room on a disk of a test's own: several times what a run needs."""

_SETTINGS = "clusterAlgorithm: chunks\nchunkSize: 4\n"


@dataclass(frozen=True, slots=True)
class Site:
    """A pool, a repository of its own for a test, and what the local run of the same graph has left."""

    pool: CondorPool
    folder: Path
    expected: dict[str, object]

    @property
    def run_dir(self) -> Path:
        return self.folder / "a run"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PYTHONPATH": f"{CHECKOUT / 'src'}:{CHECKOUT}:{CHECKOUT / 'tests' / 'rubin'}",
            "QGEXEC_MOODS_DIR": str(self.folder),
        }

    def moods(self, **moods: str) -> None:
        """Say what quanta do, by label, visit and detector: ``isr_1_2``."""
        by_name = {re.sub(r"_(\d)_(\d)$", r" \1,\2", name): mood for name, mood in moods.items()}
        (self.folder / MOODS).write_text(json.dumps(by_name))

    def qgexec(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.pool.run("qgexec", *arguments, timeout_s=_RUN_S, env=self.env, check=check)

    def arguments(self, settings: str = "", *more: str) -> list[str | Path]:
        config = self.folder / "site.yaml"
        config.write_text(_SETTINGS + settings)
        named: list[str | Path] = ["-b", self.folder / "repo", "-g", self.folder / "graph.qg"]
        return [
            *named,
            "--run-dir",
            self.run_dir,
            "--register-dataset-types",
            "--model",
            "htcondor",
            "--resources",
            config,
            *more,
        ]

    def all_of_isr_wait(self) -> None:
        """Have both jobs of isr wait, whichever quanta are in which of them."""
        self.moods(**{f"isr_{visit}_{detector}": "wait" for visit in (1, 2) for detector in (1, 2, 3, 4)})

    def submit(self, settings: str = "", *more: str) -> None:
        self.qgexec("submit", *self.arguments(settings, *more))

    def round(self, number: int = 1) -> Round:
        return Round.open(self.run_dir / "batch" / f"{number:04d}")

    def n_rounds(self) -> int:
        return len(list((self.run_dir / "batch").glob("*/round.json")))

    def queue(self) -> list[str]:
        return self.pool.run("condor_q", "-allusers", "-autoformat", "ClusterId").stdout.split()

    def wait_for_the_end(self) -> None:
        """Wait until nothing is in the queue any more."""
        _wait_until(lambda: not self.queue(), "the queue does not become empty")

    def wait_for_quanta(self, n_quanta: int) -> None:
        """Wait until so many have begun."""
        began = self.folder / "began"
        _wait_until(
            lambda: began.exists() and len(began.read_text().splitlines()) >= n_quanta,
            f"less than {n_quanta} quanta begin",
        )

    def wait_for(self, name: str, times: int = 1) -> None:
        """Wait until a quantum has begun so often."""
        began = self.folder / "began"

        def has_begun() -> bool:
            return began.exists() and began.read_text().splitlines().count(name) >= times

        _wait_until(has_begun, f"{name} does not begin")

    def events(self) -> list[Event]:
        """Return all that is in the run's journal."""
        return list(read_events(self.run_dir / "journal"))

    def check_outputs(self) -> None:
        """Everything that the local run has left is there, each once, and nothing else."""
        found = dump_repository(self.folder / "repo")
        assert found["datasets"] == self.expected["datasets"]
        assert found["files"] == self.expected["files"]


@pytest.fixture(scope="module")
def pool() -> Iterator[CondorPool]:
    """A running pool; it says that it has more cores than there are, for jobs mostly wait."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with CondorPool(n_cpus=4, extra=_EXTRA) as running:
        yield running


@pytest.fixture(scope="module")
def template(pool: CondorPool) -> tuple[Path, dict[str, object]]:
    """A repository, and what a local run leaves in a copy of it."""
    folder = pool.shared / "template"
    made = Site(pool, pool.shared / "local", {})
    pool.run("python", "-m", "tests.sites.jobtask", folder, env=made.env, timeout_s=_RUN_S)
    shutil.copytree(folder, made.folder)
    _give(made.folder)
    local: list[str | Path] = ["-b", made.folder / "repo", "-g", made.folder / "graph.qg", "-j", "2"]
    made.qgexec("run", *local, "--run-dir", made.run_dir, "--register-dataset-types")
    return folder, dump_repository(made.folder / "repo")


@pytest.fixture
def site(pool: CondorPool, template: tuple[Path, dict[str, object]], request: Any) -> Iterator[Site]:
    """A repository of this test's own, in a folder with blanks in its name; its jobs go with it."""
    folder = pool.shared / f"it's {request.node.name}"[:60]
    shutil.copytree(template[0], folder)
    _give(folder)
    yield Site(pool, folder, template[1])
    (folder / GO).touch()
    pool.run("condor_rm", "-all", check=False)
    _wait_until(
        lambda: not pool.run("condor_q", "-allusers", "-autoformat", "ClusterId").stdout.split(),
        "jobs stay in the queue",
    )


def _give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)


def _wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _RUN_S
    while not is_so():
        assert time.monotonic() < until, otherwise
        time.sleep(_POLL_S)


@pytest.mark.thorough
def test_a_run_is_watched_to_its_end(site: Site) -> None:
    """The driver waits, shows progress, and takes in what a local run makes of the same graph."""
    done = site.qgexec("run", *site.arguments())
    assert "19/19 done" in done.stderr
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
    assert "completed" in site.qgexec("status", site.run_dir).stdout


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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_quantum_over_the_time_of_its_job(site: Site) -> None:
    """A quantum that would outlast its job has timed out; what does not wait for it is done."""
    site.moods(isr_1_2="wait")
    site.submit("jobWalltime: 40\n")
    site.wait_for_the_end()
    assert [event.retried for event in site.events() if isinstance(event, AttemptTimedOut)] == [False]
    report = site.qgexec("report", site.run_dir, check=False).stdout
    assert re.search(rf"^total +{N_QUANTA} +15 +1 ", report, re.MULTILINE), report


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
            out, _ = driver.communicate(timeout=_RUN_S)
        finally:
            driver.kill()
    assert driver.returncode == 0, out
    site.check_outputs()


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


def test_a_refused_account_is_told(site: Site) -> None:
    """The schedd's own words are in the message, and nothing was submitted."""
    done = site.qgexec("submit", *site.arguments("accountingGroup: refused\n"), check=False)
    assert done.returncode == 2
    assert "the account refused has no time left" in done.stderr
    assert not site.queue()


@pytest.mark.thorough
def test_memory_over_any_machines_is_told(site: Site) -> None:
    """A job that would wait for ever is not submitted."""
    done = site.qgexec("submit", *site.arguments("requestMemory: 100000\n"), check=False)
    assert done.returncode == 2
    assert "no machine of the pool can take isr" in done.stderr
    assert "more than there is" not in done.stderr  # as a local run would say of its own machine
    assert not site.queue()


@pytest.mark.thorough
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


@pytest.mark.thorough
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
    _wait_until(lambda: site.queue() == [cluster], "jobs do not leave the queue")
    site.pool.run("condor_release", cluster)
    site.wait_for_the_end()
    site.check_outputs()
    assert site.n_rounds() == 1


@pytest.mark.thorough
def test_disk_of_the_run_directory_fills_up(site: Site) -> None:
    """Jobs end, for they cannot say what they do, and DAGMan ends too; with room again all goes on."""
    site.run_dir.mkdir()
    disk = site.pool.mount_disk(site.run_dir, _DISK_BYTES)
    site.all_of_isr_wait()
    site.submit()
    site.wait_for_quanta(2)
    fill(disk / "ballast")
    (site.folder / GO).touch()
    _wait_until(lambda: not _jobs_that_run(site), "jobs go on")
    assert site.qgexec("resume", site.run_dir, check=False).returncode == 2
    (disk / "ballast").unlink()
    site.qgexec("resume", site.run_dir)
    site.check_outputs()
    site.wait_for_the_end()
    assert len(list((disk / "batch").glob("*/round.json"))) == 1


@pytest.mark.thorough
def test_dagman_misses_how_jobs_ended(site: Site) -> None:
    """Where its log was torn it waits for a job that is long gone: the DAG is removed, the run goes on."""
    site.moods(calibrate_1_2="wait")
    site.submit()
    site.wait_for("calibrate 1,2")
    log = site.round().folder / "round.dag.nodes.log"
    with log.open("a") as file:
        file.write("005 (001.000.000) 2026-01-01 00:00:00 Jo")  # and then the disk was full
    (site.folder / GO).touch()
    _wait_until(lambda: len(site.queue()) == 1, "jobs do not leave the queue")
    _wait_until(lambda: time.time() - log.stat().st_mtime > 30, "DAGMan goes on")
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
