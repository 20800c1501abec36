"""A batch system that a test drives by hand: each time it is asked, it runs one job, as the test says.

Jobs are real processes, ``qgexec worker`` as on any batch system, one after another in order. What no real
batch system does on demand (to answer late, to lose a job, to forget) is what this one is for.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.system import JobEnd, JobState, JobStatus, PlannedCall, RoundStatus
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.models import registry
from qgexec.models.batch import BatchModel

JOB_PATIENCE_S = 120.0
"""After this a test has failed."""


@dataclass
class HandSystem:
    """Runs a round's jobs one by one; all models of a process share it, as all drivers do."""

    name: str = "hand"
    runs: Callable[[Round, int], JobStatus] = field(default_factory=lambda: run_as_told)
    """Runs a job, and says what the batch system says of it afterwards."""
    refuses: str = ""
    """Words with which it refuses to take anything."""
    most: int | None = None
    """The most jobs that it takes in one round."""
    silent: bool = False
    """It does not answer."""
    pause: bool = False
    """It runs no further job."""
    submitted: list[str] = field(default_factory=list)
    """Names of the rounds that were handed over."""
    cancelled: list[str] = field(default_factory=list)
    jobs: dict[str, dict[int, JobStatus]] = field(default_factory=dict)
    """What has become of the jobs of each round."""
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
        return {"name": batch_round.name}

    def find(self, batch_round: Round) -> Ticket | None:
        return {"name": batch_round.name} if batch_round.name in self.submitted else None

    def look(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        self.check()
        ended = self.jobs[str(ticket["name"])]
        todo = [job for job in batch_round.jobs if job not in ended]
        if todo and not self.pause:
            job = todo.pop(0)
            ended[job] = self.runs(batch_round, job)
            self.tries.append((batch_round.name, job))
        counts = {JobState.QUEUED: len(todo), JobState.ENDED: len(ended)}
        return RoundStatus(not todo, dict(ended), counts)

    def cancel(self, batch_round: Round, ticket: Ticket) -> None:
        self.check()
        self.cancelled.append(batch_round.name)
        removed = JobStatus(JobState.ENDED, "removed", JobEnd.CANCELLED)
        ended = self.jobs[str(ticket["name"])]
        ended.update({job: removed for job in batch_round.jobs if job not in ended})


def run_as_told(batch_round: Round, job: int) -> JobStatus:
    """Run a job until it has nothing left to do, at most three times."""
    code = 0
    for _ in range(3):
        if (code := run_once(batch_round, job).returncode) != 75:
            break
    return JobStatus(JobState.ENDED, f"exited with {code}", JobEnd.EXITED, code)


def run_once(
    batch_round: Round, job: int, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one try of a job as a process of its own."""
    found = subprocess.run(
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
    entries = dict(registry._entries())
    entries["hand"] = EntryPoint("hand", f"{__name__}:Hand", registry.GROUP)
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    monkeypatch.setattr("qgexec.models.batch._STATUS_S", 0.0)
    monkeypatch.setattr("qgexec.models.batch._JOURNALS_S", 0.01)
    monkeypatch.setattr("qgexec.models.batch._SHARE", 0)
    monkeypatch.setattr("qgexec.models.batch._SEEN_S", 0.0)
    monkeypatch.setattr("qgexec.offline._PAUSE_S", 0.01)
    vars(SYSTEM).clear()  # also of what a test has put in the place of a method
    vars(SYSTEM).update(vars(HandSystem()))
    yield SYSTEM


def journal_lines(folder: Path) -> list[dict[str, object]]:
    """Return all lines of a journal folder."""
    return [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
