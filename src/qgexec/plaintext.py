"""Owns how words are made fit to be read: those of others, and many of them; knows not who reads them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["few", "printable"]

_FEW = 5


def printable(text: str) -> str:
    """Return the text without what a terminal would obey rather than show; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)


def few(words: Sequence[str], separator: str = ", ") -> str:
    """Return the first few, and how many more there are."""
    more = len(words) - _FEW
    shown = separator.join(words[:_FEW])
    return f"{shown} and {more} more" if more > 0 else shown
