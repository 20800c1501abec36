"""Owns what of others' words may go to a terminal or a log; knows not who said them, nor where they go."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return the text without what a terminal would obey rather than show; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)
