"""`qgexec build` and `qgexec qgraph`: pipelines and graphs that are made or looked at, and not executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qgexec.cli import buildoptions, logoptions, measuring, options
from qgexec.cli.building import check_files, make_graph, make_pipeline, say_not_built
from qgexec.cli.buildoptions import BuildRequest
from qgexec.cli.commandclass import LongCommand
from qgexec.cli.optionsfile import options_file
from qgexec.cli.values import filled
from qgexec.config.buildoptions import Show
from qgexec.errors import UsageError

__all__ = ["build", "qgraph"]


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec build -p pipe.yaml --show task-graph\n"
    "  qgexec build -p pipe.yaml -c isr:doFlat=False -s changed.yaml",
)
@buildoptions.pipeline
@options.repository_if_any
@buildoptions.show
@options_file
def build(*, repository: str | None, **given: Any) -> None:
    """Make a pipeline of a file and changes to it: look at it, draw it, save it.

    Neither data nor a repository is needed; with -b drawings have dimensions.

    --show takes pipeline, pipeline-graph, task-graph, tasks, subsets, inputs,
    config[=[TASK::]PATTERN], dump-config[=TASK] and history=[TASK::]PATTERN.
    """
    request = buildoptions.request_of(given)
    if not request.pipeline:
        raise UsageError("There is nothing to build.", hint="Give a pipeline with -p FILE, or tasks with -t.")
    if of_graph := [f"--show {show.what}" for show in Show.of_graph(request.shows)]:
        raise UsageError(f"{', '.join(of_graph)}: a pipeline has no quanta.", hint="See qgexec qgraph.")
    drawn = request.pipeline_dot or request.pipeline_mermaid
    if repository and not drawn and not {show.what for show in request.shows} & _WITH_DIMENSIONS:
        raise UsageError(
            "-b: nothing that is asked for needs the repository.",
            hint="Leave it out, or add --show pipeline-graph.",
        )
    check_files(request.files())
    logoptions.begin()
    made = make_pipeline(request, repository)
    if not (request.shows or any(request.files().values())):
        n_tasks = len(made.graph.tasks)
        click.echo(
            f"{n_tasks} task{'' if n_tasks == 1 else 's'}; --show shows them, -s FILE saves the pipeline."
        )


_WITH_DIMENSIONS = frozenset({"pipeline-graph", "task-graph", "inputs"})
"""What is shown of a pipeline that depends on a repository."""


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    '  qgexec qgraph -b REPO -p pipe.yaml -i raw -o u/me -d "visit=42" -q graph.qg\n'
    "  qgexec qgraph -g graph.qg --show workflow",
)
@options.repository_if_any
@buildoptions.graph_file
@buildoptions.graph_part
@buildoptions.collections
@buildoptions.pipeline
@buildoptions.graph_building
@options.existing
@buildoptions.graph_output
@click.option(
    "--summary",
    metavar="FILE",
    type=filled,
    help="Write pipetask's JSON summary of the graph to this file.",
)
@buildoptions.show
@measuring.coverage_options
@options_file
def qgraph(*, summary: str | None, **given: Any) -> None:
    """Build a quantum graph and save it, or look at one; nothing is executed.

    The repository is only read. `qgexec run -g` executes the graph, `qgexec submit
    -g` leaves it to a batch system.

    --show takes graph, workflow and uri beside all that `qgexec build --show` takes.
    """
    request = buildoptions.request_of(given)
    buildoptions.check_collections(given)
    _check_use(request, given)
    check_files({"--summary": summary} | request.files())
    logoptions.begin()
    with measuring.covered(given):
        made = make_graph(request, given)
    if made is None:
        say_not_built(request, summary=summary)
        return
    from qgexec.rubin.showgraph import count_quanta, summary_json

    if summary:
        _write_summary(summary, summary_json(made.graph))
    if request.shows:
        return  # that is all that is to be read, here or by a program
    counts = count_quanta(made.graph)
    width = max(map(len, counts))
    for label, count in counts.items():
        click.echo(f"{label:{width}}  {count:>9}")
    click.echo(f"{'in all':{width}}  {sum(counts.values()):>9}")
    if made.path is None and not (request.graph_file or any(request.files().values())):
        click.echo("The graph was not saved: -q FILE saves it.", err=True)


def _write_summary(file: str, text: str) -> None:
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise UsageError(
            f"--summary {file} cannot be written: {error.strerror}.",
            hint="Name a file in a folder that exists and that you may write to.",
        ) from error


def _check_use(request: BuildRequest, given: dict[str, Any]) -> None:
    if not request.graph_file and not request.pipeline:
        raise UsageError(
            "There is no graph.", hint="Give one with -g FILE, or a pipeline to build one from with -p FILE."
        )
    builds = not request.graph_file and (Show.of_graph(request.shows) or not request.shows)
    if builds and not given["repository"]:
        raise UsageError("There is no repository to build a graph from.", hint="Name it with -b REPO.")
    if builds and not (given["output"] or given["output_run"]):
        raise UsageError(
            "There is no output collection.", hint="Name one with -o COLLECTION or --output-run RUN."
        )
