"""Owns how a table is set as plain text: aligned, no wider than the terminal; knows not what it says."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Column", "fit", "render", "render_parts", "wrapped"]

_GAP = "  "
_NARROWEST = 8


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    cells: Sequence[str]
    is_text: bool = False
    """Set flush left, and shortened where the table is too wide; the others are set flush right."""


def render(columns: Sequence[Column], width: int) -> list[str]:
    """Return a table's lines, none longer than ``width`` characters: title, then one line for each row.

    Where it is too wide, text is shortened first; then the last columns are left out.
    """
    shown = list(columns)
    widths = _natural_widths(shown)
    while (excess := sum(widths) + len(_GAP) * (len(widths) - 1) - width) > 0:
        place = max(range(len(shown)), key=lambda i: (shown[i].is_text, widths[i]))
        room = widths[place] - _NARROWEST if shown[place].is_text else 0
        if room > 0:
            widths[place] -= min(room, excess)
        elif len(shown) > 1:
            shown.pop()
            widths = _natural_widths(shown)
        else:
            widths[0] = max(1, width)
            break
    rows = zip(*[(c.title, *c.cells) for c in shown], strict=True)
    return [_GAP.join(map(_set, row, widths, shown)).rstrip() for row in rows]


def render_parts(columns: Sequence[Column], width: int) -> list[str]:
    """Return a table's lines as `render`; columns that have no room go to further tables below it.

    Each begins with the first column again, shortened to no less than it is in a table by itself.
    """
    first, *rest = columns
    lines: list[str] = []
    while True:
        part = [first]
        while rest and (len(part) == 1 or _least_width([*part, rest[0]]) <= width):
            part.append(rest.pop(0))
        lines += ["", *render(part, width)] if lines else render(part, width)
        if not rest:
            return lines


def _least_width(columns: Sequence[Column]) -> int:
    """Return how narrow a table can be without leaving a column out."""
    widths = zip(columns, _natural_widths(columns), strict=True)
    least = [min(width, _NARROWEST) if column.is_text else width for column, width in widths]
    return sum(least) + len(_GAP) * (len(columns) - 1)


def _natural_widths(columns: Sequence[Column]) -> list[int]:
    return [max(map(len, (column.title, *column.cells))) for column in columns]


def _set(cell: str, width: int, column: Column) -> str:
    cell = fit(cell, width)
    return cell.ljust(width) if column.is_text else cell.rjust(width)


def fit(text: str, width: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is longer than ``width`` characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def wrapped(text: str, width: int, *, hanging: int) -> list[str]:
    """Return the lines of a paragraph, those after the first indented; only words may be wider."""
    return textwrap.wrap(
        text,
        max(30, width),
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
