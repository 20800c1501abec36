"""Owns how a command shows many options in sections, and remembers their order; knows none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

__all__ = ["LongCommand", "given_in_order", "help_records", "section", "stack"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ORDER = "qgexec.order"
"""Where a context keeps the options of the command line as they were given."""

_sections: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()
"""Titles of the sections that options stand in."""


def stack(*decorators: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Return one decorator for several, whose options are shown in this order."""

    def apply(command: _Function) -> _Function:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def section(title: str, *decorators: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Return one decorator for several, whose options are shown under this title by a `LongCommand`."""

    def apply(command: _Function) -> _Function:
        before = len(getattr(command, "__click_params__", ()))
        command = stack(*decorators)(command)
        for option in command.__click_params__[before:]:  # type: ignore[attr-defined]  # click's own attribute
            _sections.setdefault(option, title)
        return command

    return apply


def help_records(command: click.Command, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return how the options of any command are written and what they do, by the titles of their sections.

    The sections are in the order in which they first come.
    """
    titles: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        # Newer versions of click count arguments among them, of which the text of the command speaks.
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            titles.setdefault(_sections.get(param, "Options"), []).append(record)
    return titles


class LongCommand(click.Command):
    """Shows its options in sections, and remembers the order in which they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse twice: only the parser knows the order, and hands it to nobody."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        seen: Counter[str] = Counter()
        given: list[tuple[str, Any]] = []
        for param in order:
            name = param.name or ""
            several = values.get(name)
            if isinstance(param, click.Option) and param.multiple and isinstance(several, list):
                given.append((name, several[seen[name]]))
                seen[name] += 1
        ctx.meta[_ORDER] = given
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section, in the order in which the sections first come."""
        for title, records in help_records(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


def given_in_order(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and value of repeatable options of the current command, in the order they were given.

    What an options file says of them counts as given before all that the
    command line says; where the command line has the same option, it alone
    counts, as for all options.

    Parameters
    ----------
    names
        Their names in Python.
    """
    context = click.get_current_context()
    on_line: list[tuple[str, str]] = [pair for pair in context.meta.get(_ORDER, ()) if pair[0] in names]
    in_file = context.default_map or {}
    there = {name for name, _ in on_line}
    from_file = [
        (name, value)
        for name, values in in_file.items()
        if name in names and name not in there
        for value in values
    ]
    return from_file + on_line
