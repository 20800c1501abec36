"""A batch system that a test drives by hand: each time it is asked, it runs one job, as the test says.

Jobs are real processes, ``qgexec worker`` as on any batch system, one after another in order. What no real
batch system does on demand (to answer late, to lose a job, to forget) is what this one is for.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qgexec.batch.htcondor import HTCondorSystem
from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.slurm import SlurmSystem
from qgexec.batch.system import JobEnd, JobState, JobStatus, Pace, PlannedCall, RoundStatus
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.models import registry
from qgexec.models.batch import BatchModel
from tests.kit.batch.standins import AGAIN, QUICK, RunsJob, StandIn
from tests.kit.processes import warm

JOB_PATIENCE_S = 120.0
"""After this a test has failed."""


@dataclass
class HandSystem(StandIn):
    """Runs a round's jobs one by one; all models of a process share it, as all drivers do."""

    name: str = "hand"
    pace: Pace = QUICK
    runs: RunsJob = field(default_factory=lambda: run_as_told)
    """Runs a job, and says what the batch system says of it afterwards."""
    most: int | None = None
    """The most jobs that it takes in one round."""
    tries_each: int = 1
    """How often it tries a job that says that another try has something to do."""
    jobs: dict[str, dict[int, JobStatus]] = field(default_factory=dict)
    """What has become of the jobs of each round."""
    sizes: dict[str, int] = field(default_factory=dict)
    """How many jobs each round has."""
    tries: list[tuple[str, int]] = field(default_factory=list)
    """Round and job of each job that was run, in order."""

    def check(self) -> None:
        if self.silent:
            raise ModelError("hand does not answer")

    def most_jobs(self, settings: BatchSettings) -> int | None:
        return self.most

    def write(self, batch_round: Round) -> Sequence[PlannedCall]:
        return [PlannedCall(("hand", batch_round.name), len(batch_round.jobs))]

    def least_s(self, batch_round: Round, seconds: npt.NDArray[np.float64]) -> float:
        return float(seconds.sum())

    def submit(self, batch_round: Round) -> Ticket:
        if self.refuses:
            raise ModelError(f"hand refuses the jobs: {self.refuses}", hint="Ask for less.")
        self.submitted.append(batch_round.name)
        self.jobs[batch_round.name] = {}
        self.sizes[batch_round.name] = len(batch_round.jobs)
        return {"name": batch_round.name}

    def find(self, batch_round: Round) -> Ticket | None:
        return {"name": batch_round.name} if batch_round.name in self.submitted else None

    def look(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        self.check()
        if self.garbled:
            raise ModelError("hand says what cannot be read")
        begun = self.jobs[str(ticket["name"])]
        todo = [job for job in batch_round.jobs if job not in begun and job not in self.loses]
        if todo and not self.pause:
            job = todo.pop(0)
            begun[job] = self._try(batch_round, job)
            self.tries.append((batch_round.name, job))
        n_running = sum(status.state is JobState.RUNNING for status in begun.values())
        counts = {JobState.QUEUED: len(todo), JobState.ENDED: len(batch_round.jobs) - len(todo) - n_running}
        if n_running:
            counts[JobState.RUNNING] = n_running
        return RoundStatus(not todo and not n_running, {} if self.forgets else dict(begun), counts)

    def _try(self, batch_round: Round, job: int) -> JobStatus:
        for _ in range(self.tries_each):
            status = self.runs(batch_round, job)
            if status.exit_code != AGAIN:
                break
        return status

    def left(self, name: str) -> set[int]:
        """Return the jobs of a round that have not ended."""
        if name not in self.jobs:
            return set()
        known = self.jobs[name]
        todo = set(range(self.sizes[name])) - self.loses
        return {job for job in todo if job not in known or known[job].state is JobState.RUNNING}

    def cancel(self, batch_round: Round, ticket: Ticket) -> None:
        self.check()
        self.cancelled.append(batch_round.name)
        removed = JobStatus(JobState.ENDED, "removed", JobEnd.CANCELLED)
        known = self.jobs[str(ticket["name"])]
        is_left = self.left(str(ticket["name"]))
        known.update(dict.fromkeys(is_left, removed))


def run_as_told(batch_round: Round, job: int) -> JobStatus:
    """Run a job until it has nothing left to do, at most three times."""
    code = 0
    for _ in range(3):
        if (code := run_once(batch_round, job).returncode) != AGAIN:
            break
    return JobStatus(JobState.ENDED, f"exited with {code}", JobEnd.EXITED, code)


def run_once(
    batch_round: Round, job: int, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one try of a job as a process of its own."""
    found = warm.run(
        batch_round.job_command(str(job)),
        capture_output=True,
        text=True,
        timeout=JOB_PATIENCE_S,
        check=False,
        env={**os.environ, **(env or {})},
    )
    (batch_round.logs / f"{job}.txt").write_text(found.stdout + found.stderr)
    return found


SYSTEM = HandSystem()


class Hand(BatchModel):
    """Leave quanta to a batch system that a test drives."""

    def __init__(self, settings: BatchSettings | None = None, *, closing: int | None = None) -> None:
        super().__init__(SYSTEM, settings, closing=closing)


@contextmanager
def hand_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandSystem]:
    """Make the model ``hand`` known, with a batch system that has nothing in hand."""
    entries = [*entry_points(group=registry.GROUP), EntryPoint("hand", f"{__name__}:Hand", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    vars(SYSTEM).clear()  # also of what a test has put in the place of a method
    vars(SYSTEM).update(vars(HandSystem()))
    yield SYSTEM


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the real batch systems' classes ask as often as they can: what is asked here answers at once."""
    for system in (HTCondorSystem, SlurmSystem):
        monkeypatch.setattr(system, "pace", QUICK)


def journal_lines(folder: Path) -> list[dict[str, object]]:
    """Return all lines of a journal folder."""
    return [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
