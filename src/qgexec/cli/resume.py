"""`qgexec resume`: goes on with a run, with the options that it had or with others."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from qgexec.books.trust import check_trusted
from qgexec.cli import logoptions, options
from qgexec.cli.commandclass import LongCommand
from qgexec.cli.execution import conclude, default_model, outcome_of, warm_up
from qgexec.cli.inspect import TRUST_OWNER
from qgexec.config.logoptions import LogOptions
from qgexec.config.runoptions import RunOptions

__all__ = ["go_on", "resume"]

_OPTIONS = {
    "processes": "processes",
    "fail_fast": "fail_fast",
    "max_failures": "max_failures",
    "grace_s": "grace_s",
    "seed": "seed",
    "skip_existing": "skip_existing",
    "clobber_outputs": "clobber_outputs",
    "raise_on_partial_outputs": "raise_on_partial_outputs",
    "strict_versions": "strict_versions",
    "provenance": "provenance",
    "enable_implicit_threading": "implicit_threads",
}
"""Options that can be changed, and their names in `qgexec.config.runoptions.RunOptions`."""


_DEFAULT = re.compile(r"; default: [^.]*")
"""What the help of an option says that a new run has it at."""


def _without_defaults(command: click.Command) -> click.Command:
    """Take the defaults of a new run out of a command's help: here, what is not given stays as it was."""
    for option in command.params:
        if isinstance(option, click.Option):
            option.show_default = False
            option.help = _DEFAULT.sub("", option.help or "")
    return command


@_without_defaults
@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec resume qgexec-runs/u/me/test\n"
    "  qgexec resume qgexec-runs/u/me/test -j 4 --memory-per-quantum 8GB",
)
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@options.execution
@options.resources
@click.option(
    "--force",
    is_flag=True,
    help="Although a silent driver out of sight may still run, or another run writes the same output RUN.",
)
@TRUST_OWNER
@click.option("--no-wait", is_flag=True, help="Leave it to the batch system, as `qgexec submit` does.")
def resume(
    *, run_dir: Path, force: bool, no_wait: bool, summary: str | None, trust_owner: bool, **given: Any
) -> None:
    """Go on with a run that was interrupted, killed or has failures, to its end.

    What succeeded is kept, what failed or was never run is executed, and outputs
    that the registry lacks are taken in. Options that are not given are as they
    were; those that are given hold from now on.

    Exit codes: as `qgexec run`.
    """
    go_on(run_dir, given, force=force, leave=no_wait, summary=summary, trust_owner=trust_owner)


def go_on(
    run_dir: Path,
    given: dict[str, Any],
    *,
    force: bool,
    leave: bool,
    summary: str | None,
    trust_owner: bool,
) -> NoReturn:
    """Go on with a run, say what became of it, and end with its exit code.

    Parameters
    ----------
    run_dir
        The run directory.
    given
        Options of this command, by their names in Python; those that were typed hold from now on.
    force
        Take over from a silent driver that cannot be seen; also where another run writes the same RUN.
    leave
        Leave it to a batch system, and do not wait.
    summary
        Gets the report as JSON.
    trust_owner
        Whoever could have written to the run directory is trusted.
    """
    check_trusted(run_dir, trust_owner=trust_owner)
    config = options.run_config(given)
    context = click.get_current_context()
    changes = {
        _OPTIONS[name]: value
        for name, value in given.items()
        if name in _OPTIONS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    model = given["model"] or _model_of(run_dir, changes.get("processes"))
    warm_up(model)
    from qgexec.api import GraphExecutor
    from qgexec.cli.display import Display
    from qgexec.models.registry import facts_of

    if logoptions.asked_for() is not None:
        changes["logging"] = logoptions.asked_for()
    logs = changes.get("logging") or _logging_of(run_dir)
    logoptions.begin(logs)
    moving = False if logs is not None and logs.terminal else None
    with Display(on_terminal=moving, survives=facts_of(model).survives_driver) as display:
        executor = GraphExecutor.of_run(
            run_dir,
            model=model,
            config=config,
            observe=display.observe,
            interrupted=display.interrupted,
            tell=display.show_now,
            trust_owner=trust_owner,
            **changes,
        )
        code, broken = outcome_of(lambda: executor.resume(force=force, leave=leave))
    code = conclude(executor, code, broken, summary=summary)
    if leave and executor.has_left:
        click.echo(executor.run_dir)
    sys.exit(code)


def _logging_of(run_dir: Path) -> LogOptions | None:
    """Return what the run was told to log."""
    from qgexec.books.rundir import RunDir

    return RunOptions.from_json(RunDir.open(run_dir).read_settings().options).logging


def _model_of(run_dir: Path, processes: int | None) -> str:
    """Return the model that the run had; where that follows from ``-j``, a new ``-j`` decides anew."""
    from qgexec.books.rundir import RunDir

    model = RunDir.open(run_dir).read_settings().model
    if processes is not None and model in ("inprocess", "pool"):
        return default_model(processes)
    return model
