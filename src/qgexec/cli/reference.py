"""Owns the option reference of the documentation, made of the commands; knows none of them by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from qgexec.cli.commandclass import help_records
from qgexec.cli.main import SECTIONS, cli

__all__ = ["reference_pages"]

_PROGRAM = "qgexec"

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~])")
"""What Markdown would take for more than a character."""


def reference_pages() -> dict[str, str]:
    """Return the pages of the option reference, as Markdown (MyST) by file name.

    ``index.md`` has the commands by purpose and the options that stand before
    them; every command has a page of its own.
    """
    context = click.Context(cli, info_name=_PROGRAM, **cli.context_settings)
    pages = {"index.md": "\n".join(_index(context)) + "\n"}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        pages[f"{name}.md"] = (
            "\n".join(_page(command, click.Context(command, context, info_name=name))) + "\n"
        )
    return pages


def _index(context: click.Context) -> Iterator[str]:
    yield from ("# Commands and options", "")
    yield from ("This reference is made of the commands themselves; their `--help` says the same.", "")
    for title, commands in SECTIONS.items():
        yield from (f"## {title}", "")
        for name, (_, _, text) in commands.items():
            yield from (f"[`{_PROGRAM} {name}`]({name}.md)", f": {_escaped(text)}", "")
    yield from ("## Before the command", "")
    yield from (f"These stand between `{_PROGRAM}` and the command, and hold for all commands.", "")
    for records in help_records(cli, context).values():
        yield from _definitions(records)
    yield from ("```{toctree}", ":hidden:", "", *cli.list_commands(context), "```")


def _page(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from (f"# {context.command_path}", "")
    yield from _help(command.help or "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{context.command_path} {usage}", "```", "")
    _, _, examples = (command.epilog or "").partition(":")
    yield from ("```bash", inspect.cleandoc(examples.replace("\b", "")).strip(), "```", "")
    for title, records in help_records(command, context).items():
        yield from (f"## {_escaped(title)}", "")
        yield from _definitions(records)


def _help(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):  # click's mark of a paragraph whose lines stand as they are
            yield from ("```text", *paragraph.splitlines()[1:], "```", "")
        else:
            yield from (_escaped(paragraph), "")


def _definitions(records: list[tuple[str, str]]) -> Iterator[str]:
    for names, text in records:
        yield from (f"`{names}`", f": {_escaped(text)}", "")


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
