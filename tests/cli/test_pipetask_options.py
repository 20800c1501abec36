"""docs/pipetask.md: every option of pipetask has its place in qgexec, or a row that says why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from lsst.ctrl.mpexec.cli.pipetask import cli as pipetask_cli

from qgexec.cli.main import cli
from tests.kit.commands.pipetask import commands, option_names

PAGE = Path(__file__).parents[2] / "docs" / "pipetask.md"

NEWER = {"--retained-dataset-types", "--prune-unanchored-quanta"}
"""Options that pipetask has from 30.0.9 and 30.2026.2800 on; the page has them for all versions."""

PARAMS = [pytest.param(name, command, id=name) for name, command in commands().items()]


@dataclass(frozen=True)
class Row:
    """What the page says of an option."""

    names: tuple[str, ...]
    ours: str
    why: str


def section_of(name: str) -> str:
    """Return what the page says of a command of pipetask."""
    text = PAGE.read_text()
    found = re.search(rf"^### (?:pipetask )?{name}$(.*?)(?=^##|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/pipetask.md has no section on pipetask {name}"
    return found[1]


def rows_of(name: str) -> list[Row]:
    """Return the rows of a command's table."""
    lines = [line for line in section_of(name).splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [Row(tuple(re.findall(r"`(-[^`]*)`", first)), ours, why) for first, ours, why in cells]


def counterpart(name: str) -> click.Command | None:
    """Return the command of qgexec that the page names for one of pipetask."""
    found = re.search(r"^In qgexec: `qgexec ([a-z-]+)`", section_of(name), flags=re.MULTILINE)
    return cli.get_command(click.Context(cli), found[1]) if found else None


@pytest.mark.parametrize(("name", "command"), PARAMS)
def test_every_option_has_a_row(name: str, command: click.Command) -> None:
    """With all the ways in which it may be written; and no row is about an option that there is not."""
    theirs = {frozenset(names) for names in option_names(command)}
    ours = [frozenset(row.names) for row in rows_of(name)]
    assert len(ours) == len(set(ours))
    assert theirs <= set(ours)
    assert set(ours) - theirs <= {frozenset({option}) for option in NEWER}


@pytest.mark.parametrize(("name", "command"), PARAMS)
def test_what_is_said_to_be_the_same_exists(name: str, command: click.Command) -> None:
    """Our command has the option, under all of its names, with or without a value as pipetask has it."""
    ours = counterpart(name)
    flags = {
        opt: param.is_flag
        for param in command.params
        if isinstance(param, click.Option)
        for opt in param.opts
    }
    for row in rows_of(name):
        if row.ours != "same":
            assert row.why, f"{row.names}: no word why it is not the same"
            continue
        assert ours is not None
        found = [
            param
            for param in ours.params
            if isinstance(param, click.Option) and set(row.names) <= {*param.opts, *param.secondary_opts}
        ]
        assert found, f"qgexec {ours.name} has no {row.names}"
        assert found[0].is_flag == flags.get(row.names[0], found[0].is_flag)


def test_options_before_the_command() -> None:
    """Those about logging are pipetask's, each with a row."""
    theirs = {frozenset(names) for names in option_names(pipetask_cli)}
    ours = {frozenset(names) for names in option_names(cli)}
    assert theirs <= ours
    assert {frozenset(row.names) for row in rows_of("Before the command")} == theirs


@pytest.mark.parametrize("name", ["build", "qgraph", "run", "run-qbb", "pre-exec-init-qbb"])
def test_what_replaces_an_option_exists(name: str) -> None:
    """Options and commands of qgexec that the page names are there."""
    ours = counterpart(name)
    assert ours is not None
    for row in rows_of(name):
        for command_name, option in re.findall(r"`(?:qgexec ([a-z-]+) )?(--[a-z-]+)", row.ours):
            command = cli.get_command(click.Context(cli), command_name) if command_name else ours
            assert command is not None, command_name
            known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
            assert option in known, f"qgexec {command.name} has no {option}"
