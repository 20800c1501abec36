"""Owns how a command that a page prints is read, and held against the program's own options; runs none."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
from lsst.ctrl.bps.cli.bps import cli as bps_cli
from lsst.ctrl.mpexec.cli.pipetask import cli as pipetask_cli
from lsst.daf.butler.cli.cliLog import CliLog

from qgexec.cli.main import cli as qgexec_cli
from qgexec.cli.pipetask import cli as as_pipetask_cli

ELIDED = "..."
"""Stands for what a page does not repeat."""

GROUPS: dict[str, click.Group] = {
    "qgexec": qgexec_cli,
    "qgexec-pipetask": as_pipetask_cli,
    "pipetask": pipetask_cli,
    "bps": bps_cli,
}

FILE_SUFFIXES = (".yaml", ".qg", ".qgraph", ".py")


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's text; what a pipe leads to is another command."""
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in shlex.split(line, comments=True):
            if word == "|":
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


def check(words: list[str], *, in_full: bool) -> None:
    """Hold a command against the options and arguments of the program.

    Parameters
    ----------
    words
        The program, and what it is given. ``...`` among it stands for more of the same.
    in_full
        Every value must be right and nothing may be missing: it is read as if it were run. Files that it
        names are made in the current folder. Otherwise options must be known, and have values or not.

    Raises
    ------
    click.ClickException
        The program would refuse it.
    """
    program, *given = words
    group = GROUPS[program]
    context = click.Context(group, info_name=program, **group.context_settings)
    _, left, _ = group.make_parser(context).parse_args([word for word in given if word != ELIDED])
    if not left:
        return
    command = _commands(program).get(left[0])
    if command is None:
        raise click.UsageError(f"{program} has no command {left[0]}")
    rest = [os.path.expandvars(word) for word in left[1:]]
    if in_full and ELIDED not in words:
        for word in rest:
            if word.endswith(FILE_SUFFIXES):
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                Path(word).touch()
        command.make_context(left[0], rest, parent=context)
    else:
        parser = command.make_parser(click.Context(command, parent=context, info_name=left[0]))
        parser.parse_args(rest)


@cache
def known_options() -> frozenset[str]:
    """Return how the options of all commands of all these programs may be written."""
    commands = [command for name, group in GROUPS.items() for command in (group, *_commands(name).values())]
    options = (param for command in commands for param in command.params)
    return frozenset(name for param in options for name in (*param.opts, *param.secondary_opts)) | {"--help"}


@cache
def _commands(program: str) -> dict[str, click.Command]:
    """Return the commands of a program; logging, which upstream's looking for them sets up, is as it was."""
    group = GROUPS[program]
    context = click.Context(group)
    try:
        found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    finally:
        CliLog.resetLog()
    return {name: command for name, command in found.items() if command is not None}
