"""Writes all that a run would submit to a batch system, and submits nothing; the registry is only read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qgexec.assembly import Client, OpenRun, bare_run, make_model, model_name, policy_of, remarks_beforehand
from qgexec.batch.forecast import Forecast, forecast
from qgexec.batch.rounds import Round
from qgexec.batch.system import PlannedCall
from qgexec.books.beginning import begin
from qgexec.books.rundir import RunDir
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.models.batch import BatchModel
from qgexec.quantum import RunContext
from qgexec.rubin.graphfile import prepare_graph, serial_labels
from qgexec.rubin.repository import locate, open_butler
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would be submitted."""

    batch_round: Round
    """The round, in its folder."""
    calls: tuple[PlannedCall, ...]
    """How it would be submitted."""
    forecast: Forecast
    """What it would cost."""
    remarks: tuple[str, ...]
    """What the user should know before, one sentence or two each."""
    n_files: int
    """Files that were written."""
    n_bytes: int
    """Their size together."""


def rehearse(graph: Any, repository: Any, client: Client, options: RunOptions, path: Path) -> Rehearsal:
    """Write what would be submitted.

    Parameters
    ----------
    graph, repository, client, options
        As for a run.
    path
        A folder as for a run directory; it is as good as empty afterwards, for the run itself too.

    Raises
    ------
    qgexec.errors.UsageError
        The execution model submits nothing, or the folder holds a run that was begun.
    qgexec.errors.QgexecError
        The graph or the repository cannot be used, or quanta cannot be clustered as asked.
    """
    beginning = begin(path)
    try:
        if beginning.settings is not None:
            raise UsageError(
                f"{path} holds a run that was killed as it began",
                hint=f"Go on with it (qgexec resume {path}), or name another folder.",
            )
        found = _rehearse(graph, repository, client, options, beginning.run_dir)
    except BaseException:
        beginning.give_up()
        raise
    beginning.journal.withdraw()
    return found


def _rehearse(graph: Any, repository: Any, client: Client, options: RunOptions, run_dir: RunDir) -> Rehearsal:
    model = make_model(client, options)
    if not isinstance(model, BatchModel):
        raise UsageError(
            f"{model_name(client.model)} submits nothing: there is nothing to be shown",
            hint="Name a batch system, as with --model slurm.",
        )
    with ExitStack() as stack:
        given, uri = locate(repository, run_dir.path)
        butler = stack.enter_context(open_butler(given, writeable=False))
        graph_file = prepare_graph(graph, run_dir.path, butler)
    plan = client.plan_of(graph_file.path, options.config.ordering)
    context = RunContext(str(run_dir.path), uri, str(graph_file.path), graph_file.output_run)
    opened = OpenRun(run_dir, context, plan, False, 0.0, serial_labels(graph_file.pipeline_graph))
    policy = policy_of(options, plan, elsewhere=True)
    scheduler = Scheduler(plan, policy=policy)
    before = _size(run_dir.path)
    batch_round, calls = model.rehearse(bare_run(opened, scheduler), scheduler.left())
    after = _size(run_dir.path)
    jobs, batch = batch_round.jobs, options.config.batch
    submitted = jobs.all_quanta()
    remarks = remarks_beforehand(options, plan, model, policy)
    if n_later := len(plan) - len(submitted):
        most = f"These are as many jobs as {model.system.name} is given at once (maxJobs, or its own limit)"
        remarks = [f"{most}; the other {n_later} quanta follow in further rounds.", *remarks]
    return Rehearsal(
        batch_round,
        tuple(calls),
        forecast(jobs, plan, batch.durations, partial(model.system.least_s, batch_round)),
        tuple(remarks),
        n_files=after[0] - before[0],
        n_bytes=after[1] - before[1],
    )


def _size(folder: Path) -> tuple[int, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)
