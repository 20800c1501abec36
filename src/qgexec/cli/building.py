"""From options to pipelines and graphs: makes, saves, draws and shows what is asked for; executes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgexec.cli.buildoptions import BuildRequest
from qgexec.config.buildoptions import Show
from qgexec.errors import UsageError
from qgexec.plaintext import printable

if TYPE_CHECKING:
    from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, PredictedQuantumGraphComponents

    from qgexec.rubin.pipelines import BuiltPipeline

__all__ = ["MadeGraph", "check_files", "make_graph", "make_pipeline", "say_not_built", "say_saved"]


def check_files(files: Mapping[str, str | None]) -> None:
    """Check that these files can be written, before hours of work whose fruit they are to hold.

    Parameters
    ----------
    files
        Their names by the options that give them.

    Raises
    ------
    qgexec.errors.UsageError
        One cannot.
    """
    for option, name in files.items():
        path = Path(name or os.devnull)
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                continue  # a device or a pipe: opening it might be more than a check
            is_new = not path.exists()
            with path.open("ab"):
                pass
            if is_new:
                path.resolve().unlink()  # not a link that leads there
        except OSError as error:
            raise UsageError(
                f"{option} {name} cannot be written: {error.strerror}.",
                hint="Name a file in a folder that exists and that you may write to.",
            ) from error


def make_pipeline(request: BuildRequest, repository: str | None) -> BuiltPipeline:
    """Make the pipeline; save, draw and show it as asked for.

    Parameters
    ----------
    request
        What is asked for.
    repository
        Tells dimensions and storage classes in drawings; `None` to do without.
    """
    from qgexec.rubin.drawings import draw_pipeline_dot, draw_pipeline_mermaid
    from qgexec.rubin.pipelines import BuiltPipeline
    from qgexec.rubin.repository import open_butler
    from qgexec.rubin.showpipeline import show_pipeline

    made = BuiltPipeline(request.pipeline)
    shows = Show.of_pipeline(request.shows)
    if request.save_pipeline:
        made.save(request.save_pipeline)
    if not (shows or request.pipeline_dot or request.pipeline_mermaid):
        return made
    with ExitStack() as stack:
        butler = stack.enter_context(open_butler(repository)) if repository else None
        if request.pipeline_dot:
            draw_pipeline_dot(made.resolved(butler), request.pipeline_dot)
        if request.pipeline_mermaid:
            draw_pipeline_mermaid(made.resolved(butler), request.pipeline_mermaid)
        for show in shows:
            show_pipeline(show, made, butler, sys.stdout)
    return made


def say_not_built(request: BuildRequest, *, summary: str | None) -> None:
    """Say which files were not written, since all that was to be shown could be shown of the pipeline."""
    wanted = {
        "--save-qgraph": request.save_graph,
        "--qgraph-dot": request.graph_dot,
        "--qgraph-mermaid": request.graph_mermaid,
        "--summary": summary,
    }
    if names := [option for option, name in wanted.items() if name]:
        click.echo(f"No graph was built, as --show needs none: {', '.join(names)} not written.", err=True)


def say_saved(path: str) -> None:
    """Say which file holds the graph."""
    click.echo(f"The graph is saved as {printable(path)}", err=True)


@dataclass(frozen=True)
class MadeGraph:
    """A graph in memory, and the file that holds it."""

    components: PredictedQuantumGraphComponents
    """What it is made of, all quanta loaded."""

    path: str | None
    """The file; `None` where it was not saved."""

    @cached_property
    def graph(self) -> PredictedQuantumGraph:
        """The graph, made when it is first asked for: most runs only need the file."""
        return self.components.assemble()


def make_graph(request: BuildRequest, given: Mapping[str, Any], *, keep: bool = False) -> MadeGraph | None:
    """Build or read the graph; save, draw and show it as asked for.

    Parameters
    ----------
    request
        What is asked for.
    given
        The repository, and the options about collections, by their names in Python.
    keep
        Save a graph that is built also where no file is named for it, unless it was to be shown.

    Returns
    -------
    made
        The graph; `None` where all that is asked for could be shown of the pipeline.
    """
    from qgexec.rubin.build import make_graph, save_graph
    from qgexec.rubin.graphload import load_graph

    shows = Show.of_graph(request.shows)
    if request.graph_file:
        components = load_graph(
            request.graph_file,
            quantum_ids=request.quantum_ids,
            repository=given["repository"],
            graph_id=request.graph_id,
        )
    else:
        pipeline = make_pipeline(request, None)
        if request.shows and not shows:
            return None
        components = make_graph(
            given["repository"],
            pipeline,
            inputs=given["inputs"],
            output=given["output"],
            output_run=given["output_run"],
            extend_run=given["extend_run"],
            replace_run=given["replace_run"],
            rebase=given["rebase"],
            options=request.options,
        )
    path = None
    if request.save_graph or (keep and not shows and not request.graph_file):
        path = save_graph(components, request.save_graph)
        say_saved(path)
    made = MadeGraph(components, path)
    if shows or request.graph_dot or request.graph_mermaid:
        _look_at(made.graph, request, given["repository"])
    return made


def _look_at(graph: PredictedQuantumGraph, request: BuildRequest, repository: str | None) -> None:
    from qgexec.rubin.drawings import draw_graph_dot, draw_graph_mermaid
    from qgexec.rubin.showgraph import show_graph

    if request.graph_dot:
        draw_graph_dot(graph, request.graph_dot)
    if request.graph_mermaid:
        draw_graph_mermaid(graph, request.graph_mermaid)
    for show in Show.of_graph(request.shows):
        show_graph(show, graph, repository, sys.stdout)
