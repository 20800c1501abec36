"""The `qgexec-pipetask` command: what scripts and workflows call by the name of pipetask."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import qgexec
from qgexec.cli import EXIT_FAILED, logoptions, measuring, options
from qgexec.cli.buildoptions import graph_part
from qgexec.cli.commandclass import LongCommand, section, stack
from qgexec.cli.execution import default_model, warm_up, write_summary
from qgexec.cli.main import SECTIONS, LazyGroup, Sections, begin_command, run_program
from qgexec.cli.values import comma_list
from qgexec.errors import EmptyGraphError, QgexecError, UsageError
from qgexec.plaintext import printable
from qgexec.scheduling.policy import INVALID_QUANTUM_EXIT_CODE, REPEATABLE_QUANTUM_EXIT_CODE

if TYPE_CHECKING:
    from qgexec.config.runoptions import RunOptions
    from qgexec.reports.report import RunReport
    from qgexec.withoutregistry import Execution

__all__ = ["cli", "main", "pre_exec_init_qbb", "run_qbb"]

_HANDED_ON = (
    "build",
    "qgraph",
    "update-graph-run",
    "run",
    "report",
    "aggregate-reports",
    "purge",
    "cleanup",
)
"""Commands that are those of `qgexec`, which have pipetask's names and options."""

_OWN = {
    "pre-exec-init-qbb": (__name__, "pre_exec_init_qbb", "Write the init-outputs of a graph."),
    "run-qbb": (__name__, "run_qbb", "Execute quanta of a graph."),
}

_COMMANDS: Sections = {
    "With quantum-backed butlers": _OWN,
    "As of qgexec": {
        name: entry
        for commands in SECTIONS.values()
        for name, entry in commands.items()
        if name in _HANDED_ON
    },
}

_CAUSES_SHOWN = 20
"""Causes of failures that are printed, the most frequent first."""


@click.group(
    cls=LazyGroup,
    sections=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example:  qgexec-pipetask --log-level VERBOSE run-qbb REPO graph.qg -j 8",
)
@click.version_option(qgexec.__version__, prog_name="qgexec-pipetask")
@logoptions.log_options
@click.pass_context
def cli(ctx: click.Context, /, **logging_options: Any) -> None:
    """Execute quanta as pipetask does, for scripts and workflows that call it by that name.

    A link to this program that is called pipetask, in a folder of the PATH or in
    ${CTRL_MPEXEC_DIR}/bin, takes the place of pipetask.
    """
    begin_command(ctx, logging_options)
    ctx.obj["terminal"] = logging_options["log_tty"]


def main() -> None:
    """Run the command line; never returns.

    Exit codes: those of pipetask. 0 all succeeded; 1 quanta failed or were blocked, or something cannot be
    used; 2 wrong use; 20 and 21 what upstream's exceptions ask for; a signal ends it as it ends pipetask.
    """
    run_program(cli, _exit_code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, click.ClickException):
        return error.exit_code
    return 2 if isinstance(error, UsageError) else EXIT_FAILED


