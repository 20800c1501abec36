"""Owns how words are made fit to be read: those of others, and many of them; knows not who reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

__all__ = ["PrintableFormatter", "encodable", "few", "printable"]

_FEW = 5


def printable(text: str) -> str:
    """Return the text without what a terminal would obey rather than show; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal as another formatter does, and has it obey nothing.

    Parameters
    ----------
    formatter
        The other; by default a record is its message.
    """

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as the other formatter has it, made fit to be read."""
        return printable(self._formatter.format(record))


def few(words: Sequence[str], separator: str = ", ") -> str:
    """Return the first few, and how many more there are."""
    more = len(words) - _FEW
    shown = separator.join(words[:_FEW])
    return f"{shown} and {more} more" if more > 0 else shown


def encodable(text: str) -> str:
    """Return a text with what UTF-8 cannot hold, the bytes of undecodable file names, as escape sequences."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
