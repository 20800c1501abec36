"""`qgexec demo`: simulate a small survey, reduce it, and compare the result with the truth."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgexec.cli.execution import default_model
from qgexec.errors import UsageError

if TYPE_CHECKING:
    from qgexec.demo import DemoRepository

__all__ = ["demo"]

_MARK = "butler.yaml"


@click.command(epilog="Example:  qgexec demo /tmp/survey -j 4")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path("qgexec-demo"))
@click.option(
    "-j",
    "--processes",
    metavar="N",
    type=click.IntRange(min=1),
    default=lambda: len(os.sched_getaffinity(0)),
    help="Processes to use; default: one per core.",
)
@click.option("--model", metavar="NAME", help="Execution model; default: inprocess for -j 1, pool above.")
@click.option("--seed", type=int, default=20260115, show_default=True, help="Seed of the simulated sky.")
@click.option(
    "--visits",
    metavar="N",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Exposures in each of two bands.",
)
@click.option(
    "--detectors",
    metavar="N",
    type=click.IntRange(min=1, max=6),
    default=6,
    show_default=True,
    help="Detectors of the camera.",
)
@click.option("--only-survey", is_flag=True, help="Make repository and pipeline file, and reduce nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in the same folder.")
def demo(
    *,
    directory: Path,
    processes: int,
    model: str | None,
    seed: int,
    visits: int,
    detectors: int,
    only_survey: bool,
    overwrite: bool,
) -> None:
    """Make a small sky survey, reduce it with real PipelineTasks, and compare the result with the truth.

    DIRECTORY (default: qgexec-demo) gets a butler repository with raw CCD
    frames, calibrations and a reference catalogue, the reduction's outputs
    and the run's books. Takes about a minute on two cores, and 400 MB.
    """
    from qgexec.demo import make_repository
    from qgexec.processes.forked import warm_up
    from qgexec.rubin import PRELOAD

    _make_room(directory, overwrite=overwrite)
    model = model or default_model(processes)
    if model == "pool" and not only_survey:
        warm_up(PRELOAD)
    repository = make_repository(
        directory / "repo", seed=seed, visits_per_band=visits, n_detectors=detectors, log=click.echo
    )
    pipeline = directory / "pipeline.yaml"
    shutil.copyfile(repository.pipeline, pipeline)
    click.echo(f"Repository: {repository.root}")
    click.echo(f"Pipeline:   {pipeline}")
    if not only_survey:
        sys.exit(_reduce(repository, directory, model, processes))


def _reduce(repository: DemoRepository, directory: Path, model: str, processes: int) -> int:
    """Build the graph, execute it, and print what became of it; return the exit code."""
    from qgexec.api import GraphExecutor, Preparation, QuantaFailedError
    from qgexec.cli.display import Display
    from qgexec.cli.inspect import print_report
    from qgexec.demo import build_demo_graph, measure_recovery

    click.echo("Building the quantum graph ...")
    graph = build_demo_graph(repository, save_to=directory / "demo.qg")
    with Display() as display:
        executor = GraphExecutor(
            str(repository.root),
            model=model,
            processes=processes,
            run_dir=directory / "run",
            prepare=Preparation(register_dataset_types=True, init_writes=True, versions=True),
            observe=display.observe,
            interrupted=display.interrupted,
        )
        try:
            executor.execute(str(graph))
            code = 0
        except QuantaFailedError:
            code = 1
    assert executor.run_dir is not None
    print_report(executor.run_dir, ended=True)
    if code == 0:
        click.echo(str(measure_recovery(repository)))
        _say_where(directory)
    return code


def _make_room(directory: Path, *, overwrite: bool) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        return
    is_demo = (directory / "repo" / _MARK).exists()
    if not (overwrite and is_demo):
        hint = "Choose another folder" + (", or replace it with --overwrite." if is_demo else ".")
        raise UsageError(f"{directory} exists and is not empty.", hint=hint)
    shutil.rmtree(directory)


def _say_where(directory: Path) -> None:
    click.echo(f"Repository, with all outputs: {directory / 'repo'}")
    click.echo("Plots:")
    for plot in sorted((directory / "repo").rglob("*.png")):
        click.echo(f"  {plot}")
    click.echo(f"The report again: qgexec report {directory / 'run'}")
