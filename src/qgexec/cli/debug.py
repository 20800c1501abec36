"""`qgexec log` and `qgexec debug`: a single quantum, looked at and tried again."""

from __future__ import annotations

import bdb
import contextlib
import faulthandler
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from qgexec.books.trust import check_trusted
from qgexec.cli import EXIT_FAILED, logoptions
from qgexec.cli.inspect import RUN_DIR, TRUST_OWNER
from qgexec.cli.measuring import find_debugger
from qgexec.errors import UsageError
from qgexec.plaintext import printable
from qgexec.regularfile import read_regular

if TYPE_CHECKING:
    from qgexec.books.rundir import RunDir
    from qgexec.rubin.scratch import Scratch

__all__ = ["debug", "log"]

_QUANTUM = click.argument("quantum")

_SHOWN = 10

_LOG_BYTES = 4 << 30
"""Longest log that is printed."""


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec log qgexec-runs/u/me/test 17\n"
    "  qgexec log qgexec-runs/u/me/test 'isr{visit: 42, detector: 3}' --attempt 1"
)
@RUN_DIR
@_QUANTUM
@click.option(
    "--attempt", metavar="N", type=click.IntRange(min=1), help="Number of the attempt; default: the last."
)
@TRUST_OWNER
def log(*, run_dir: Path, quantum: str, attempt: int | None, trust_owner: bool) -> None:
    """Print the log of an attempt at a quantum, and where it was when it was ended.

    QUANTUM is an index, a UUID, or label{key: value, ...} as the report prints
    it; keys that are not needed to tell it from the others may be left out.
    """
    from qgexec.books.rundir import RunDir
    from qgexec.reports.attemptlog import find_log
    from qgexec.reports.report import add_jobs
    from qgexec.reports.snapshot import read_fold
    from qgexec.scheduling.quantumname import find_quantum

    books = RunDir.open(run_dir)
    plan = books.load_plan()
    index = find_quantum(plan, quantum)
    fold = read_fold(books.journal, plan, books.snapshot_file)
    add_jobs(books, plan, fold)
    found = find_log(books, plan, fold, index, attempt)
    click.echo(f"Quantum {index}: {plan.describe(index)}, attempt {found.attempt}", err=True)
    if found.path is not None:
        text = _read(found.path)
    else:
        # It is in the repository that the run directory names, whose configuration says what is imported.
        check_trusted(run_dir, trust_owner=trust_owner)
        from qgexec.rubin.logdataset import read_log

        context = books.read_settings().context
        text = read_log(context.repository, context.graph_file, plan.label(index), plan.quantum_id(index))
    if found.stack is not None:
        text = f"{text.rstrip()}\n\nStacks when it was ended:\n{_read(found.stack)}"
    click.echo(printable(text.rstrip()))


