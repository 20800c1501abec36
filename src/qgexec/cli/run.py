"""`qgexec run` and `qgexec init`: from options to a run, its progress and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from qgexec.cli import buildoptions, logoptions, measuring, options
from qgexec.cli.building import check_files, make_graph, say_not_built, say_saved
from qgexec.cli.buildoptions import BuildRequest
from qgexec.cli.commandclass import LongCommand, stack
from qgexec.cli.execution import conclude, default_model, outcome_of, say_it_goes_on, warm_up
from qgexec.cli.inspect import TRUST_OWNER, terminal_width
from qgexec.cli.optionsfile import options_file
from qgexec.cli.resume import go_on, resume
from qgexec.cli.searchpath import config_search_path, configure
from qgexec.errors import UsageError

if TYPE_CHECKING:
    from qgexec.api import GraphExecutor, Preparation
    from qgexec.rubin.graphwrite import BuiltGraph

    _Graph = str | BuiltGraph

__all__ = ["building", "executing", "executor_for", "graph_of", "init", "run", "submit"]


_graph_options = stack(
    buildoptions.graph_file,
    buildoptions.graph_part,
    buildoptions.collections,
    buildoptions.pipeline,
    buildoptions.graph_building,
    buildoptions.graph_output,
    buildoptions.show,
)

building = stack(options.repository, _graph_options)

executing = stack(
    buildoptions.execution_part,
    options.initialization,
    config_search_path,
    options.run_dir,
    options.force,
    options.execution,
    options.graph_fixup,
    options.resources,
    measuring.lsst_debug,
)


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec run -b REPO -g graph.qg -j 8 --register-dataset-types\n"
    '  qgexec run -b REPO -p pipe.yaml -i raw,calib -o u/me/test -d "visit = 42"\n'
    "  qgexec resume qgexec-runs/RUN    # go on with what was not done",
)
@building
@executing
@click.option("--init-only", is_flag=True, help="Stop after the registry is up to date.")
@measuring.debugging
@measuring.coverage_options
@options.dry_run
@options_file
def run(*, init_only: bool, dry_run: bool, **given: Any) -> None:
    """Execute a quantum graph, or build one and execute it.

    Before it runs, the output collections are defined and configs, package
    versions and other init-outputs are written, or compared where they exist.
    Outputs are taken into the registry while the run goes on.

    Exit codes: 0 all succeeded, 1 some quanta failed or were blocked, 2 wrong
    use or bad input, 130 interrupted.
    """
    given["model"] = given["model"] or default_model(given["processes"])
    measuring.check_debugger(given)
    if dry_run:
        _require_batch_system(given)
    with measuring.covered(given):
        graph = graph_of(given, init_only=init_only)
        if graph is None:
            return
        if init_only:
            _init(graph, given)
        elif dry_run:
            _rehearse(graph, given)
        else:
            sys.exit(_execute(graph, given))


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec submit -b REPO -g graph.qg --model slurm --resources site.yaml\n"
    "  qgexec submit qgexec-runs/RUN --model slurm    # what is left of a run\n"
    "  qgexec status qgexec-runs/RUN    # from any machine that sees it",
)
@click.argument("run", required=False, metavar="[RUN_DIR]", type=click.Path(file_okay=False, path_type=Path))
@options.repository_if_any
@_graph_options
@executing
@options.dry_run
@options_file
@TRUST_OWNER
def submit(*, run: Path | None, dry_run: bool, trust_owner: bool, **given: Any) -> None:
    """Leave a quantum graph to a batch system, and do not wait for it.

    The options are those of `qgexec run`. Prints the run directory: qgexec status,
    report, log, cancel and resume take it from there. The last job takes the
    outputs into the registry. With a RUN_DIR, what is left of that run is
    submitted, as by `qgexec resume --no-wait`: it has all that it needs.

    Exit codes: 0 submitted, 2 wrong use or bad input; nothing was submitted then.
    """
    if run is not None:
        _submit_rest(run, given, trust_owner=trust_owner)
    if trust_owner:
        raise UsageError(
            "--trust-owner is about a run directory, and none was given.", hint="Leave it out, or name one."
        )
    if given["repository"] is None:
        raise UsageError(
            "There is no repository.",
            hint="Name one with -b REPO, and a graph or a pipeline; or a run directory, to submit its rest.",
        )
    _require_batch_system(given)
    graph = graph_of(given)
    if graph is None:
        return
    if dry_run:
        _rehearse(graph, given)
        return
    with executor_for(given) as executor, _keeping(graph):
        code, broken = outcome_of(lambda: executor.submit(graph))
    if broken is not None or not executor.has_left:
        sys.exit(
            conclude(executor, code, broken, summary=given["summary"], resources=given["resource_files"])
        )
    assert executor.run_dir is not None
    say_it_goes_on(executor.run_dir)
    click.echo(executor.run_dir)


def _submit_rest(run_dir: Path, given: dict[str, Any], *, trust_owner: bool) -> NoReturn:
    """Submit what is left of a run, which knows its repository, graph and collections."""
    context = click.get_current_context()
    of_resume = {option.name for option in resume.params}
    for option in context.command.params:
        name = option.name or ""
        is_typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_typed and option.param_type_name == "option" and name not in of_resume:
            raise UsageError(
                f"{option.opts[-1]} means nothing for a run that has begun, as that in {run_dir} has.",
                hint="Leave it out; or leave out the run directory, and begin a new run.",
            )
    options_of_resume = {name: value for name, value in given.items() if name in of_resume}
    summary, force = options_of_resume.pop("summary"), options_of_resume.pop("force")
    go_on(run_dir, options_of_resume, force=force, leave=True, summary=summary, trust_owner=trust_owner)


def graph_of(given: dict[str, Any], *, init_only: bool = False) -> _Graph | None:
    """Check the options, leave in ``given`` what executing takes, and return the graph, built if need be.

    Returns
    -------
    graph
        File, or graph in memory; `None` where something was to be shown, and nothing is to be executed.
        One that is built is in no file, unless one is named for it, or it is only to be prepared for.
    """
    if given["only_failures_of"]:
        _try_failures_again(given)
    request = buildoptions.request_of(given)
    buildoptions.check_collections(given)
    _check_use(request, given, init_only=init_only)
    check_files({"--summary": given["summary"], "--profile": given.get("profile")} | request.files())
    given["part"] = buildoptions.part_of(given)
    given["resource_files"] = tuple(given["resources"])
    given["config"] = options.run_config(given)
    given["model"] = given["model"] or default_model(given["processes"])
    if not (init_only or request.shows):
        warm_up(given["model"], implicit_threads=given["enable_implicit_threading"])
    reads = request.shows or request.quantum_ids or request.graph_id or any(request.files().values())
    logoptions.begin()
    configure(given)
    if request.graph_file and not reads:
        return request.graph_file
    if request.pipeline and not request.shows:
        _check_folder_name(request, given, init_only=init_only)
    made = make_graph(request, given, keep=init_only)
    if request.shows:
        if made is None:
            say_not_built(request, summary=None)
        return None
    from qgexec.rubin.graphwrite import BuiltGraph

    assert made is not None, "it is only where there is something to show"
    return made.path or BuiltGraph.of(made.components)


def _try_failures_again(given: dict[str, Any]) -> None:
    """Where the RUN is that of the failures: have it extended, and what they left in it removed."""
    from qgexec.books.rundir import RunDir

    if given["replace_run"]:
        return
    runs = {RunDir.open(Path(each)).read_settings().context.output_run for each in given["only_failures_of"]}
    output_run = given["output_run"]
    if output_run is None and given["qgraph"] and given["output"] is None:
        from qgexec.rubin.graphfile import read_output_run

        output_run = read_output_run(given["qgraph"])
    if output_run in runs:
        given["extend_run"] = given["clobber_outputs"] = True


def _check_folder_name(request: BuildRequest, given: dict[str, Any], *, init_only: bool) -> None:
    """Check that the RUN can name run directory or file, before hours of work for nothing."""
    from qgexec.books.rundir import folder_name

    if (request.save_graph if init_only else given["run_dir"]) is None:
        folder_name(given["output_run"] or given["output"])


@click.command(epilog="Example:  qgexec init -b REPO -g graph.qg --register-dataset-types")
@options.repository
@buildoptions.graph_file
@buildoptions.collections
@options.initialization
@config_search_path
@measuring.coverage_options
def init(*, qgraph: str | None, qgraph_id: str | None, **given: Any) -> None:
    """Only bring the registry up to date for a graph; nothing is executed.

    Dataset types are registered or checked, output collections defined,
    configs, package versions and other init-outputs written or compared.
    """
    if qgraph is None:
        raise UsageError("No graph was given.", hint="Name one with -g FILE.")
    buildoptions.check_collections(given)
    logoptions.begin()
    configure(given)
    with measuring.covered(given):
        if qgraph_id is None:
            _init(qgraph, given)
            return
        from qgexec.rubin.graphload import load_graph
        from qgexec.rubin.graphwrite import BuiltGraph

        components = load_graph(qgraph, repository=given["repository"], graph_id=qgraph_id)
        _init(BuiltGraph.of(components), given)


def _check_use(request: BuildRequest, given: dict[str, Any], *, init_only: bool) -> None:
    if not request.graph_file and not request.pipeline:
        raise UsageError(
            "There is nothing to run.", hint="Give a graph with -g FILE, or a pipeline with -p FILE."
        )
    if request.pipeline and not request.shows and not (given["output"] or given["output_run"]):
        raise UsageError(
            "There is no output collection.", hint="Name one with -o COLLECTION or --output-run RUN."
        )
    if init_only and (names := [name for name in ("run_dir", "summary") if given.get(name)]):
        useless = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{useless}: no use with --init-only, for nothing is run.", hint="Leave it out.")


def _require_batch_system(given: dict[str, Any]) -> None:
    """Check that the model submits jobs, before a graph is built for it; what is only shown needs none."""
    from qgexec.models.registry import facts_of

    if given["shows"]:
        return
    if given["model"] is None:
        raise UsageError(
            "No batch system was named.", hint="Name one, as with --model slurm; to execute here: qgexec run."
        )
    if not facts_of(given["model"]).survives_driver:
        raise UsageError(
            f"{given['model']} needs a driver as long as it runs: it submits nothing.",
            hint="Name a batch system, as with --model slurm; to execute here: qgexec run.",
        )


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
        rebase=given["rebase"],
        replace_run=given["replace_run"],
        prune_replaced=given["prune_replaced"],
    )


def _init(graph: _Graph, given: dict[str, Any]) -> None:
    from qgexec.offline import prepare

    prepared = prepare(given["repository"], graph, _preparation(given))
    click.echo(f"The registry is ready for {prepared.output_run}.")


def _execute(graph: _Graph, given: dict[str, Any]) -> int:
    """Execute a graph, say what became of it, and return the exit code."""
    with executor_for(given) as executor, measuring.profiled(given["profile"]), _keeping(graph):
        code, broken = outcome_of(lambda: executor.execute(graph))
    return conclude(executor, code, broken, summary=given["summary"], resources=given["resource_files"])


@contextmanager
def _keeping(graph: _Graph) -> Iterator[None]:
    """Save a graph that was built, if no run directory has it afterwards: the run did not begin."""
    try:
        yield
    finally:
        if not isinstance(graph, str) and graph.components is not None:
            from qgexec.rubin.build import save_graph

            say_saved(save_graph(graph.components))


def _rehearse(graph: _Graph, given: dict[str, Any]) -> None:
    """Write what would be submitted, and print what it is."""
    from qgexec.reports.rehearsal import format_rehearsal

    with executor_for(given) as executor:
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
    click.echo(text)


@contextmanager
def executor_for(given: dict[str, Any]) -> Iterator[GraphExecutor]:
    """Give an executor for these options, and show how far it is until the block ends."""
    from qgexec.api import GraphExecutor
    from qgexec.cli.display import Display
    from qgexec.models.registry import facts_of

    logs = logoptions.asked_for()
    # A moving bar does not go together with a log, or a debugger, on one terminal.
    moving = False if (logs is not None and logs.terminal) or given.get("debugger") else None
    with Display(on_terminal=moving, survives=facts_of(given["model"]).survives_driver) as display:
        yield GraphExecutor(
            given.get("configuration", given["repository"]),
            model=given["model"],
            processes=given["processes"],
            fail_fast=given["fail_fast"],
            max_failures=given["max_failures"],
            config=given["config"],
            grace_s=given["grace_s"],
            seed=given["seed"],
            skip_existing=given["skip_existing"] or given["extend_run"],
            clobber_outputs=given["clobber_outputs"] and given["extend_run"],
            raise_on_partial_outputs=given["raise_on_partial_outputs"],
            strict_versions=given["strict_versions"],
            implicit_threads=given["enable_implicit_threading"],
            provenance=given["provenance"],
            execution_graph_fixup=given["graph_fixup"],
            part=given["part"],
            lsst_debug=given["lsst_debug"],
            debugger=given.get("debugger"),
            log_level="INFO",
            logging=logs,
            run_dir=given["run_dir"],
            force=given["force"],
            prepare=_preparation(given),
            observe=display.observe,
            interrupted=display.interrupted,
            tell=display.show_now,
        )
