"""What a terminal is told of what others said."""

from __future__ import annotations

import logging

from qgexec.plaintext import PrintableFormatter, printable


def test_a_terminal_obeys_nothing_that_a_task_said() -> None:
    """Escape sequences in messages are shown, lines stay lines."""
    assert printable("a\x1b[2Jb\tc\nd\r\udcff") == "a?[2Jb c\nd??"


def test_nor_what_a_logger_did() -> None:
    """A record is formatted by another formatter, tracebacks and all, and then made fit to be read."""
    record = logging.LogRecord("a", logging.INFO, "f", 1, "to %s", ("\x1b[2J",), None)
    assert PrintableFormatter().format(record) == "to ?[2J"
    assert PrintableFormatter(logging.Formatter("%(name)s\n%(message)s")).format(record) == "a\nto ?[2J"
