"""Measures what it takes to cluster a graph and to write all that is submitted to a batch system.

A process of its own (``python -m benchmarks.submitting``), so that its memory is nobody else's. Nothing is
submitted. Slurm is asked for its limits and machines: stand-ins for ``scontrol`` and ``sinfo`` answer as
those of a large site would.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qgexec.assembly import OpenRun, bare_run
from qgexec.books.rundir import RunDir
from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.config.batchsettings import BatchSettings
from qgexec.models.batch import BatchModel
from qgexec.models.htcondor import HTCondor
from qgexec.models.slurm import Slurm
from qgexec.quantum import Resources, RunContext
from qgexec.rubin.graphfile import read_plan
from qgexec.scheduling.policy import Policy, TaskRules
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["SubmissionCost", "measure_submission"]

_MODELS: dict[str, Callable[[BatchSettings], BatchModel]] = {"htcondor": HTCondor, "slurm": Slurm}

_RULES = {
    "single": ClusterRules(algorithm=Algorithm.SINGLE),
    "chunks of 10": ClusterRules(algorithm=Algorithm.CHUNKS, chunk_size=10),
    "auto": ClusterRules(algorithm=Algorithm.AUTO),
}

_SECONDS = {"isr": 20.0, "calibrate": 60.0, "summary": 10.0, "final": 30.0}
"""Run times that `auto` is told."""

_ANSWERS = {
    "scontrol": "MaxArraySize = 10001\nMaxJobCount = 400000\n",
    "sinfo": "120|491520\n",
}


@dataclass(frozen=True, slots=True)
class SubmissionCost:
    """What a submission would take."""

    n_quanta: int
    n_jobs: int
    n_calls: int
    """Calls that would hand it over, the closing job's included."""
    n_files: int
    n_bytes: int
    wall_s: float
    """From the graph file to the last file written."""
    peak_bytes: int
    """Resident memory of the whole process at the highest."""


def measure_submission(graph_file: Path, folder: Path, model: str, algorithm: str) -> SubmissionCost:
    """Write a submission of all quanta of a graph."""
    began = time.perf_counter()
    run_dir = RunDir.create(folder / "run")
    plan = read_plan(graph_file)
    policy = Policy(common_rules=TaskRules(request=Resources(1, 4 << 30), timeout_s=600.0))
    scheduler = Scheduler(plan, policy=policy)
    context = RunContext(str(run_dir.path), "repo", str(graph_file), "run")
    settings = BatchSettings(clustering=_RULES[algorithm], durations=_SECONDS)
    batch_model = _MODELS[model](settings)
    batch_round, calls = batch_model.rehearse(
        bare_run(OpenRun(run_dir, context, plan, True, 0.0), scheduler), scheduler.left()
    )
    wall_s = time.perf_counter() - began
    files = [path for path in run_dir.batch.rglob("*") if path.is_file()]
    return SubmissionCost(
        n_quanta=len(plan),
        n_jobs=len(batch_round.jobs),
        n_calls=len(calls),
        n_files=len(files),
        n_bytes=sum(path.stat().st_size for path in files),
        wall_s=wall_s,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


def _put_answers_on_path(folder: Path) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name, answer in _ANSWERS.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n")
        program.chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one submission and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("graph", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", choices=sorted(_MODELS))
    parser.add_argument("algorithm", choices=sorted(_RULES))
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True)
    _put_answers_on_path(given.folder)
    cost = measure_submission(given.graph, given.folder, given.model, given.algorithm)
    given.result.write_text(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main()