def _read(path: Path) -> str:
    """Return what a log says."""
    try:
        return read_regular(path, _LOG_BYTES).decode("utf-8", "backslashreplace")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from error


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec debug qgexec-runs/u/me/test 17\n"
    "  qgexec debug qgexec-runs/u/me/test 'isr{visit: 42, detector: 3}' --pdb=ipdb"
)
@RUN_DIR
@_QUANTUM
@click.option(
    "--pdb",
    "debugger",
    metavar="MODULE",
    is_flag=False,
    flag_value="pdb",
    default="pdb",
    show_default=True,
    help="Debugger to start where it raises (--pdb=ipdb); needs a terminal.",
)
@click.option(
    "--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep its outputs in this new folder."
)
@TRUST_OWNER
def debug(*, run_dir: Path, quantum: str, debugger: str, keep: Path | None, trust_owner: bool) -> None:
    """Execute one quantum again, in this process, under a debugger.

    It reads its real inputs, those that other quanta of the run have written
    included, and writes to a folder of its own that is removed at the end: the
    repository and the run are as before. QUANTUM is an index, a UUID, or
    label{key: value, ...} as the report prints it.

    Exit codes: 0 it succeeded, 1 it failed.
    """
    from qgexec.books.rundir import RunDir
    from qgexec.scheduling.quantumname import find_quantum

    check_trusted(run_dir, trust_owner=trust_owner)
    module = find_debugger(debugger)
    books = RunDir.open(run_dir)
    settings = books.read_settings()
    if not settings.context.repository:
        raise UsageError(
            "This run has no repository: an executor of your own executed its quanta.",
            hint="Debug them with that one.",
        )
    plan = books.load_plan()
    index = find_quantum(plan, quantum)
    click.echo(f"Quantum {index}: {plan.describe(index)}", err=True)
    from qgexec.assembly import policy_of
    from qgexec.config.runoptions import RunOptions
    from qgexec.events import FailureEvent
    from qgexec.processes.randomness import seed_generators
    from qgexec.reports.snapshot import read_fold
    from qgexec.rubin.scratch import open_scratch

    logoptions.begin()

    label, options = plan.label(index), RunOptions.from_json(settings.options)
    endings = read_fold(books.journal, plan, books.snapshot_file).endings(index)
    failures = [event for event in endings if isinstance(event, FailureEvent)]
    with (
        _folder(keep) as folder,
        open_scratch(
            settings.context.repository,
            settings.context.graph_file,
            label,
            plan.quantum_id(index),
            folder,
            resources=policy_of(options, plan).rules_of(label).request_following(failures),
            raise_on_partial_outputs=options.raise_on_partial_outputs,
            implicit_threads=options.implicit_threads,
        ) as scratch,
    ):
        if (seed := _last_seed(books, index)) is not None:
            seed_generators(seed)
        succeeded = _execute(scratch, module)
        _say_outputs(scratch, keep)
    if not succeeded:
        raise SystemExit(EXIT_FAILED)


def _last_seed(books: RunDir, index: int) -> int | None:
    """Return what the random generators of the last attempt at a quantum began with, if that is known."""
    from qgexec.books.journal import read_events
    from qgexec.events import AttemptStarted

    seed = None
    for event in read_events(books.journal):
        if isinstance(event, AttemptStarted) and event.index == index:
            seed = event.seed
    return seed


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="qgexec-debug-") as name:
            yield Path(name).resolve()
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"--keep {keep}: the folder cannot be made: {error.strerror}", hint="Name a new folder."
        ) from error
    yield keep.resolve()


def _execute(scratch: Scratch, debugger: ModuleType) -> bool:
    missing = scratch.missing_inputs()
    if missing:
        click.echo(
            f"{len(missing)} of its inputs {'is' if len(missing) == 1 else 'are'} not there:", err=True
        )
        for name in missing[:_SHOWN]:
            click.echo(f"  {name}", err=True)
    began = time.monotonic()
    if not faulthandler.is_enabled():
        faulthandler.enable()  # what crashed a worker crashes this process, too: say where
    try:
        scratch.execute()
    except KeyboardInterrupt:
        raise
    except bdb.BdbQuit:
        click.echo("The debugger was left.", err=True)
        return False
    except BaseException as error:  # noqa: BLE001 - whatever a task raises, sys.exit included
        traceback.print_exception(error)
        if sys.stdin.isatty() and sys.stdout.isatty():
            debugger.post_mortem(error.__traceback__)
        else:
            click.echo(f"No terminal: {debugger.__name__} is not started.", err=True)
        return False
    click.echo(f"It succeeded, in {time.monotonic() - began:.1f} s.", err=True)
    return True


def _say_outputs(scratch: Scratch, keep: Path | None) -> None:
    outputs = scratch.outputs()
    where = "in a folder that is removed now" if keep is None else f"in {keep}"
    click.echo(f"It wrote {len(outputs)} dataset{'' if len(outputs) == 1 else 's'} {where}:", err=True)
    for name, files in outputs:
        click.echo(f"  {name}" if keep is None else f"  {name}: {', '.join(files)}", err=True)
