"""Owns `-@`: options of a command from a YAML file, as pipetask has them; knows no option by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import click

from qgexec.config.yamlfile import Node, read_yaml
from qgexec.errors import UsageError

__all__ = ["options_file"]


def _read(ctx: click.Context, param: click.Parameter, file: str | None) -> None:
    """Make what the file says of this command its defaults."""
    if file is None:
        return
    commands = read_yaml(file).section
    name = ctx.info_name or ""
    if name not in commands:
        raise UsageError(
            f"--options-file {file} says nothing of `{name}`: it has {', '.join(commands) or 'nothing'}.",
            hint="Put the options under the name of the command, without their dashes.",
        )
    known = {
        opt.lstrip("-"): option
        for option in ctx.command.params
        if isinstance(option, click.Option) and option.expose_value
        for opt in option.opts
    }
    defaults = dict(ctx.default_map or {})
    for key, node in commands[name].section.items():
        option = _option(key, node, known)
        defaults[str(option.name)] = _value(key, node, option)
    ctx.default_map = defaults


def _option(key: str, node: Node, known: dict[str, click.Option]) -> click.Option:
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key, known, n=1)
    raise UsageError(
        f"{node.place}: there is no option --{key}.",
        hint=f"Perhaps {close[0]}?" if close else "Options have their long names there, without the dashes.",
    )


def _value(key: str, node: Node, option: click.Option) -> object:
    content = node.content
    if isinstance(content, str | int | float | bool) or content is None:
        if option.is_flag:
            if not isinstance(content, bool):
                raise UsageError(f"{node.place}: {key} should be true or false.")
            return content
        text = None if content is None else _text(key, node)
        return [text] if option.multiple and text is not None else text
    if option.multiple and not isinstance(content, Mapping):
        return [_text(key, item) for item in content]
    raise UsageError(f"{node.place}: {key} takes {'a list of values' if option.multiple else 'one value'}.")


def _text(key: str, node: Node) -> str:
    """Return a value as the command line would have it."""
    text = str(node.content)
    if not isinstance(node.content, str | int | float | bool) or "\0" in text:
        raise UsageError(f"{node.place}: {key} should have a text or a number here.")
    return text


options_file = click.option(
    "-@",
    "--options-file",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read,
    help="Take options from this YAML file; what is on the command line counts more.",
)
"""The option; a command that has it takes defaults from the file's section of its name."""