def _search_first(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Let the butler look for its configuration in these folders first, here and in workers."""
    folders = comma_list(ctx, param, values)
    if folders:
        others = os.environ.get("DAF_BUTLER_CONFIG_PATH")
        os.environ["DAF_BUTLER_CONFIG_PATH"] = os.pathsep.join([*folders, *([others] if others else [])])
    return folders


_graph = stack(
    click.argument("repository", metavar="REPO"),
    click.argument("qgraph", metavar="QGRAPH"),
    section(
        "Graph and repository",
        click.option(
            "--config-search-path",
            metavar="PATH",
            multiple=True,
            callback=_search_first,
            expose_value=False,
            help="Look for the butler's configuration here first; comma-separated.",
        ),
        click.option("--qgraph-id", metavar="ID", help="Identifier that a .qgraph file must have."),
    ),
)


@click.command(cls=LongCommand, epilog="Example:  qgexec-pipetask --long-log pre-exec-init-qbb REPO graph.qg")
@_graph
@measuring.coverage_options
def pre_exec_init_qbb(*, repository: str, qgraph: str, qgraph_id: str | None, **given: Any) -> None:
    """Write configs, package versions and other init-outputs of a graph to the datastore.

    REPO is the butler repository, QGRAPH the file of the graph. What is there already is compared. The
    registry is neither read nor written: 'butler transfer-from-graph' or 'butler aggregate-graph' take it
    in. Exit codes: 0, or 1 where something is wrong, 2 wrong use.
    """
    _begin_logging()
    from qgexec.processes.ownfolder import own_folder
    from qgexec.withoutregistry import write_init_outputs

    with measuring.covered(given), own_folder("qgexec-init") as folder:
        write_init_outputs(repository, qgraph, folder, qgraph_id)


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec-pipetask run-qbb REPO graph.qg -j 8\n"
    "  qgexec-pipetask --long-log --log-level=VERBOSE run-qbb REPO graph.qg --qgraph-node-id UUID",
)
@_graph
@graph_part
@options.as_pipetask
@section(
    "Execution",
    click.option(
        "--start-method",
        type=click.Choice(["spawn", "fork", "forkserver"]),
        expose_value=False,
        help="Without effect: workers are forked from a server of their own.",
    ),
    click.option(
        "--no-existing-outputs",
        is_flag=True,
        help="Do not look for outputs of earlier tries: there are none.",
    ),
)
@measuring.lsst_debug
@measuring.debugging
@measuring.coverage_options
def run_qbb(**given: Any) -> None:
    """Execute quanta of a graph, all or those that are named.

    REPO is the butler repository, QGRAPH the file of the graph. Quanta whose metadata exists are skipped,
    other outputs that are in the way are removed. The registry is neither read nor written: 'butler
    transfer-from-graph' or 'butler aggregate-graph' take the outputs in. With -j above 1 quanta run in warm
    workers. Nothing is left but the outputs: no run directory, and no entry in the list of runs.

    Exit codes: 0 all succeeded; 1 some quanta failed or were blocked, or something cannot be used; 2 wrong
    use; with -j 1 also 20 for a RepeatableQuantumError with --fail-fast, and 21 for an InvalidQuantumError.
    """
    given["model"] = default_model(given["processes"])
    measuring.check_debugger(given)
    warm_up(given["model"], implicit_threads=given["enable_implicit_threading"])
    _begin_logging()
    from qgexec.processes.ownfolder import own_folder

    with measuring.covered(given), own_folder("qgexec-run") as folder:
        code, signal_number = _run(given, folder)
    if signal_number is not None:
        _end_by(signal_number)
    raise SystemExit(code)


def _begin_logging() -> None:
    """Log as pipetask does, who logs to the terminal unless told otherwise."""
    from qgexec.config.logoptions import LogOptions

    known = click.get_current_context().find_root().obj
    known["logging"] = known["logging"] or LogOptions.parse(terminal=known["terminal"])
    logoptions.begin()


def _run(given: dict[str, Any], folder: Path) -> tuple[int, int | None]:
    """Execute, and say what failed; return the exit code, and the signal that ended it, if one did."""
    from qgexec.api import QuantaFailedError
    from qgexec.withoutregistry import Execution, GraphPart

    try:
        execution = Execution(
            given["repository"],
            GraphPart(given["qgraph"], given["qgraph_id"], given["qgraph_node_ids"]),
            folder,
            _run_options(given),
            model=given["model"],
            debugger=given["debugger"],
            outputs_exist=not given["no_existing_outputs"],
        )
    except EmptyGraphError as error:
        click.echo(f"Nothing was executed: {error.message}.", err=True)
        return 0, None
    code, signal_number = 0, None
    try:
        with measuring.profiled(given["profile"]):
            execution.execute()
    except QuantaFailedError:
        code = _say_what_failed(execution, given)
    except KeyboardInterrupt:
        code, signal_number = EXIT_FAILED, execution.signal
    except QgexecError as error:
        error.hint = f"{error.hint}\nThen give the same command again: what is done is skipped.".lstrip()
        raise
    finally:
        if given["summary"]:
            write_summary(execution.report, given["summary"])
    _say_counts(execution)
    return code, signal_number


def _run_options(given: dict[str, Any]) -> RunOptions:
    from qgexec.config.runconfig import RunConfig
    from qgexec.config.runoptions import RunOptions

    told = {
        "cores": given["cores_per_quantum"],
        "memory_bytes": given["memory_per_quantum"],
        "timeout_s": given["timeout_s"],
    }
    return RunOptions(
        processes=given["processes"],
        fail_fast=given["fail_fast"],
        skip_existing=True,
        clobber_outputs=True,
        raise_on_partial_outputs=given["raise_on_partial_outputs"],
        implicit_threads=given["enable_implicit_threading"],
        lsst_debug=given["lsst_debug"],
        log_level="INFO",
        logging=logoptions.asked_for(),
        grace_s=0.0,  # as with pipetask: who is told to end, ends
        config=RunConfig.for_all(told),
    )


def _say_what_failed(execution: Execution, given: dict[str, Any]) -> int:
    """Print what failed, with the traceback of one quantum of each cause; return the exit code."""
    from qgexec.reports.report import read_report

    found = read_report(execution.run_dir.path)
    for cause in found.causes()[:_CAUSES_SHOWN]:
        quantum = cause.example
        what = ": ".join(filter(None, (quantum.exception_type, found.message(quantum.last))))
        text = [f"Failed: {quantum} {quantum.quantum_id}: {what}", found.traceback(quantum.last).rstrip()]
        if n_others := len(cause.quanta) - 1:
            text.append(f"and {n_others} more of the same cause")
        click.echo(printable("\n".join(filter(None, text))), err=True)
    return _failure_code(found) if given["model"] == "inprocess" else EXIT_FAILED


def _failure_code(found: RunReport) -> int:
    """Return what pipetask makes of failures in its own process, which some exceptions end at once."""
    from qgexec.events import StopReason

    codes = {quantum.exit_code for quantum in found.failures}
    if found.stop_reason is StopReason.INVALID_QUANTUM:
        return INVALID_QUANTUM_EXIT_CODE
    if found.stop_reason is StopReason.FAILED_FAST and REPEATABLE_QUANTUM_EXIT_CODE in codes:
        return REPEATABLE_QUANTUM_EXIT_CODE
    return EXIT_FAILED


def _say_counts(execution: Execution) -> None:
    counts = {state.value: n for state, n in execution.scheduler.counts().items() if n}
    click.echo("Quanta: " + ", ".join(f"{n} {state}" for state, n in counts.items()), err=True)


def _end_by(number: int) -> NoReturn:
    """End as the signal would have ended this process: whoever started it is told so."""
    if number != signal.SIGINT:  # of which click makes an exit code
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    raise SystemExit(EXIT_FAILED)


if __name__ == "__main__":
    main()
