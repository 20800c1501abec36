"""`qgexec run` and `qgexec init`: from options to a run, its progress and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgexec.cli import options
from qgexec.cli.execution import conclude, default_model, outcome_of, warm_up
from qgexec.cli.inspect import print_text, terminal_width
from qgexec.errors import UsageError

if TYPE_CHECKING:
    from qgexec.api import GraphExecutor, Preparation

__all__ = ["init", "run", "submit"]


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
    "  qgexec resume qgexec-runs/RUN    (go on with what was not done)"
)
@options.repository
@options.graph_and_collections
@options.building
@options.initialization
@options.run_dir
@click.option("--init-only", is_flag=True, help="Stop after the registry is up to date.")
@options.execution
@options.resources
@options.dry_run
def run(*, init_only: bool, dry_run: bool, **given: Any) -> None:
    """Execute a quantum graph, or build one and execute it.

    Before it runs, the output collections are defined and configs, package
    versions and other init-outputs are written, or compared where they exist.
    Outputs are taken into the registry while the run goes on.

    Exit codes: 0 all succeeded, 1 some quanta failed or were blocked, 2 wrong
    use or bad input, 130 interrupted.
    """
    graph = _graph_of(given, init_only=init_only)
    if init_only:
        _init(graph, given)
    elif dry_run:
        _rehearse(graph, given)
    else:
        sys.exit(_execute(graph, given))


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec submit -b REPO -g graph.qg --model slurm --resources site.yaml\n"
    "  qgexec status qgexec-runs/RUN    (from any machine that sees it)"
)
@options.repository
@options.graph_and_collections
@options.building
@options.initialization
@options.run_dir
@options.execution
@options.resources
@options.dry_run
def submit(*, dry_run: bool, **given: Any) -> None:
    """Leave a quantum graph to a batch system, and do not wait for it.

    The options are those of `qgexec run`. Prints the run directory: qgexec status,
    report, log, cancel and resume take it from there. The last job takes the
    outputs into the registry.

    Exit codes: 0 submitted, 2 wrong use or bad input; nothing was submitted then.
    """
    graph = _graph_of(given)
    if dry_run:
        _rehearse(graph, given)
        return
    with _executor(given) as executor:
        code, broken = outcome_of(lambda: executor.submit(graph))
    if broken is not None or not executor.has_left:
        sys.exit(conclude(executor, code, broken, summary=given["summary"]))
    click.echo(executor.run_dir)


def _graph_of(given: dict[str, Any], *, init_only: bool = False) -> str:
    """Check the options, leave in ``given`` what executing takes, and return the graph, built if need be."""
    graph: str | None = given.pop("graph")
    building = _Building(
        *(given.pop(name) for name in ("pipeline", "data_query", "config", "config_file", "save_qgraph"))
    )
    _check_use(graph, building, given, init_only=init_only)
    _check_files({"--summary": given["summary"], "--save-qgraph": building.save_qgraph})
    given["config"] = options.run_config(given)
    given["model"] = given["model"] or default_model(given["processes"])
    if not init_only:
        warm_up(given["model"], implicit_threads=given["enable_implicit_threading"])
    return graph or _build(building, given)


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
        chain=not given["no_output_chain"],
    )


def _init(graph: str, given: dict[str, Any]) -> None:
    from qgexec.offline import prepare

    prepared = prepare(given["repository"], graph, _preparation(given))
    click.echo(f"The registry is ready for {prepared.output_run}.")


def _execute(graph: str, given: dict[str, Any]) -> int:
    """Execute a graph, say what became of it, and return the exit code."""
    with _executor(given) as executor:
        code, broken = outcome_of(lambda: executor.execute(graph))
    return conclude(executor, code, broken, summary=given["summary"])


def _rehearse(graph: str, given: dict[str, Any]) -> None:
    """Write what would be submitted, and print what it is."""
    from qgexec.reports.rehearsal import format_rehearsal

    with _executor(given) as executor:
        found = executor.rehearse(graph)
    text = format_rehearsal(
        found.batch_round,
        found.calls,
        found.forecast,
        n_files=found.n_files,
        n_bytes=found.n_bytes,
        remarks=found.remarks,
        width=terminal_width(),
    )
    print_text(text)


@contextmanager
def _executor(given: dict[str, Any]) -> Iterator[GraphExecutor]:
    """Give an executor for these options, and show how far it is until the block ends."""
    from qgexec.api import GraphExecutor
    from qgexec.cli.display import Display
    from qgexec.models.registry import facts_of

    with Display(survives=facts_of(given["model"]).survives_driver) as display:
        yield GraphExecutor(
            given["repository"],
            model=given["model"],
            processes=given["processes"],
            fail_fast=given["fail_fast"],
            max_failures=given["max_failures"],
            config=given["config"],
            grace_s=given["grace_s"],
            skip_existing=given["skip_existing"] or given["extend_run"],
            clobber_outputs=given["clobber_outputs"] and given["extend_run"],
            raise_on_partial_outputs=given["raise_on_partial_outputs"],
            strict_versions=given["strict_versions"],
            implicit_threads=given["enable_implicit_threading"],
            log_level="INFO",
            run_dir=given["run_dir"],
            prepare=_preparation(given),
            observe=display.observe,
            interrupted=display.interrupted,
            tell=display.show_now,
        )
