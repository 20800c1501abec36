"""Values of options, as several commands take them; knows no option."""

from __future__ import annotations

from collections.abc import Iterable

import click

__all__ = ["comma_list", "filled", "split_commas"]


def filled(text: str) -> str:
    """Return a text that is not empty; raises `click.BadParameter` where it is."""
    # `--run-dir "$DIR"` where DIR is not set must not mean the current folder.
    if not text.strip():
        raise click.BadParameter("it is empty; leave the option out, or check the variable it comes from.")
    return text


def split_commas(values: Iterable[str]) -> tuple[str, ...]:
    """Split values at commas, but not at those between square brackets, as pipetask does; spaces go."""
    parts: list[str] = []
    for value in values:
        depth, begin = 0, 0
        for position, character in enumerate(value):
            depth += (character == "[") - (character == "]")
            if character == "," and depth <= 0:
                parts.append(value[begin:position])
                begin = position + 1
        parts.append(value[begin:])
    return tuple(stripped for part in parts if (stripped := part.strip()))


def comma_list(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split the values of an option at commas: its ``callback``."""
    return split_commas(values)
