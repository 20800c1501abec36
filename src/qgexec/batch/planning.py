"""From the quanta that are left to a round of jobs; submits nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from qgexec.batch.jobs import Jobs
from qgexec.batch.past import write_pasts
from qgexec.batch.rounds import Round, round_folder, rounds
from qgexec.books.linefile import file_error
from qgexec.books.rundir import RunDir
from qgexec.clustering.clusters import Clusters
from qgexec.clustering.rules import Algorithm
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError
from qgexec.quantum import Attempt
from qgexec.scheduling.troubles import Past

__all__ = ["make_jobs", "make_round"]

_START_MARGIN_S = 120.0
"""Added to the time that a job asks for: its quanta wait for a process and the stack, seconds."""


def make_jobs(clusters: Clusters, attempts: Sequence[Attempt], settings: BatchSettings) -> Jobs:
    """Compute what jobs ask for: the most cores and memory of their quanta, the sum of their times.

    Parameters
    ----------
    clusters
        The quanta of each job.
    attempts
        The next attempt at each of those quanta.
    settings
        What holds where quanta have no time limit, or a named cluster has one.
    """
    n_jobs = len(clusters)
    cores = np.ones(n_jobs, dtype=np.int32)
    memory = np.full(n_jobs, -1, dtype=np.int64)
    walltime = np.full(n_jobs, _START_MARGIN_S)
    by_index = {attempt.index: attempt for attempt in attempts}
    named = settings.clustering.clusters if settings.clustering.effective is Algorithm.DIMENSIONS else {}
    for job in range(n_jobs):
        own = [by_index[index] for index in clusters.quanta(job)]
        cores[job] = max(attempt.resources.cores for attempt in own)
        memory[job] = max(-1 if a.resources.memory_bytes is None else a.resources.memory_bytes for a in own)
        cluster = named.get(clusters.name(job))
        if cluster is not None and cluster.walltime_s is not None:
            walltime[job] = cluster.walltime_s
        elif any(attempt.timeout_s is None for attempt in own):
            walltime[job] = np.inf if settings.walltime_s is None else settings.walltime_s
        else:
            walltime[job] += sum(attempt.timeout_s or 0.0 for attempt in own)
    return Jobs(clusters, cores, memory, walltime)


def make_round(
    run_dir: RunDir,
    model: str,
    jobs: Jobs,
    settings: BatchSettings,
    command: Sequence[str],
    pasts: Mapping[int, Past],
) -> Round:
    """Write the next round of a run.

    Parameters
    ----------
    run_dir
        The run's books.
    model
        Name of the execution model.
    jobs, settings
        What it consists of.
    command
        How to call qgexec on the machines of the batch system.
    pasts
        What is behind those of its quanta that have been tried before.

    Raises
    ------
    qgexec.errors.RunDirError
        It cannot be written.
    """
    number = len(rounds(run_dir)) + 1
    folder = round_folder(run_dir, number)
    try:
        for path in (folder, folder / "logs", folder / "journals"):
            path.parent.mkdir(mode=0o775, exist_ok=True)
            path.mkdir(mode=0o775, exist_ok=True)  # the unfinished one of whoever died here is of no use
    except OSError as error:
        raise file_error("make", folder, error, RunDirError) from error
    name = f"qgexec-{uuid.uuid4().hex[:12]}-{number}"
    batch_round = Round(folder, number, name, model, jobs, settings, tuple(command))
    write_pasts(batch_round.pasts, pasts)
    batch_round.write()
    return batch_round
