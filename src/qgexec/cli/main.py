"""The `qgexec` command: its group, how errors are shown, and the exit codes.

Commands are imported when they are called, so that ``--help`` answers at once.
"""

from __future__ import annotations

import gc
import importlib
import io
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

import qgexec
from qgexec.cli import EXIT_BAD_USE, EXIT_INTERRUPTED
from qgexec.cli.logoptions import log_options, parse
from qgexec.cli.streams import be_patient, say_why
from qgexec.errors import NotUtf8Error, QgexecError, UsageError
from qgexec.plaintext import PrintableFormatter, printable
from qgexec.standardstreams import open_standard_streams

__all__ = ["SECTIONS", "LazyGroup", "Sections", "begin_command", "cli", "main", "run_program"]

_IRRELEVANT_LOGGERS = ("lsst.utils.packages", "lsst.daf.butler._storage_class")
"""They warn of what is not installed (eups, pandas) whether or not it is wanted."""

Sections = Mapping[str, Mapping[str, tuple[str, str, str]]]
"""Commands by the titles under which they are shown: module, name there, and one line of help."""

SECTIONS: Sections = {
    "Pipelines and graphs": {
        "build": ("qgexec.cli.build", "build", "Make a pipeline of a file and changes to it; look at it."),
        "qgraph": ("qgexec.cli.build", "qgraph", "Build a quantum graph and save it, or look at one."),
        "update-graph-run": (
            "qgexec.cli.housekeeping",
            "update_graph_run",
            "Write a graph anew, for another output RUN.",
        ),
    },
    "Runs": {
        "plan": ("qgexec.cli.plan", "plan", "Say what a run would do, and what would go wrong with it."),
        "run": ("qgexec.cli.run", "run", "Execute a quantum graph, or build one and execute it."),
        "submit": ("qgexec.cli.run", "submit", "Leave a quantum graph to a batch system, and do not wait."),
        "resume": ("qgexec.cli.resume", "resume", "Go on with a run that was interrupted or has failures."),
        "cancel": ("qgexec.cli.batch", "cancel", "End a run, wherever it runs."),
    },
    "What became of a run": {
        "status": ("qgexec.cli.inspect", "status", "Say how far a run is."),
        "report": ("qgexec.cli.report", "report", "Say what became of runs, and what failed."),
        "aggregate-reports": (
            "qgexec.cli.report",
            "aggregate_reports",
            "Put reports about different data IDs together.",
        ),
        "log": ("qgexec.cli.debug", "log", "Print the log of one attempt at a quantum."),
        "debug": ("qgexec.cli.debug", "debug", "Execute one quantum again, under a debugger."),
    },
    "The repository": {
        "init": (
            "qgexec.cli.run",
            "init",
            "Only bring the registry up to date: types, collections, init-outputs.",
        ),
        "purge": ("qgexec.cli.housekeeping", "purge", "Remove a CHAINED collection and its own members."),
        "cleanup": ("qgexec.cli.housekeeping", "cleanup", "Remove what a CHAINED collection has no more."),
    },
    "For batch jobs and scripts": {
        "worker": ("qgexec.cli.batch", "worker", "Execute quanta of a run."),
        "collect": ("qgexec.cli.batch", "collect", "Take the outputs of finished quanta into the registry."),
    },
    "To begin with": {
        "demo": ("qgexec.cli.demo", "demo", "Make a small sky survey, reduce it, compare with the truth."),
        "models": ("qgexec.cli.inspect", "models", "List the execution models."),
    },
}
"""The commands of `qgexec`."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is called.

    Parameters
    ----------
    sections
        The commands.
    **attributes
        Of any group.
    """

    def __init__(self, *, sections: Sections = SECTIONS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._sections = sections
        self._entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which they are shown."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._entries:
            return None
        module, name, _ = self._entries[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command."""
        try:
            return super().invoke(ctx)
        except EOFError as error:  # click takes it for the end of what somebody types, and for an interrupt
            raise RuntimeError("a file, or what another process sent, ended too early") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would import every one for its line of help."""
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, _, text) in commands.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example:  qgexec run -b REPO -g graph.qg -j 8 --register-dataset-types",
)
@click.version_option(qgexec.__version__, prog_name="qgexec")
@click.option("--traceback", is_flag=True, help="Show the Python traceback of an error.")
@log_options
@click.pass_context
def cli(ctx: click.Context, /, *, traceback: bool, **logging_options: Any) -> None:
    """Execute a Rubin/LSST QuantumGraph on any execution model.

    One graph, one command, one report: in this process, on all cores of this
    machine, on a batch system, or on an execution model of your own.
    """
    begin_command(ctx, logging_options)


def begin_command(ctx: click.Context, logging_options: dict[str, Any]) -> None:
    """Keep for a command what was said before it."""
    ctx.obj = {"logging": parse(logging_options)}
    for name in _IRRELEVANT_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line; never returns.

    Exit codes: 0 all succeeded, 1 some quanta failed or were blocked, 2 wrong
    use, bad input or anything unforeseen, 130 interrupted.
    """
    run_program(cli, _exit_code)


def _exit_code(error: BaseException) -> int:
    return EXIT_INTERRUPTED if isinstance(error, _INTERRUPTS) else EXIT_BAD_USE


_INTERRUPTS = (KeyboardInterrupt, click.exceptions.Abort)


def run_program(group: click.Group, exit_code: Callable[[BaseException], int]) -> NoReturn:
    """Run a program, and say in one message what went wrong.

    Parameters
    ----------
    group
        Its commands.
    exit_code
        Returns the exit code for what a command has raised.
    """
    open_standard_streams()  # before any file gets the number of one that was closed
    wants_traceback = "--traceback" in sys.argv[1:]
    # Who asks a run how far it is may ask before it has begun, or as it ends: that must not kill it.
    signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    be_patient()
    if logging.lastResort is not None:  # it prints warnings where nothing is set up to log them
        logging.lastResort.setFormatter(PrintableFormatter())
    say_why()
    try:
        code = _call(group)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- Python's own exit code, 1, is a verdict
        _say(error, wants_traceback=wants_traceback)
        code = exit_code(error)
    # The interpreter's last garbage collection over the whole stack takes half a second, and frees nothing.
    gc.freeze()
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: BaseException, *, wants_traceback: bool) -> None:
    """Say what a command has raised; of what nobody has foreseen the traceback."""
    match error:
        case click.ClickException():
            shown = io.StringIO()
            error.show(shown)
            click.echo(printable(shown.getvalue()), err=True, nl=False)
        case KeyboardInterrupt() | click.exceptions.Abort():
            click.echo("Interrupted before anything was executed.", err=True)
        case QgexecError():
            _show(error, wants_traceback=wants_traceback)
        case UnicodeEncodeError():
            _show(NotUtf8Error(error.object), wants_traceback=wants_traceback)
        case _ if _folder_is_gone():
            _show(_NO_FOLDER, wants_traceback=wants_traceback)
        case _:
            click.echo(printable("".join(traceback.format_exception(error))), err=True, nl=False)


_NO_FOLDER = UsageError("The current folder does not exist any more.", hint="Change to another (cd).")


def _folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _call(group: click.Group) -> object:
    """Call the command, and return its exit code when all that it has printed is written."""
    try:
        code = group.main(standalone_mode=False)
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    return code


def _show(error: QgexecError, *, wants_traceback: bool) -> None:
    if wants_traceback:
        click.echo(printable("".join(traceback.format_exception(error))), err=True, nl=False)
        return
    click.echo(f"Error: {printable(error.message)}", err=True)
    if error.hint:
        click.echo(printable(error.hint), err=True)
