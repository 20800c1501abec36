"""What `qgexec run` and `qgexec resume` have in common: from an executor's end to report and exit code."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgexec.cli import EXIT_BAD_USE, EXIT_FAILED, EXIT_INTERRUPTED
from qgexec.cli.inspect import print_report
from qgexec.errors import QgexecError
from qgexec.events import StopReason

if TYPE_CHECKING:
    from lsst.pipe.base.quantum_reports import Report

    from qgexec.api import GraphExecutor

__all__ = ["conclude", "default_model", "outcome_of", "say_it_goes_on", "warm_up", "write_summary"]


def warm_up(model: str, *, implicit_threads: bool = False) -> None:
    """Import the stack, here and in the server that forks workers, at the same time."""
    if model == "pool":
        from qgexec.processes import forked
        from qgexec.rubin import PRELOAD

        forked.warm_up(PRELOAD, implicit_threads=implicit_threads)
    gc.disable()  # imports make many objects and no garbage: collecting takes a fifth of their time
    import_module("qgexec.api")
    gc.freeze()
    gc.enable()


def default_model(processes: int) -> str:
    """Return the execution model for so many processes, where none is named."""
    return "inprocess" if processes == 1 else "pool"


def outcome_of(execute: Callable[[], object]) -> tuple[int, QgexecError | None]:
    """Execute; return the exit code, and what broke the run, if anything did."""
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


def conclude(
    executor: GraphExecutor,
    code: int,
    broken: QgexecError | None,
    *,
    summary: str | None,
    resources: Sequence[str] = (),
) -> int:
    """Print the report of a run that has ended, and how to go on; return the exit code.

    Of the files of resources one may be to blame for what broke the run: it takes them, mended, to go on.

    Raises
    ------
    qgexec.errors.QgexecError
        What broke the run, with advice.
    KeyboardInterrupt
        It was interrupted before it began.
    """
    if executor.run_dir is None:
        if (error := broken or executor.nothing_to_do) is not None:
            raise error
        raise KeyboardInterrupt
    if broken is not None and not executor.run_dir.is_dir():
        raise broken  # there is nothing to report from, nor to resume here
    if executor.has_left:
        say_it_goes_on(executor.run_dir)
        return code
    if summary:
        write_summary(executor.getReport, summary)
    found = print_report(executor.run_dir, ended=True)
    if code == 0:
        return code
    advice = _how_to_go_on(code, executor.run_dir, found.stop_reason, resources)
    if broken is not None:
        broken.hint = f"{broken.hint}\n{advice}".lstrip()
        raise broken
    click.echo(advice, err=True)
    return code


def say_it_goes_on(run_dir: Path) -> None:
    """Say that a batch system has the run in hand, and how to see to it."""
    click.echo(
        "The run goes on without this process. To see how far it is, or to end it:\n"
        f"{_command('status', run_dir)}\n{_command('cancel', run_dir)}",
        err=True,
    )


def write_summary(get_report: Callable[[], Report], file: str) -> None:
    """Write upstream's report to a file, or say why that cannot be."""
    try:
        Path(file).write_text(get_report().model_dump_json(exclude_none=True, indent=2))
    except (OSError, ValueError, QgexecError) as error:
        # What became of the run is worth more than this file: its report and its exit code are still to come.
        click.echo(f"--summary {file} could not be written: {error}", err=True)


def _command(verb: str, run_dir: Path, *options: str) -> str:
    return f"  {shlex.join(['qgexec', verb, str(run_dir), *options])}"


def _how_to_go_on(code: int, run_dir: Path, stop_reason: StopReason | None, resources: Sequence[str]) -> str:
    if code == EXIT_FAILED and stop_reason is StopReason.INVALID_QUANTUM:
        return (
            "Stopped, for the graph or the configuration is wrong. What succeeded is kept.\n"
            "Make a new graph, with another output RUN."
        )
    began = {
        EXIT_FAILED: "What succeeded is kept. To run the rest again",
        EXIT_INTERRUPTED: "Interrupted. What was done is kept. To go on",
        EXIT_BAD_USE: "The run broke off; what was done is kept. To go on",
    }[code]
    if code == EXIT_FAILED and stop_reason is not None:
        began = f"Stopped: {stop_reason.value}. {began}"
    again = [word for file in resources for word in ("--resources", file)] if code == EXIT_BAD_USE else []
    return f"{began}:\n{_command('resume', run_dir, *again)}"
