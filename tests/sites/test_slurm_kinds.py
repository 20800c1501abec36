"""Runs on a Slurm that a site set up in another way (accounting, preemption), or on a disk that fills up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qgexec.books.journal import read_events
from qgexec.events import AttemptLost
from tests.kit.butler.repos import MockRepository, copy_template
from tests.kit.commands.qgexec import Moods
from tests.kit.processes.disks import fill, small_disk
from tests.kit.sites.slurm import Slurm, missing
from tests.kit.sites.slurmruns import SITE, Runs, job_of, task_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.site,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_DISK_BYTES = 24 << 20
"""Room on a disk of a test's own: several times what a run needs."""

Start = Callable[..., Runs]


@pytest.fixture
def start(
    template: MockRepository, moods: Moods, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Starts a Slurm as it is told, and makes commands on a copy of the repository."""
    with ExitStack() as ends:

        def start(*, accounting: bool = False, min_job_age_s: int = 300, **extra: str) -> Runs:
            site = tmp_path_factory.mktemp("site")
            slurm = Slurm(
                site,
                cpus=8,
                memory_mb=8000,
                accounting=accounting,
                min_job_age_s=min_job_age_s,
                extra=extra,
            )
            ends.enter_context(slurm)
            folder = tmp_path / "here"
            folder.mkdir()
            runs = Runs(slurm, copy_template(template, tmp_path / "data"), folder)
            runs.configure(SITE)
            ends.callback(runs.end)
            ends.callback(moods.let_go)
            return runs

        yield start


@pytest.mark.skipif(missing(accounting=True) is not None, reason=str(missing(accounting=True)))
def test_what_slurm_has_forgotten_is_in_its_books(start: Start, moods: Moods) -> None:
    """With an accounting database, how a job was killed is known though squeue does not show it any more."""
    runs = start(accounting=True, min_job_age_s=2)
    moods.set({"isr": "wait"})
    runs.call(*runs.new_run())
    pid, _ = moods.wait_for(2).values()
    moods.set({})
    closing = str(json.loads((runs.run_dir / "batch/0001/ticket.json").read_text())["closing"])
    runs.slurm.run("scontrol", "hold", closing)
    task = task_of(pid)
    _kill_without_a_word(job_of(pid))
    moods.let_go()
    runs.until(lambda: task not in {job["id"] for job in runs.jobs()})
    runs.slurm.run("scontrol", "release", closing)
    runs.until(lambda: runs.n_rounds() == 2 and runs.is_closed())
    runs.check_outputs()
    (lost,) = (event for event in read_events(runs.run_dir / "journal") if isinstance(event, AttemptLost))
    assert "signal 9" in lost.reason


def _kill_without_a_word(job: int) -> None:
    """Kill the process of a job, and the script that would begin it again."""
    script = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(script, signal.SIGSTOP)
    os.kill(job, signal.SIGKILL)
    os.kill(script, signal.SIGKILL)


def _make_room(runs: Runs, moods: Moods, urgent: str, n_rounds: int) -> set[str]:
    """Have a job make room for a more urgent one; return what Slurm says of it when all is done."""
    moods.set({"isr 1,3": "wait"})
    runs.call(*runs.new_run())
    (pid,) = moods.wait_for(1).values()
    task = task_of(pid)
    moods.set({})
    runs.slurm.run("sbatch", urgent, "--exclusive", "--wait", "--wrap=true")
    runs.until(lambda: runs.n_rounds() == n_rounds and runs.is_closed())
    runs.check_outputs()
    printed = (runs.run_dir / "batch/0001/logs/000").glob("*.txt")
    assert any("ended with 75" in path.read_text() for path in printed)  # it was told to end, and said so
    return {job["state"] for job in runs.jobs() if job["id"] == task}


@pytest.mark.parametrize(("mode", "n_rounds"), [("REQUEUE", 1), ("CANCEL", 2)])
def test_preempted(start: Start, moods: Moods, mode: str, n_rounds: int) -> None:
    """A job that had to make room goes on where it was: when Slurm starts it again, or in the next round."""
    urgent = "urgent Nodes=node1 PriorityTier=10 MaxTime=INFINITE State=UP"
    runs = start(PreemptType="preempt/partition_prio", PreemptMode=mode, PartitionName=urgent)
    states = _make_room(runs, moods, "--partition=urgent", n_rounds)
    assert states == ({"COMPLETED"} if mode == "REQUEUE" else {"PREEMPTED"})


@pytest.mark.skipif(missing(accounting=True) is not None, reason=str(missing(accounting=True)))
def test_preempted_by_a_better_quality_of_service(start: Start, moods: Moods) -> None:
    """The same where a site says what may be preempted by its quality of service."""
    runs = start(accounting=True, PreemptType="preempt/qos", PreemptMode="REQUEUE")
    for words in ("qos preemptable", "qos urgent preempt=preemptable", "account lsst"):
        runs.slurm.run("sacctmgr", "--immediate", "add", *words.split())
    runs.slurm.run("sacctmgr", "--immediate", "add", "user", "root", "account=lsst", "qos=preemptable,urgent")
    runs.configure(SITE + "submitLines: [--qos=preemptable]\n")
    assert _make_room(runs, moods, "--qos=urgent", 1) == {"COMPLETED"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own, where one may be mounted."""
    with small_disk(tmp_path / "disk", _DISK_BYTES) as folder:
        yield folder


@pytest.mark.parametrize("by_hand", [False, True], ids=["closing job", "resume"])
def test_disk_of_the_run_directory_fills_up(disk: Path, start: Start, moods: Moods, *, by_hand: bool) -> None:
    """Jobs end, for they cannot say what they do; the closing job tries again, and so may anybody."""
    runs = start()
    runs.run_dir = disk / "a run"
    moods.set({"isr": "wait"})
    runs.call(*runs.new_run())
    moods.wait_for(2)
    fill(disk / "ballast")
    moods.set({})
    moods.let_go()
    runs.until(lambda: _pauses(runs))
    assert [job["comment"] for job in runs.left()] == ["closing"]
    assert runs.n_rounds() == 1
    (disk / "ballast").unlink()
    if by_hand:
        runs.call("resume", runs.run_dir)
        runs.check_outputs()
    runs.until(runs.is_closed)
    runs.check_outputs()
    assert runs.n_rounds() == 2


def _pauses(runs: Runs) -> bool:
    """Whether the closing job waits until it tries again."""
    names = {f"SLURM_JOB_NAME={job['name']}".encode() for job in runs.left() if job["comment"] == "closing"}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_pause = (path / "cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"60"]
            if is_pause and names & {*(path / "environ").read_bytes().split(b"\0")}:
                return True
    return False
