"""Options that look into a run as it goes: debuggers, profiles, coverage; know no graph."""

from __future__ import annotations

import contextlib
import cProfile
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import click

from qgexec.cli.commandclass import section
from qgexec.cli.values import comma_list, filled
from qgexec.errors import UsageError
from qgexec.foreign import no_exit

__all__ = [
    "check_debugger",
    "coverage_options",
    "covered",
    "debugging",
    "find_debugger",
    "lsst_debug",
    "profiled",
]


lsst_debug = section(
    "Debugging",
    click.option(
        "--debug", "lsst_debug", is_flag=True, help="Import debug.py (lsstDebug) before each quantum."
    ),
)

debugging = section(
    "Debugging",
    click.option(
        "--pdb",
        "debugger",
        metavar="MODULE",
        type=filled,
        is_flag=False,
        flag_value="pdb",
        help="Start a debugger where a quantum fails (--pdb=ipdb); needs -j 1 and a terminal.",
    ),
    click.option(
        "--profile", metavar="FILE", type=filled, help="Write cProfile's statistics to this file; needs -j 1."
    ),
)

coverage_options = section(
    "Coverage",
    click.option("--coverage", is_flag=True, help="Record which code runs (package coverage); needs -j 1."),
    click.option(
        "--cov-report/--no-cov-report",
        default=True,
        show_default=True,
        help="Write an HTML report of it to the folder covhtml.",
    ),
    click.option(
        "--cov-packages",
        metavar="PACKAGES",
        multiple=True,
        callback=comma_list,
        help="Look at these packages only, comma-separated.",
    ),
)


def find_debugger(name: str) -> ModuleType:
    """Import a debugger now: not when the quantum has run for an hour.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot be imported, or is no debugger.
    """
    try:
        with no_exit():
            module = importlib.import_module(name)
    except Exception as error:  # a module may raise what it likes
        raise UsageError(
            f"The debugger {name} cannot be imported: {error}", hint=f"Install it, or leave out --pdb={name}."
        ) from error
    if not hasattr(module, "post_mortem"):
        raise UsageError(f"The module {name} is no debugger: it has no post_mortem().")
    return module


def check_debugger(given: dict[str, Any]) -> None:
    """Check that what looks into quanta can: they must run here, and a debugger needs a terminal.

    Parameters
    ----------
    given
        Options by their names in Python, the execution model among them.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot.
    """
    here = {"--pdb": given["debugger"], "--profile": given["profile"], "--coverage": given["coverage"]}
    names = [name for name, value in here.items() if value]
    if names and given["model"] != "inprocess":
        raise UsageError(
            f"{', '.join(names)}: quanta do not run in this process with the model {given['model']}.",
            hint="Run them here: -j 1, without --model. For one quantum of a run: qgexec debug.",
        )
    if not given["debugger"]:
        return
    find_debugger(given["debugger"])
    if given["timeout_s"] is not None:
        raise UsageError("--pdb and --timeout exclude each other.")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--pdb: there is no terminal.", hint="For one quantum of a run: qgexec debug.")


@contextlib.contextmanager
def profiled(file: str | None) -> Iterator[None]:
    """Write the profile of a block to a file, however it ends; do nothing where no file is named."""
    if file is None:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        try:
            profile.dump_stats(file)
        except OSError as error:
            # What became of the run is worth more than this file.
            click.echo(f"--profile {file} could not be written: {error}", err=True)


@contextlib.contextmanager
def covered(given: dict[str, Any]) -> Iterator[None]:
    """Record which code runs in a block, if that is asked for; write ``.coverage``, and a report.

    Parameters
    ----------
    given
        Options by their names in Python; those about coverage are taken out.

    Raises
    ------
    qgexec.errors.UsageError
        The package coverage is not installed.
    """
    coverage, cov_report, cov_packages = (
        given.pop(name) for name in ("coverage", "cov_report", "cov_packages")
    )
    if not coverage:
        yield
        return
    try:
        package: Any = importlib.import_module("coverage")
    except ImportError as error:
        raise UsageError(f"--coverage: {error}", hint="Install it: pip install coverage") from error
    recorder = package.Coverage(branch=True, source_pkgs=list(cov_packages) or None)
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()
        recorder.save()
        if cov_report:
            try:
                recorder.html_report(directory="covhtml")
            except package.CoverageException as error:
                click.echo(f"--cov-report: there is nothing to report: {error}", err=True)
            else:
                click.echo("The coverage report is in covhtml", err=True)
