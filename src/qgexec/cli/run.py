"""`qgexec run` and `qgexec init`: from options to a run, its progress and its exit code."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qgexec.cli import EXIT_BAD_USE, EXIT_FAILED, EXIT_INTERRUPTED, options
from qgexec.cli.inspect import print_report
from qgexec.errors import QgexecError, UsageError

if TYPE_CHECKING:
    from qgexec.api import GraphExecutor, Preparation

__all__ = ["init", "run"]


_IN_THE_HEADER = ("inputs", "output", "output_run")
"""Options that a graph built from a pipeline has in its header."""

_ONLY_ONCE = (
    *("repository", "graph", "pipeline", "data_query", "config", "config_file", "save_qgraph"),
    *("run_dir", "extend_run", "clobber_outputs"),
)
"""Options that are not, or not as they were, in the command that goes on with a run."""


@dataclass(frozen=True, slots=True)
class _Building:
    """The options that build a graph; all empty where one is given."""

    pipeline: str | None
    data_query: str
    config: tuple[tuple[str, str, str], ...]
    config_file: tuple[tuple[str, str], ...]
    save_qgraph: str | None

    def given(self) -> list[str]:
        """Names of the options that only make sense with a pipeline."""
        named = {
            "--data-query": self.data_query,
            "--config": self.config,
            "--config-file": self.config_file,
            "--save-qgraph": self.save_qgraph,
        }
        return [name for name, value in named.items() if value]


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec run -b REPO -g graph.qg -j 8 --register-dataset-types\n"
    '  qgexec run -b REPO -p pipe.yaml -i raw,calib -o u/me/test -d "visit = 42"\n'
    "  qgexec run -b REPO -g graph.qg --extend-run --clobber-outputs    (go on)"
)
@options.repository
@options.graph_and_collections
@options.building
@options.initialization
@options.run_dir
@click.option("--init-only", is_flag=True, help="Stop after the registry is up to date.")
@options.execution
def run(
    *, graph: str | None, pipeline: str | None, summary: str | None, init_only: bool, **given: Any
) -> None:
    """Execute a quantum graph, or build one and execute it.

    Before it runs, the output collections are defined and configs, package
    versions and other init-outputs are written, or compared where they exist.
    Outputs are taken into the registry while the run goes on.

    Exit codes: 0 all succeeded, 1 some quanta failed or were blocked, 2 wrong
    use or bad input, 130 interrupted.
    """
    building = _Building(
        pipeline,
        *(given.pop(name) for name in ("data_query", "config", "config_file", "save_qgraph")),
    )
    _check_use(graph, building, given | {"summary": summary}, init_only=init_only)
    _check_files({"--summary": summary, "--save-qgraph": building.save_qgraph})
    model = given.pop("model") or ("inprocess" if given["processes"] == 1 else "pool")
    if not init_only:
        _warm_up(model, implicit_threads=given["enable_implicit_threading"])
    graph = graph or _build(building, given)
    if init_only:
        _init(graph, given)
        return
    given |= {"model": model, "summary": summary}
    sys.exit(_execute(graph, given))


@click.command(epilog="Example:  qgexec init -b REPO -g graph.qg --register-dataset-types")
@options.repository
@options.graph_and_collections
@options.initialization
def init(*, graph: str | None, **given: Any) -> None:
    """Only bring the registry up to date for a graph; nothing is executed.

    Dataset types are registered or checked, output collections defined,
    configs, package versions and other init-outputs written or compared.
    """
    if graph is None:
        raise UsageError("No graph was given.", hint="Name one with -g FILE.")
    _init(graph, given)


def _check_use(graph: str | None, building: _Building, given: dict[str, Any], *, init_only: bool) -> None:
    if graph and building.pipeline:
        raise UsageError(
            "-g and -p exclude each other.", hint="Give the graph, or the pipeline to build one from."
        )
    if not graph and not building.pipeline:
        raise UsageError(
            "There is nothing to run.", hint="Give a graph with -g FILE, or a pipeline with -p FILE."
        )
    if graph and (names := building.given()):
        raise UsageError(
            f"{', '.join(names)}: only for building a graph, but -g {graph} is built already.",
            hint="Leave them out, or build the graph with -p.",
        )
    if building.pipeline and not (given["output"] or given["output_run"]):
        raise UsageError(
            "There is no output collection.", hint="Name one with -o COLLECTION or --output-run RUN."
        )
    if building.save_qgraph and Path(building.save_qgraph).suffix != ".qg":
        raise UsageError(f"--save-qgraph {building.save_qgraph} does not end in .qg.")
    if init_only and (names := [name for name in ("run_dir", "summary") if given.get(name)]):
        useless = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{useless}: no use with --init-only, for nothing is run.", hint="Leave it out.")


def _check_files(files: Mapping[str, str | None]) -> None:
    """Check that these files can be written, before hours of work whose fruit they are to hold."""
    for option, name in files.items():
        path = Path(name or os.devnull)
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                continue  # a device or a pipe: opening it might be more than a check
            is_new = not path.exists()
            with path.open("ab"):
                pass
            if is_new:
                path.unlink()
        except OSError as error:
            raise UsageError(
                f"{option} {name} cannot be written: {error.strerror}.",
                hint="Name a file in a folder that exists and that you may write to.",
            ) from error


def _warm_up(model: str, *, implicit_threads: bool) -> None:
    """Import the stack, here and in the server that forks workers, at the same time."""
    if model == "pool":
        from qgexec.processes import warm_up
        from qgexec.rubin import PRELOAD

        warm_up(PRELOAD, implicit_threads=implicit_threads)
    gc.disable()  # imports make many objects and no garbage: collecting takes a fifth of their time
    import_module("qgexec.api")
    gc.freeze()
    gc.enable()


def _build(building: _Building, given: dict[str, Any]) -> str:
    from qgexec.rubin.build import build_graph

    assert building.pipeline is not None
    path = build_graph(
        given["repository"],
        building.pipeline,
        inputs=given["inputs"],
        output=given["output"],
        output_run=given["output_run"],
        extend_run=given["extend_run"],
        data_query=building.data_query,
        config_overrides=building.config,
        config_files=building.config_file,
        skip_existing=given["skip_existing"],
        clobber_outputs=given["clobber_outputs"],
        save_to=building.save_qgraph,
    )
    click.echo(f"The graph is saved as {path}", err=True)
    return path


def _preparation(given: dict[str, Any]) -> Preparation:
    from qgexec.api import Preparation

    return Preparation(
        inputs=given["inputs"],
        output=given["output"],
        output_run=given["output_run"],
        extend_run=given["extend_run"],
        register_dataset_types=given["register_dataset_types"],
        init_writes=not given["skip_init_writes"],
        versions=not given["no_versions"],
    )


def _init(graph: str, given: dict[str, Any]) -> None:
    from qgexec.offline import prepare

    prepared = prepare(given["repository"], graph, _preparation(given))
    click.echo(f"The registry is ready for {prepared.output_run}.")


def _execute(graph: str, given: dict[str, Any]) -> int:
    """Execute a graph, say what became of it, and return the exit code."""
    from astropy import units

    from qgexec.api import ExecutionResources, GraphExecutor
    from qgexec.cli.display import Display

    with Display() as display:
        executor = GraphExecutor(
            given["repository"],
            model=given["model"],
            processes=given["processes"],
            timeout_s=given["timeout_s"],
            fail_fast=given["fail_fast"],
            skip_existing=given["skip_existing"] or given["extend_run"],
            clobber_outputs=given["clobber_outputs"] and given["extend_run"],
            resources=ExecutionResources(
                num_cores=given["cores_per_quantum"],
                max_mem=given["memory_per_quantum"],
                default_mem_units=units.byte,
            ),
            raise_on_partial_outputs=given["raise_on_partial_outputs"],
            implicit_threads=given["enable_implicit_threading"],
            log_level="INFO",
            run_dir=given["run_dir"],
            prepare=_preparation(given),
            observe=display.observe,
            interrupted=display.interrupted,
        )
        code, broken = _outcome_of(lambda: executor.execute(graph))
    if executor.run_dir is None:  # it never began
        if broken is not None:
            raise broken
        raise KeyboardInterrupt
    if given["summary"]:
        _write_summary(executor, given["summary"])
    print_report(executor.run_dir, ended=True)
    if code == 0:
        return code
    advice = _how_to_go_on(code, graph)
    if broken is not None:
        broken.hint = f"{broken.hint}\n{advice}".lstrip()
        raise broken
    click.echo(advice, err=True)
    return code


def _outcome_of(execute: Callable[[], None]) -> tuple[int, QgexecError | None]:
    """Return the exit code, and what broke the run, if anything did."""
    from qgexec.api import QuantaFailedError

    try:
        execute()
    except QuantaFailedError:
        return EXIT_FAILED, None
    except QgexecError as error:
        return EXIT_BAD_USE, error
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, None
    return 0, None


def _write_summary(executor: GraphExecutor, file: str) -> None:
    try:
        Path(file).write_text(executor.getReport().model_dump_json(exclude_none=True, indent=2))
    except (OSError, QgexecError) as error:
        # What became of the run is worth more than this file: its report and its exit code are still to come.
        click.echo(f"--summary {file} could not be written: {error}", err=True)


def _how_to_go_on(code: int, graph: str) -> str:
    began = {
        EXIT_FAILED: "What succeeded is kept. To run the rest again",
        EXIT_INTERRUPTED: "Interrupted. What was done is kept. To go on",
        EXIT_BAD_USE: "The run broke off; what was done is kept. To go on",
    }[code]
    return f"{began}:\n  {shlex.join(_same_command(graph))} --extend-run --clobber-outputs"


def _same_command(graph: str) -> list[str]:
    """Return the command that was given, with the graph if it was built, and without its run directory."""
    context = click.get_current_context()
    words = ["qgexec", "run", "-b", context.params["repository"], "-g", graph]
    left_out = set(_ONLY_ONCE if context.params["pipeline"] is None else (*_ONLY_ONCE, *_IN_THE_HEADER))
    for option in context.command.params:
        name, value = str(option.name), context.params[str(option.name)]
        if name in left_out or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name == "memory_per_quantum":
            value = f"{value}B"
        if isinstance(value, bool):
            words.append(option.opts[-1] if value else option.secondary_opts[-1])
        else:
            words += [option.opts[0], ",".join(value) if isinstance(value, tuple) else str(value)]
    return words
