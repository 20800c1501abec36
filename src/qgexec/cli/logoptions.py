"""Options about logging, that stand before the command as pipetask has them; knows no logger."""

from __future__ import annotations

from typing import Any

import click

from qgexec.cli.commandclass import stack
from qgexec.cli.values import filled, split_commas
from qgexec.config.logoptions import LEVELS, LogOptions

__all__ = ["asked_for", "begin", "log_options", "parse"]

log_options = stack(
    click.option(
        "--log-level",
        "log_levels",
        metavar="LEVEL|LOGGER=LEVEL",
        multiple=True,
        help=f"Log what is at least as important: {', '.join(LEVELS[1:])}.",
    ),
    click.option("--long-log", is_flag=True, help="Log with time, data ID and place in the source."),
    click.option(
        "--log-file",
        "log_files",
        metavar="FILE",
        type=filled,
        multiple=True,
        help="Append the log to this file; JSON if it ends in .json.",
    ),
    click.option(
        "--log-tty/--no-log-tty",
        default=True,
        help="Print the log, if any of these options is given (default), or not.",
    ),
    click.option(
        "--log-label",
        "log_labels",
        metavar="KEY=VALUE",
        multiple=True,
        help="Put this into each record of a JSON log.",
    ),
)


def parse(given: dict[str, Any]) -> LogOptions | None:
    """Return what the options ask for; `None` where none of them is given.

    Raises
    ------
    qgexec.errors.UsageError
        A value makes no sense.
    """
    if not (given["log_levels"] or given["long_log"] or given["log_files"] or given["log_labels"]):
        return None
    return LogOptions.parse(
        split_commas(given["log_levels"]),
        split_commas(given["log_labels"]),
        long=given["long_log"],
        files=split_commas(given["log_files"]),
        terminal=given["log_tty"],
    )


def asked_for() -> LogOptions | None:
    """Return what the options before the command ask for."""
    options: LogOptions | None = click.get_current_context().find_root().obj["logging"]
    return options


def begin(options: LogOptions | None = None) -> None:
    """Have this process log what is asked for; a second or so, for the stack is imported for it.

    Parameters
    ----------
    options
        What to log; by default what the options before the command ask for.
    """
    options = options or asked_for()
    if options is not None:
        from qgexec.rubin.logsetup import begin_logging

        begin_logging(options)
