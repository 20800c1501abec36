"""Runs `pipetask` in this process, for what `qgexec` is compared with."""

from __future__ import annotations

import click
from click.testing import CliRunner
from lsst.ctrl.mpexec.cli.pipetask import cli
from lsst.daf.butler.cli.cliLog import CliLog

from tests.kit.commands.qgexec import Result


def pipetask(*arguments: object) -> Result:
    """Run a command; logging is as it was, afterwards."""
    try:
        done = CliRunner().invoke(cli, [*map(str, arguments)])
    finally:
        CliLog.resetLog()
    return Result(done.exit_code, done.stdout, done.stderr)


def commands() -> dict[str, click.Command]:
    """Return pipetask's own commands by name; logging, which looking for them sets up, is as it was."""
    context = click.Context(cli)
    found: dict[str, click.Command] = {}
    try:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            found[name] = command
    finally:
        CliLog.resetLog()
    return found


def option_names(command: click.Command) -> list[tuple[str, ...]]:
    """Return how each option of a command may be written; upstream makes options of headings, too."""
    return [
        (*param.opts, *param.secondary_opts)
        for param in command.params
        if isinstance(param, click.Option) and not param.opts[0].startswith("--option-section-")
    ]
