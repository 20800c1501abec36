"""Rounds of Slurm's for tests, and a Slurm that answers what it is told to: programs on the path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qgexec.batch.jobs import Jobs
from qgexec.batch.rounds import Round
from qgexec.clustering.clusters import Clusters
from tests.kit.batch import condorrounds

__all__ = ["FakeSlurm", "jobs_of", "make_round"]

PROGRAMS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "sacct")

_CONFIG = """Configuration data as of 2026-01-01T00:00:00
AccountingStorageType   = {accounting}
MaxArraySize            = {max_array_size}
MaxJobCount             = {max_job_count}
SLURM_VERSION           = 22.05.8
"""

# Says what it was called with, then what is in the file of its name; sbatch counts.
_PROGRAM = """#!/bin/sh
name=${0##*/}
here=${0%/bin/*}
printf '%s' "$name" >> "$here/calls"
for word in "$@"; do printf ' %s' "$word" >> "$here/calls"; done
echo >> "$here/calls"
[ ! -e "$here/$name.err" ] || { cat "$here/$name.err" >&2; exit 1; }
if [ "$name" = sbatch ]; then
    id=$(($(cat "$here/next") + 1))
    if [ -e "$here/refuse" ] && [ "$id" -ge "$(head -1 "$here/refuse")" ]; then
        tail -n +2 "$here/refuse" >&2
        exit 1
    fi
    echo "$id" | tee "$here/next"
    exit 0
fi
[ ! -e "$here/$name.out" ] || cat "$here/$name.out"
"""


@dataclass(frozen=True)
class FakeSlurm:
    """What a folder's programs answer."""

    folder: Path

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        max_array_size: int = 1001,
        max_job_count: int = 10_000,
        accounting: str = "accounting_storage/none",
        machines: str = "4|8000\n",
    ) -> FakeSlurm:
        """Make the programs; the next job's number is 101."""
        (folder / "bin").mkdir(parents=True)
        for name in PROGRAMS:
            path = folder / "bin" / name
            path.write_text(_PROGRAM)
            path.chmod(0o755)
        (folder / "next").write_text("100\n")
        fake = cls(folder)
        fake.answer(
            "scontrol",
            _CONFIG.format(accounting=accounting, max_array_size=max_array_size, max_job_count=max_job_count),
        )
        fake.answer("sinfo", machines)
        return fake

    @property
    def path(self) -> str:
        """The search path with the programs."""
        return os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])

    def answer(self, program: str, text: str) -> None:
        """Have a program print this."""
        (self.folder / f"{program}.out").write_text(text)

    def fail(self, program: str, words: str) -> None:
        """Have a program fail with these words."""
        (self.folder / f"{program}.err").write_text(words)

    def refuse(self, words: str, *, since: int = 101) -> None:
        """Have sbatch refuse jobs from this number on."""
        (self.folder / "refuse").write_text(f"{since}\n{words}")

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of each call of a program."""
        path = self.folder / "calls"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in lines if line[0] == program]


def make_round(run_dir: Path, text: str = "a b -> c", **options: object) -> Round:
    """Return the first round of a run, each quantum of the plan a job; its folder is there."""
    made = condorrounds.make_round(run_dir, text, **options)  # type: ignore[arg-type]
    (made.folder / "journals").mkdir()
    return replace(made, model="slurm")


def jobs_of(
    parents: Sequence[Sequence[int]],
    *,
    names: Sequence[str] = (),
    memory_bytes: Sequence[int] = (),
    walltime_s: Sequence[float] = (),
) -> Jobs:
    """Return jobs of one quantum each with these parents."""
    n_jobs = len(parents)
    known = list(dict.fromkeys(names or ["task"]))
    clusters = Clusters.from_arrays(
        {
            "names": np.frombuffer("\n".join(known).encode(), dtype=np.uint8),
            "name_codes": np.asarray([known.index(name) for name in names] or [0] * n_jobs),
            "quantum_offsets": np.arange(n_jobs + 1),
            "quanta": np.arange(n_jobs),
            "parent_offsets": np.cumsum([0, *(len(row) for row in parents)]),
            "parents": np.asarray([parent for row in parents for parent in row], dtype=np.int64),
        }
    )
    return Jobs(
        clusters,
        np.ones(n_jobs, dtype=np.int32),
        np.asarray(memory_bytes or [-1] * n_jobs, dtype=np.int64),
        np.asarray(walltime_s or [np.inf] * n_jobs, dtype=np.float64),
    )
