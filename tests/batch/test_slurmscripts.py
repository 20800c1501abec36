"""What runs in Slurm's jobs: which job it is, when it is tried again, and with what."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qgexec.batch.slurmscripts as scripts_module
from qgexec.batch.rounds import Round
from qgexec.batch.slurmarrays import make_arrays
from qgexec.batch.slurmscripts import read_arrays, write_files
from qgexec.config.batchsettings import BatchSettings
from tests.kit.batch.slurmrounds import FakeSlurm, make_round

LARGEST_MIB = 8000

# Stands for qgexec: notes how it was called and with what, and ends as it is told to.
_COMMAND = """#!/bin/bash
here=$(dirname "$0")
{ echo "$@"; env | grep -E '^(QGEXEC|MOOD)'; echo --; } >> "$here/ran"
[ ! -e "$here/wait" ] || { echo > "$here/began"; read -r _ < "$here/go"; }
if [ -e "$here/die" ]; then rm "$here/die"; kill -9 $$; fi
exit "$(cat "$here/code")"
"""


class Scripts:
    """A round's scripts, a program for them to call, and a Slurm that takes what it is told."""

    def __init__(self, folder: Path, settings: BatchSettings | None = None) -> None:
        self.folder = folder
        command = folder / "a program"
        command.write_text(_COMMAND)
        command.chmod(0o755)
        self.slurm = FakeSlurm.make(folder / "slurm")
        made = make_round(folder / "my run", "a b -> ; a -> c; b -> d", settings=settings)
        self.round: Round = replace(made, command=(str(command),))
        write_files(self.round, make_arrays(self.round.jobs, 1000), LARGEST_MIB)
        self.ends_with(0)

    def ends_with(self, code: int) -> None:
        (self.folder / "code").write_text(str(code))

    def env(self, task: int, variables: dict[str, str]) -> dict[str, str]:
        job = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(task)}
        return {"PATH": self.slurm.path, "HOME": "/", **job, **variables}

    def run(self, task: int = 0, *arguments: str, array: int = 0, **variables: Any) -> int:
        """Run a job as Slurm would, and return its exit status."""
        return subprocess.run(
            ["/bin/bash", str(self.round.folder / "job.sh"), f"{array:03d}", *arguments],
            env=self.env(task, variables),
            capture_output=True,
            check=False,
            timeout=60,
        ).returncode

    def calls(self) -> list[str]:
        """Return what the program was called with, and what it saw, a text for each call."""
        path = self.folder / "ran"
        return path.read_text().split("--\n")[:-1] if path.exists() else []

    def printed(self, job: int) -> str:
        return (self.round.logs / "000" / f"{job:06d}.txt").read_text()

    def told(self) -> list[str]:
        return [" ".join(call) for call in self.slurm.calls("scontrol")]

    def note_memory(self, job: int, mib: int) -> None:
        path = self.round.memory_file(job)
        path.parent.mkdir(parents=True)
        path.write_text(f"granted_memory = {mib}\n")


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


def test_a_task_is_its_job(scripts: Scripts) -> None:
    """By array and index; what it prints is in the job's own file."""
    assert scripts.run(1, array=1) == 0
    (call,) = scripts.calls()
    run_dir = scripts.round.run_dir
    assert call.startswith(f"worker {run_dir} --round 1 --job 3\n")
    assert "job 3 is 12_1, try 1 of" in scripts.printed(3)
    assert "job 3 ended with 0" in scripts.printed(3)


def test_arrays_are_read_back(scripts: Scripts) -> None:
    """What the lists of jobs say is what was written."""
    assert read_arrays(scripts.round) == [{0: 0, 1: 1}, {0: 2, 1: 3}]


def test_a_run_directory_that_is_not_seen(scripts: Scripts) -> None:
    """It is said where Slurm keeps it, and nothing is run."""
    (scripts.round.folder / "arrays" / "000.txt").unlink()
    assert scripts.run() == 1
    assert not scripts.calls()


def test_what_is_left_is_tried_again(scripts: Scripts) -> None:
    """The job goes back into the queue; Slurm is told that it went well, for it would keep others back."""
    scripts.ends_with(75)
    assert scripts.run() == 0
    assert scripts.told() == ["requeue 17"]


def test_with_the_memory_that_it_needs(scripts: Scripts) -> None:
    """And what surrounds the quanta; the next try is told what they have."""
    scripts.note_memory(0, 1000)
    scripts.ends_with(75)
    scripts.run(SLURM_MEM_PER_NODE="884")
    assert scripts.told() == ["requeue 17", "update JobId=17 MinMemoryNode=1384"]
    scripts.run(SLURM_MEM_PER_NODE="1384", SLURM_RESTART_COUNT="1")
    first, second = scripts.calls()
    assert "QGEXEC_JOB_MEMORY_MB" not in first
    assert "QGEXEC_JOB_MEMORY_MB=1000\n" in second


