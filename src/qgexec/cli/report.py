"""`qgexec report`: what became of a run, or of several that recovered each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import click

from qgexec.cli.inspect import print_text, terminal_width
from qgexec.errors import UsageError

__all__ = ["report"]


class _Report(Protocol):
    """What reports of all kinds have in common."""

    @property
    def all_succeeded(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...


@click.command(epilog="Example:  qgexec report qgexec-runs/u/me/test --json | jq .tasks")
@click.argument("run_dirs", nargs=-1, metavar="RUN_DIR...", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON (format version 3).")
@click.option("--brief", is_flag=True, help="Print counts alone.")
def report(*, run_dirs: tuple[Path, ...], as_json: bool, brief: bool) -> None:
    """Say what became of a run: counts per task, what was retried, and what failed.

    Failures are grouped by cause, each with one example's traceback, and what
    it blocks. See `qgexec log` and `qgexec debug` for a single quantum.

    Several runs that recovered each other may be named: then the last word on each
    quantum counts, and it is said how many each run recovered.

    Exit codes: 0 all succeeded, 1 some quanta failed, were blocked or have not run.
    """
    if not run_dirs:
        raise UsageError("There is nothing to report on.", hint="Name one run directory, or several.")
    found, text = (
        _of_one(run_dirs[0], brief=brief) if len(run_dirs) == 1 else _of_several(run_dirs, brief=brief)
    )
    print_text(json.dumps(found.to_json(), indent=2) if as_json else text)
    raise SystemExit(0 if found.all_succeeded else 1)


def _of_one(run_dir: Path, *, brief: bool) -> tuple[_Report, str]:
    from qgexec.reports.report import read_report
    from qgexec.reports.text import format_report

    found = read_report(run_dir)
    return found, format_report(found, width=terminal_width(), brief=brief)


def _of_several(run_dirs: tuple[Path, ...], *, brief: bool) -> tuple[_Report, str]:
    from qgexec.reports.several import read_several
    from qgexec.reports.severaltext import format_several

    found = read_several(run_dirs)
    return found, format_several(found, width=terminal_width(), brief=brief)
