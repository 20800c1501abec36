"""`qgexec worker` and `qgexec collect`: for scripts and jobs that run quanta without a driver."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["collect", "worker"]


@click.command(epilog="Example:  qgexec worker qgexec-runs/u/me/test --quantum 17")
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--quantum",
    "indices",
    metavar="INDEX",
    type=click.IntRange(min=0),
    multiple=True,
    required=True,
    help="Index of the quantum in the plan; repeat for several, each after its prerequisites.",
)
def worker(*, run_dir: Path, indices: tuple[int, ...]) -> None:
    """Execute single quanta of a run whose graph was handed to scripts of your own.

    The outputs are written to the repository's files at once, and to its
    registry by `qgexec collect`. Exit codes: 0 succeeded, 1 failed.
    """
    from qgexec.offline import execute_quanta

    if not execute_quanta(run_dir, indices):
        raise SystemExit(1)


@click.command(epilog="Example:  qgexec collect qgexec-runs/u/me/test")
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Take over although an earlier driver elsewhere may still run.")
def collect(*, run_dir: Path, force: bool) -> None:
    """Take the outputs of all finished quanta of a run into the registry; again and again does no harm."""
    from qgexec.offline import collect as collect_outputs

    click.echo(f"{collect_outputs(run_dir, force=force)} datasets were taken into the registry.")
