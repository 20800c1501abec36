"""Runs of `qgexec` on a Slurm of the tests' own, as its users run them: commands, and patience."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.butler.repos import MockRepository, add_standard_tasks, open_repository, save_graph
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import datasets
from tests.kit.sites.slurm import Slurm
from tests.kit.tasks.moodytask import MoodyTask, moody_config

__all__ = ["SITE", "Runs", "job_of", "make_moody", "task_of"]

SITE = "chunkSize: 4\nrequestMemory: 300\nfinalJob: {requestMemory: 300}\nvisibilityWait: 2\n"
"""Two jobs of isr, two of calibrate behind them, one each of summary and final."""

_LABELS = ("isr", "calibrate", "summary", "final")

PATIENCE_S = 400.0
"""Longest wait for something that must happen: reached only where it does not."""

_COMMAND_S = 200.0


@dataclass
class Runs:
    """One repository, one Slurm, and commands of `qgexec` in a folder of their own."""

    slurm: Slurm
    repository: MockRepository
    folder: Path
    run_dir: Path = field(init=False)
    _drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "a run"

    @property
    def env(self) -> dict[str, str]:
        """The environment of commands; jobs inherit it."""
        return {**os.environ, **self.slurm.env, "PYTHONPATH": PYTHONPATH}

    def configure(self, text: str) -> None:
        """Write what is given as ``--resources``."""
        (self.folder / "site.yaml").write_text(text)

    def new_run(self, command: str = "submit") -> list[str]:
        """Return the arguments that begin a run."""
        graph = [
            "-b",
            str(self.repository.root),
            "-g",
            str(self.repository.graph),
            "--register-dataset-types",
        ]
        site = ["--model", "slurm", "--resources", "site.yaml"]
        return [command, *graph, *site, "--run-dir", str(self.run_dir)]

    def call(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and say if its exit code is another one."""
        done = subprocess.run(
            [sys.executable, "-m", "qgexec", *map(str, arguments)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_S,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a command; what it says goes into ``driver.txt``."""
        with (self.folder / "driver.txt").open("a") as file:
            driver = subprocess.Popen(
                [sys.executable, "-m", "qgexec", *map(str, arguments)],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self._drivers.append(driver)
        return driver

    def said(self) -> str:
        """Return what the started commands have said."""
        return (self.folder / "driver.txt").read_text()

    def end(self) -> None:
        """Kill what was started and is left, and take all jobs from Slurm."""
        for driver in self._drivers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait(_COMMAND_S)
        if ids := [job["id"] for job in self.jobs() if job["state"] not in _ENDED]:
            self.slurm.run("scancel", "--signal=KILL", "--full", *ids, check=False)
            self.slurm.run("scancel", *ids)
            self.until(lambda: all(job["state"] in _ENDED for job in self.jobs()))

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.2)

    def story(self) -> str:
        """Return what there is to read when something does not happen."""
        texts = [f"{job}\n" for job in self.jobs()]
        logs = sorted(self.run_dir.glob("batch/*/logs/**/*.txt"))
        return "".join([*texts, *(f"== {path}\n{path.read_text()[-3000:]}\n" for path in logs)])

    def report(self) -> dict[str, Any]:
        """Return ``qgexec report --json``."""
        found: dict[str, Any] = json.loads(self.call("report", self.run_dir, "--json", code=None).stdout)
        return found

    def check_outputs(self) -> None:
        """All outputs are there, each once, and the books say so."""
        report = self.report()
        assert report["all_succeeded"], report
        assert report["state"] == "succeeded", report
        assert [len(datasets(self.repository, name)) for name in ("post_isr", "calibrated")] == [8, 8]
        assert len(datasets(self.repository, "visit_summary_mock")) == 2
        assert datasets(self.repository, "final_report")

    def is_closed(self) -> bool:
        """Whether the last round is over and in the books."""
        rounds = sorted(self.run_dir.glob("batch/[0-9]*"))
        return bool(rounds) and (rounds[-1] / "closed").exists() and not self.left()

    def n_rounds(self) -> int:
        """Number of rounds that were submitted."""
        return len(list(self.run_dir.glob("batch/*/ticket.json")))

    def jobs(self) -> list[dict[str, str]]:
        """Return all jobs that Slurm knows, one for each task."""
        names = ("id", "name", "state", "comment", "reason")
        text = self.slurm.run(
            *("squeue", "--states=all", "--noheader", "--array", "--sort=i"),
            "--Format=JobArrayID:|,Name:|,State:|,Comment:|,Reason:|",
        ).stdout
        return [dict(zip(names, line.split("|"), strict=False)) for line in text.splitlines() if line.strip()]

    def left(self) -> list[dict[str, str]]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs() if job["state"] not in _ENDED]


_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "TIMEOUT"),
}


def make_moody(folder: Path) -> MockRepository:
    """Make the standard repository with moody tasks in a folder; moods are looked up in the one above it."""
    made = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(made.root) as repo:
        add_standard_tasks(
            repo, {label: moody_config(folder.parent) for label in _LABELS}, dict.fromkeys(_LABELS, MoodyTask)
        )
        save_graph(repo, made.graph, register=False)
    return made


def job_of(pid: int) -> int:
    """Return the process of the batch job that a process is of: ``qgexec worker``."""
    while True:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"worker" in command and b"--job" in command:
            return pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def task_of(pid: int) -> str:
    """Return the task of a Slurm array that a process is of: ``12_3``."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
