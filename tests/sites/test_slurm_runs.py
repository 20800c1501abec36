"""Runs on a real Slurm: submitted and left, watched, killed, cancelled; what is there afterwards is whole."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.butler.repos import MockRepository, copy_template
from tests.kit.commands.qgexec import Moods
from tests.kit.sites.slurm import Slurm, missing
from tests.kit.sites.slurmruns import SITE, Runs, job_of, task_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    extra = {"KillWait": "20", "JobAcctGatherParams": "OverMemoryKill"}
    with Slurm(tmp_path_factory.mktemp("site"), cpus=8, memory_mb=8000, extra=extra) as slurm:
        yield slurm


@pytest.fixture
def runs(slurm: Slurm, template: MockRepository, moods: Moods, tmp_path: Path) -> Iterator[Runs]:
    """Commands on a copy of the repository; no job of theirs is left when the test ends."""
    folder = tmp_path / "here"
    folder.mkdir()
    runs = Runs(slurm, copy_template(template, tmp_path / "data"), folder)
    runs.configure(SITE)
    yield runs
    moods.let_go()
    runs.end()


def test_submitted_and_left(runs: Runs, template: MockRepository, tmp_path: Path) -> None:
    """Without a driver the closing job closes the books; the outputs are those of a local run."""
    said = runs.call(*runs.new_run()).stdout
    assert said.strip() == str(runs.run_dir)
    runs.until(runs.is_closed)
    runs.check_outputs()
    ours = runs.repository.dump()

    local = copy_template(template, tmp_path / "local")
    graph = ["-g", str(local.graph), "--register-dataset-types", "-j", "1"]
    runs.call("run", "-b", local.root, *graph, "--run-dir", runs.folder / "local")
    assert ours == local.dump()
    assert runs.n_rounds() == 1
    name = json.loads((runs.run_dir / "batch/0001/round.json").read_text())["name"]
    comments = {job["comment"] for job in runs.jobs() if job["name"] == name}
    assert comments == {"0: isr", "1: calibrate", "2: summary", "3: final", "closing"}


@pytest.mark.site
def test_a_process_is_killed(runs: Runs, moods: Moods) -> None:
    """With -9: the job goes on with what is left, and those behind it wait."""
    moods.set({"isr 1,3": "wait"})
    runs.call(*runs.new_run())
    (pid,) = moods.wait_for(1).values()
    moods.set({})
    os.kill(job_of(pid), signal.SIGKILL)
    runs.until(runs.is_closed)
    runs.check_outputs()
    assert runs.n_rounds() == 1


@pytest.mark.thorough
def test_a_job_is_killed(runs: Runs, moods: Moods, slurm: Slurm) -> None:
    """With -9 and all that belongs to it: the closing job submits what is left."""
    moods.set({"isr 1,3": "wait"})
    runs.call(*runs.new_run())
    (pid,) = moods.wait_for(1).values()
    moods.set({})
    slurm.run("scancel", "--signal=KILL", "--full", task_of(pid))
    runs.until(lambda: runs.n_rounds() == 2)
    runs.until(runs.is_closed)
    runs.check_outputs()


@pytest.mark.site
def test_failing_quanta(runs: Runs, moods: Moods) -> None:
    """Only what follows from them does not run; resume runs them again."""
    moods.set({"isr 1,3": "raise"})
    runs.call(*runs.new_run())
    runs.until(runs.is_closed)
    report = runs.report()
    counts = {task["label"]: task for task in report["tasks"]}
    assert report["state"] == "failed"
    assert counts["isr"]["failed"] == 1
    assert counts["calibrate"]["succeeded"] == 7
    assert counts["summary"]["succeeded"] == 1
    moods.set({})
    runs.call("resume", runs.run_dir)
    runs.check_outputs()


@pytest.mark.site
def test_over_its_memory(runs: Runs, moods: Moods) -> None:
    """Slurm ends the job; the quantum gets more in the next round."""
    moods.set({"isr 1,3": "hog"})
    runs.configure(SITE + "memoryMultiplier: 3\n")
    runs.call(*runs.new_run())
    runs.until(runs.is_closed)
    runs.check_outputs()
    assert runs.n_rounds() == 2


@pytest.mark.site
def test_over_its_time(runs: Runs, moods: Moods, slurm: Slurm) -> None:
    """Slurm ends the job, which hands back what it was at."""
    moods.set({"isr 1,3": "wait"})
    runs.call(*runs.new_run())
    (pid,) = moods.wait_for(1).values()
    moods.set({})
    task = task_of(pid)
    slurm.run("scontrol", "update", f"JobId={task}", "TimeLimit=1")
    runs.until(lambda: runs.n_rounds() == 2)
    assert [job["state"] for job in runs.jobs() if job["id"] == task] == ["TIMEOUT"]
    runs.until(runs.is_closed)
    runs.check_outputs()


@pytest.mark.site
def test_its_time_is_too_short_for_all(runs: Runs, moods: Moods) -> None:
    """A job begins nothing near its end, and goes back into the queue with the rest."""
    moods.set({f"isr 1,{detector}": "slow" for detector in range(1, 5)})  # not all last in their jobs
    runs.configure(SITE + "jobWalltime: 60\n")
    runs.call(*runs.new_run())
    runs.until(runs.is_closed)
    runs.check_outputs()
    assert runs.n_rounds() == 1
    printed = "".join(path.read_text() for path in (runs.run_dir / "batch/0001/logs/000").glob("*.txt"))
    assert "try 2 of" in printed


@pytest.mark.site
def test_slurm_goes_and_comes_back(runs: Runs, moods: Moods, slurm: Slurm) -> None:
    """A driver goes on watching."""
    moods.set({"isr 1,3": "wait"})
    driver = runs.start(*runs.new_run("run"))
    moods.wait_for(1)
    slurm.stop_controller()
    try:
        runs.until(lambda: "go on unseen" in runs.said())
    finally:
        slurm.start_controller()
    moods.let_go()
    assert driver.wait(200) == 0, runs.said()
    runs.check_outputs()
    runs.until(lambda: not runs.left())  # the closing job ends when it finds all done


@pytest.mark.site
def test_the_driver_is_killed(runs: Runs, moods: Moods) -> None:
    """The jobs go on; resume takes up what they did."""
    moods.set({"isr 1,3": "wait"})
    driver = runs.start(*runs.new_run("run"))
    moods.wait_for(1)
    driver.kill()
    driver.wait(60)
    moods.let_go()
    runs.call("resume", runs.run_dir)
    assert runs.n_rounds() == 1
    runs.check_outputs()
    runs.until(lambda: not runs.left())  # the closing job ends when it finds all done


@pytest.mark.site
def test_cancelled(runs: Runs, moods: Moods) -> None:
    """Nothing of it is left in the queue; resume brings it to its end."""
    moods.set({"isr 1,3": "wait"})
    runs.call(*runs.new_run())
    moods.wait_for(1)
    runs.call("cancel", runs.run_dir)
    assert not runs.left()
    report = runs.report()
    assert report["submitted"] is None
    moods.set({})
    runs.call("resume", runs.run_dir)
    runs.check_outputs()


@pytest.mark.site
def test_rounds_of_few_jobs(runs: Runs) -> None:
    """What Slurm should not hold at once is submitted by one closing job after another."""
    runs.configure(SITE + "maxJobs: 4\n")
    runs.call(*runs.new_run())
    runs.until(lambda: runs.n_rounds() == 2 and runs.is_closed())
    runs.check_outputs()


@pytest.mark.site
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("queue: nope", "invalid partition specified: nope"),
        ("requestCpus: 64", "asks for 64 cores"),
        ("requestMemory: 100000", "asks for 1 core and 104.9 GB"),
    ],
)
def test_refused(runs: Runs, line: str, said: str) -> None:
    """One message with Slurm's own words, and nothing is left in it."""
    runs.configure(line + "\n")
    done = runs.call(*runs.new_run(), code=2)
    assert done.stderr.count("Error: ") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not runs.left()