def test_with_no_more_than_there_is(scripts: Scripts) -> None:
    """A job that no machine can take would wait for ever."""
    scripts.note_memory(0, LARGEST_MIB)
    scripts.ends_with(75)
    scripts.run()
    assert scripts.told()[-1] == f"update JobId=17 MinMemoryNode={LARGEST_MIB}"


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_not_for_ever(scripts: Scripts, code: int) -> None:
    """The last try ends well, whatever it says; so does one that would have nothing to do."""
    scripts.ends_with(code)
    assert scripts.run(SLURM_RESTART_COUNT="5") == 0
    assert scripts.told() == []


def test_not_when_cancelled(scripts: Scripts) -> None:
    """Nothing goes back into the queue of a run that somebody has ended."""
    (scripts.round.run_dir / "cancel").touch()
    scripts.ends_with(75)
    assert scripts.run() == 0
    assert scripts.told() == []


def test_not_when_slurm_ends_it(scripts: Scripts) -> None:
    """Who is at the end of the time has none to try again; the script waits until all is handed back."""
    for name in ("began", "go"):
        os.mkfifo(scripts.folder / name)
    (scripts.folder / "wait").touch()
    scripts.ends_with(75)
    job = ["/bin/bash", str(scripts.round.folder / "job.sh"), "000"]
    with subprocess.Popen(job, env=scripts.env(0, {}), start_new_session=True) as process:
        (scripts.folder / "began").read_text()
        process.send_signal(signal.SIGTERM)
        (scripts.folder / "go").write_text("\n")
        assert process.wait(60) == 0
    assert len(scripts.calls()) == 1
    assert scripts.told() == []


def test_a_killed_process_begins_again(scripts: Scripts) -> None:
    """At once: nobody asked the job to end."""
    (scripts.folder / "die").touch()
    assert scripts.run() == 0
    assert len(scripts.calls()) == 2
    assert "job 0 ended with 137" in scripts.printed(0)


def test_a_round_that_was_given_up(scripts: Scripts) -> None:
    """A submission that took effect too late does nothing."""
    scripts.round.close()
    assert scripts.run() == 0
    assert not scripts.calls()


@pytest.mark.parametrize(
    ("arguments", "variables", "left_s"),
    [
        (("2",), {}, 120),
        (("2",), {"SLURM_JOB_END_TIME": "100"}, None),
        ((), {}, None),
    ],
)
def test_when_it_will_be_ended(
    scripts: Scripts, arguments: tuple[str, ...], variables: dict[str, Any], left_s: float | None
) -> None:
    """As Slurm says, or by what was asked for, or by the partition's limit."""
    scripts.slurm.answer("squeue", "1970-01-01T00:01:40\n")
    before = time.time()
    scripts.run(0, *arguments, **{"TZ": "UTC", **variables})
    (call,) = scripts.calls()
    ends_at = float(call.partition("QGEXEC_JOB_ENDS_AT=")[2].partition("\n")[0])
    if left_s is None:
        assert ends_at == 100
    else:
        assert before + left_s - 1 <= ends_at <= time.time() + left_s


def test_environment_and_set_up(tmp_path: Path) -> None:
    """They come before the command, in one shell, whatever is in their values."""
    settings = BatchSettings(environment={"MOOD": "it's $HOME"}, setup=("x=1", "export MOOD_TOO=$x"))
    scripts = Scripts(tmp_path, settings)
    scripts.run()
    (call,) = scripts.calls()
    assert "MOOD=it's $HOME\n" in call
    assert "MOOD_TOO=1\n" in call


def test_set_up_that_fails(tmp_path: Path) -> None:
    """The job says which line, and has failed for Slurm too: none behind it could do better."""
    scripts = Scripts(tmp_path, BatchSettings(setup=("true", "false")))
    assert scripts.run() == 78
    assert not scripts.calls()
    assert "the setup command failed: false" in scripts.printed(0)


def test_in_a_container(tmp_path: Path) -> None:
    """The command and its set-up are in it, and the run directory is to be seen there."""
    scripts = Scripts(tmp_path, BatchSettings(container="/images/lsst sif", setup=("true",)))
    runtime = tmp_path / "slurm" / "bin" / "apptainer"
    runtime.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > "{tmp_path}/container"\nshift 4\nexec "$@"\n')
    runtime.chmod(0o755)
    assert scripts.run() == 0
    words = (tmp_path / "container").read_text().split("|")
    run_dir = str(scripts.round.run_dir)
    assert words[:5] == ["exec", "--bind", run_dir, "/images/lsst sif", "/bin/bash"]
    assert len(scripts.calls()) == 1


@pytest.mark.parametrize(("code", "n_calls"), [(0, 1), (1, 1), (2, 5)])
def test_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, n_calls: int) -> None:
    """What it finds is its exit status; where it found nothing, it tries again, and not for ever."""
    monkeypatch.setattr(scripts_module, "CLOSING_PAUSE_S", 0)
    scripts = Scripts(tmp_path)
    scripts.ends_with(code)
    scripts.slurm.answer("squeue", "17\n")
    done = subprocess.run(
        ["/bin/bash", str(scripts.round.folder / "closing.sh")],
        env=scripts.env(0, {}),
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert scripts.calls() == [f"collect {scripts.round.run_dir} --round 1\n"] * n_calls
