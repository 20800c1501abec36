"""The tests' own Slurm is a real one, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.sites.slurm import Slurm, missing

pytestmark = [
    pytest.mark.site,
    pytest.mark.slurm,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_WAIT_S = 60.0
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: Unix sockets are in it, and several workers of pytest make names long."""
    with tempfile.TemporaryDirectory(prefix="qgexec-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("site")) as slurm:
        yield slurm


def test_an_array_waits_for_another_one_task_by_task(slurm: Slurm) -> None:
    """With ``aftercorr`` a task starts after the same one of the other array has succeeded, and only then."""
    first = _submit(slurm, "--array=0-2", script="exit $((SLURM_ARRAY_TASK_ID == 1))")
    second = _submit(slurm, "--array=0-2", f"--dependency=aftercorr:{first}", "--kill-on-invalid-dep=yes")
    last = _submit(slurm, f"--dependency=afterany:{second}")

    tasks = _wait_for(slurm, first, second, last)

    assert [tasks[first, index]["job_state"] for index in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [tasks[second, index]["job_state"] for index in range(3)] == [
        "COMPLETED",
        "CANCELLED",
        "COMPLETED",
    ]
    assert tasks[last, None]["job_state"] == "COMPLETED"
    ended = max(tasks[second, index]["end_time"] for index in range(3))
    assert tasks[last, None]["start_time"] >= ended


def test_an_exit_code_is_a_wait_status(slurm: Slurm) -> None:
    """squeue gives what wait(2) does."""
    job = _submit(slurm, script="exit 3")

    status = _wait_for(slurm, job)[job, None]["exit_code"]

    assert os.waitstatus_to_exitcode(status) == 3


def test_a_controller_comes_back_with_its_jobs(slurm: Slurm, tmp_path: Path) -> None:
    """While slurmctld is away commands fail, and the jobs go on; it knows them all when it is back."""
    go = tmp_path / "go"
    running = _submit(slurm, script=f"until [ -e {go} ]; do sleep 0.05; done")
    pending = _submit(slurm, f"--dependency=afterok:{running}")
    _until(lambda: _jobs(slurm)[running, None]["job_state"] == "RUNNING")

    slurm.stop_controller()
    assert slurm.run("scontrol", "ping", check=False).returncode != 0
    go.touch()
    slurm.start_controller()

    jobs = _wait_for(slurm, running, pending)
    assert {jobs[job, None]["job_state"] for job in (running, pending)} == {"COMPLETED"}


def test_a_node_that_goes_takes_its_jobs_along(slurm: Slurm) -> None:
    """A job that may not start again has failed with its node."""
    job = _submit(slurm, "--no-requeue", script="sleep 600")
    _until(lambda: _jobs(slurm)[job, None]["job_state"] == "RUNNING")

    slurm.stop_node()
    slurm.set_node("down")
    state = _wait_for(slurm, job)[job, None]["job_state"]
    slurm.start_node()

    assert state == "NODE_FAIL"
    after = _submit(slurm)
    assert _wait_for(slurm, after)[after, None]["job_state"] == "COMPLETED"


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """All daemons and jobs have ended with it, even a job's process that went into the background."""
    with Slurm(tmp_path) as slurm:
        _detach_a_sleep(slurm)
        assert _processes(slurm.folder)

    assert _processes(slurm.folder) == []


def test_nothing_is_left_when_its_user_is_killed(tmp_path: Path) -> None:
    """The same holds when the process that started it was killed."""
    program = (
        "import sys, time; from pathlib import Path; from tests.kit.sites.slurm import Slurm\n"
        "with Slurm(Path(sys.argv[1])) as slurm:\n"
        "    print(slurm.folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as user:
        try:
            assert user.stdout is not None
            slurm = Slurm(tmp_path)
            slurm.folder = Path(user.stdout.readline().strip())
            _detach_a_sleep(slurm)
        finally:
            user.kill()

    _until(lambda: _processes(slurm.folder) == [])


def test_settings_are_the_callers(tmp_path: Path) -> None:
    """Limits of its own are Slurm's."""
    with Slurm(tmp_path, max_array_size=5, extra={"KillWait": "3"}) as slurm:
        settings = slurm.run("scontrol", "show", "config").stdout
        refused = slurm.run("sbatch", "--array=5", "--wrap=true", check=False)

    assert "KillWait                = 3 sec\n" in settings
    assert refused.stderr == "sbatch: error: Batch job submission failed: Invalid job array specification\n"


@pytest.mark.skipif(missing(accounting=True) is not None, reason=str(missing(accounting=True)))
def test_accounting_remembers_what_the_controller_forgot(tmp_path: Path) -> None:
    """With a database, ``sacct`` speaks of jobs of any age."""
    with Slurm(tmp_path, accounting=True, min_job_age_s=2) as slurm:
        job = _submit(slurm, "--comment=mine", script="exit 3")
        _until(lambda: slurm.run("scontrol", "show", "job", str(job), check=False).returncode != 0)
        fields = "--format=JobID,State,ExitCode,Comment"
        known = slurm.run("sacct", "-X", "--noheader", "--parsable2", fields, f"--jobs={job}").stdout

    assert known == f"{job}|FAILED|3:0|mine\n"


def test_a_long_path_is_refused(tmp_path: Path) -> None:
    """A socket's name would be cut, and nobody would find it."""
    parent = tmp_path / ("x" * 80)
    parent.mkdir()

    with pytest.raises(RuntimeError, match="too long for a socket"), Slurm(parent):
        pass


def _submit(slurm: Slurm, *options: str, script: str = "true") -> int:
    return int(slurm.run("sbatch", "--parsable", *options, stdin=f"#!/bin/sh\n{script}\n").stdout)


def _jobs(slurm: Slurm) -> dict[tuple[int, int | None], dict[str, Any]]:
    """All jobs by number and, those of arrays, index; tasks that wait together are left out."""
    jobs = json.loads(slurm.run("squeue", "--json").stdout)["jobs"]
    return {
        (job["array_job_id"] or job["job_id"], job["array_task_id"]): job
        for job in jobs
        if not job["array_task_string"]
    }


def _wait_for(slurm: Slurm, *numbers: int) -> dict[tuple[int, int | None], dict[str, Any]]:
    def ended() -> bool:
        jobs = json.loads(slurm.run("squeue", "--json").stdout)["jobs"]
        mine = [job for job in jobs if (job["array_job_id"] or job["job_id"]) in numbers]
        return {job["job_state"] for job in mine} <= _ENDED

    _until(ended)
    return _jobs(slurm)


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def _detach_a_sleep(slurm: Slurm) -> None:
    """Have a job start a process that no longer is the job's, and go on itself."""
    mark = slurm.folder / "detached"
    _submit(slurm, script=f"setsid --fork tail -f {slurm.folder}/slurm.conf & touch {mark}; sleep 600")
    _until(lambda: mark.exists() and any("tail -f" in each for each in _processes(slurm.folder)))


def _processes(folder: Path) -> list[str]:
    """The command lines that speak of a Slurm's folder, and slurmstepd's, which does not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
            at = str(path.with_name("cwd").readlink())
        except OSError:
            continue
        if str(folder) in words or str(folder) in at:
            found.append(words)
    return found
