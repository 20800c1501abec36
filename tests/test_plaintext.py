"""What a terminal is told of what others said."""

from __future__ import annotations

from qgexec.plaintext import printable


def test_a_terminal_obeys_nothing_that_a_task_said() -> None:
    """Escape sequences in messages are shown, lines stay lines."""
    assert printable("a\x1b[2Jb\tc\nd\r\udcff") == "a?[2Jb c\nd??"
