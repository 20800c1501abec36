"""`qgexec cancel`, `worker` and `collect`: runs whose quanta are executed elsewhere, and what does."""

from __future__ import annotations

from pathlib import Path

import click

from qgexec.cli import EXIT_TRY_AGAIN
from qgexec.cli.inspect import RUN_DIR, TRUST_OWNER, print_report
from qgexec.errors import UsageError

__all__ = ["cancel", "collect", "worker"]


@click.command(epilog="Example:  qgexec cancel qgexec-runs/u/me/test")
@RUN_DIR
@TRUST_OWNER
def cancel(*, run_dir: Path, trust_owner: bool) -> None:
    """End a run, whatever runs it: a driver here or elsewhere, or the jobs of a batch system.

    Returns when nothing of the run is left there. What has succeeded is kept and
    taken into the registry; qgexec resume goes on with the rest.
    """
    from qgexec.offline import cancel as cancel_run

    cancel_run(run_dir, trust_owner=trust_owner)
    click.echo("Nothing of the run is left in any queue. What was done is kept.", err=True)
    print_report(run_dir)


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec worker qgexec-runs/u/me/test --quantum 17\n"
    "  qgexec worker qgexec-runs/u/me/test --round 1 --job 17"
)
@RUN_DIR
@click.option(
    "--quantum",
    "indices",
    metavar="INDEX",
    type=click.IntRange(min=0),
    multiple=True,
    help="Index of a quantum in the plan; repeat for several, each after its prerequisites.",
)
@click.option(
    "--job", metavar="N", type=click.IntRange(min=0), help="Execute the quanta of this batch job, from 0."
)
@click.option(
    "--round",
    "round_number",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Submission that the job is of, from 1.",
)
@TRUST_OWNER
def worker(
    *, run_dir: Path, indices: tuple[int, ...], job: int | None, round_number: int, trust_owner: bool
) -> None:
    """Execute quanta of a run where no driver is: this is what batch jobs and scripts call.

    The outputs are written to the repository's files at once, and to its
    registry by a driver, or `qgexec collect`. Exit codes: 0 done, 1 a quantum
    named by --quantum failed, 75 another try of the job has something to do.
    """
    if bool(indices) == (job is not None):
        raise UsageError("Nothing to execute is named.", hint="Give --quantum INDEX or --job N, one of them.")
    if job is None:
        from qgexec.offline import execute_quanta

        raise SystemExit(0 if execute_quanta(run_dir, indices, trust_owner=trust_owner) else 1)
    from qgexec.batchjob import run_job

    is_done = run_job(run_dir, round_number, job, trust_owner=trust_owner)
    raise SystemExit(0 if is_done else EXIT_TRY_AGAIN)


@click.command(epilog="Example:  qgexec collect qgexec-runs/u/me/test")
@RUN_DIR
@click.option("--force", is_flag=True, help="Take over from a silent driver that cannot be seen from here.")
@click.option(
    "--round",
    "round_number",
    metavar="N",
    type=click.IntRange(min=1),
    help="As the closing job of this submission: also submit what is to be tried again.",
)
@TRUST_OWNER
def collect(*, run_dir: Path, force: bool, round_number: int | None, trust_owner: bool) -> None:
    """Take the outputs of all finished quanta of a run into the registry; again and again does no harm.

    With --round, exit code 1 says that quanta have failed or are left.
    """
    from qgexec.offline import close_round
    from qgexec.offline import collect as collect_outputs

    if round_number is not None:
        raise SystemExit(0 if close_round(run_dir, round_number, trust_owner=trust_owner) else 1)
    n_datasets = collect_outputs(run_dir, force=force, trust_owner=trust_owner)
    click.echo(f"{n_datasets} datasets were taken into the registry.")
