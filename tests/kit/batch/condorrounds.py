"""Rounds for the tests of HTCondor's files and answers, and an HTCondor that answers what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qgexec.batch.condorapi import Ad
from qgexec.batch.jobs import Jobs
from qgexec.batch.rounds import Round
from qgexec.clustering.clusters import Clusters
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.testing import make_plan

__all__ = ["GIB", "FakeCondor", "make_round"]

GIB = 1 << 30
COMMAND = ("/opt/lsst/bin/python", "-m", "qgexec")


def make_round(
    run_dir: Path,
    text: str = "a b -> c",
    *,
    memory_bytes: Sequence[int] = (),
    cores: Sequence[int] = (),
    walltime_s: Sequence[float] = (),
    settings: BatchSettings | None = None,
) -> Round:
    """Return the first round of a run, each quantum of the plan a job."""
    plan = make_plan(text)
    n_jobs = len(plan)
    codes = np.asarray([plan.labels.index(plan.label(index)) for index in range(n_jobs)], dtype=np.int64)
    clusters = Clusters.of(plan, np.arange(n_jobs), np.arange(n_jobs), plan.labels, codes)
    jobs = Jobs(
        clusters,
        np.asarray(cores or [1] * n_jobs, dtype=np.int32),
        np.asarray(memory_bytes or [-1] * n_jobs, dtype=np.int64),
        np.asarray(walltime_s or [np.inf] * n_jobs, dtype=np.float64),
    )
    folder = run_dir / "batch" / "0001"
    (folder / "logs").mkdir(parents=True)
    return Round(folder, 1, "qgexec-0123456789ab-1", "htcondor", jobs, settings or BatchSettings(), COMMAND)


@dataclass
class FakeCondor:
    """Answers what it is told to, and keeps what it was asked."""

    queue: list[Ad] = field(default_factory=list)
    past: Ad | None = None
    has: list[tuple[int, int]] = field(default_factory=lambda: [(64, 256 << 10)])
    refusal: str = ""
    silent: bool = False
    submitted: list[str] = field(default_factory=list)
    dags: list[Path] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    n_queries: int = 0

    def _answer(self) -> None:
        if self.silent:
            raise ModelError("HTCondor: schedd here does not answer")

    def schedd_name(self) -> str:
        self._answer()
        return "here"

    def machines(self) -> list[tuple[int, int]]:
        self._answer()
        return self.has

    def submit(self, description: str) -> int:
        self._answer()
        if self.refusal:
            raise ModelError(f"HTCondor: it refuses jobs: {self.refusal}")
        self.submitted.append(description)
        return 7

    def submit_dag(self, dag: Path, batch_name: str) -> int:
        self._answer()
        self.dags.append(dag)
        return 8

    def query(self, schedd: str, constraint: str, attributes: Sequence[str]) -> list[Ad]:
        self._answer()
        self.n_queries += 1
        return self.queue

    def history(self, schedd: str, constraint: str, attributes: Sequence[str]) -> Ad | None:
        self._answer()
        return self.past

    def remove(self, schedd: str, constraint: str) -> None:
        self._answer()
        self.removed.append(constraint)
