"""`qgexec status` and `models`, and how reports are printed: needs neither the stack nor the driver."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgexec.cli import EXIT_FAILED, EXIT_TRY_AGAIN
from qgexec.errors import QgexecError
from qgexec.plaintext import printable

if TYPE_CHECKING:
    from qgexec.reports.report import RunReport

__all__ = ["JSON", "RUN_DIR", "TRUST_OWNER", "models", "print_report", "status", "terminal_width"]

RUN_DIR = click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
"""The argument that names a run."""

TRUST_OWNER = click.option(
    "--trust-owner", is_flag=True, help="Act on what others wrote, or everybody could have written, there."
)
"""The option of all that acts on a run directory."""

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON (format version 4).")
"""The option that has a report printed for programs."""

_HELD_SHOWN = 10


@click.command(epilog="Example:  qgexec status qgexec-runs/u/me/test")
@RUN_DIR
@JSON
def status(*, run_dir: Path, as_json: bool) -> None:
    """Say how far a run is, also while it goes on.

    Exit codes: 0 no quantum has failed so far, 1 some have.
    """
    from qgexec.reports.report import read_report
    from qgexec.reports.text import format_status

    found = read_report(run_dir)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        click.echo(format_status(found, width=terminal_width()))
        if found.submitted is not None:
            click.echo(f"\n{_batch_status(run_dir)}")
    sys.exit(EXIT_FAILED if found.total.failed else 0)


def _batch_status(run_dir: Path) -> str:
    """Ask the batch system what it has of a run, and say it in a few lines."""
    from qgexec.batch.rounds import last_round
    from qgexec.batch.system import JobState
    from qgexec.books.rundir import RunDir
    from qgexec.models.batch import ask

    pending = last_round(RunDir.open(run_dir))
    if pending is None:
        return ""
    try:
        found = ask(pending)
    except QgexecError as error:
        return f"Jobs           not known: {printable(error.message)}"
    if found is None:
        return "Jobs           none: the round was never submitted; go on with qgexec resume"
    counts = ", ".join(
        f"{found.counts[state]} {state.value}" for state in JobState if found.counts.get(state)
    )
    lines = [f"Jobs           {counts or 'none left'}"]
    codes = (status.exit_code for status in found.jobs.values())
    bad = Counter(code for code in codes if code not in (None, 0, EXIT_TRY_AGAIN))
    lines += [f"               {n} with exit status {code}: see {pending.logs}" for code, n in bad.items()]
    held = [(job, status) for job, status in found.jobs.items() if status.state is JobState.HELD]
    lines += [
        f"Held           job {job} ({pending.jobs.name(job)}): {printable(status.reason)}"
        for job, status in held[:_HELD_SHOWN]
    ]
    if len(held) > _HELD_SHOWN:
        lines.append(f"               and {len(held) - _HELD_SHOWN} more")
    if found.reason:
        lines.append(f"               {printable(found.reason)}")
    closing_has_ended = found.closing is None or found.closing.state is JobState.ENDED
    if found.is_over and closing_has_ended and not pending.is_closed:
        lines.append("Next           qgexec resume: the closing job is gone, and has not closed the books")
    return "\n".join(lines)


@click.command(epilog="Example:  qgexec models")
def models() -> None:
    """List the execution models that are installed."""
    from qgexec.models.registry import list_models

    for entry in list_models():
        click.echo(f"{entry.name:<12} {entry.summary}")


def print_report(run_dir: Path, *, ended: bool = False) -> RunReport:
    """Print the report of a run to stdout, and return it.

    Parameters
    ----------
    run_dir
        The run directory.
    ended
        The run's driver is this process, and has ended it: also where no room was left to record that.
    """
    from qgexec.books.holder import driver_is_alive
    from qgexec.reports.report import read_report
    from qgexec.reports.text import format_report

    found = read_report(run_dir, is_alive=(lambda _driver: False) if ended else driver_is_alive)
    click.echo(format_report(found, width=terminal_width()))
    return found


def terminal_width() -> int:
    """Return how many characters a line of the terminal has; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns
