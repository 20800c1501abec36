"""Says how a Python process of ours is started: what lies in the current folder is never imported by it.

Given ``-m`` or ``-c`` Python puts the current folder in front of its search path: a ``json.py`` that lies
there would be run. ``-P`` takes it out and, unlike ``-I``, leaves ``PYTHONPATH`` alone, by which sites make
their packages known.
"""

from __future__ import annotations

import os
import sys

__all__ = ["driver_search_path", "module_command", "python_command"]


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - as text, and as the interpreter does
    except FileNotFoundError:  # it was removed: nothing can be imported from it either
        return ""


_began_in = _folder()
"""Where this process was when it imported this, which is as good as its beginning."""


def python_command(*words: str) -> tuple[str, ...]:
    """Return how this interpreter is started with these words."""
    return (sys.executable, "-P", *words)  # noqa: TID251 - the one place that may


def module_command(module: str, *words: str) -> tuple[str, ...]:
    """Return how a module is run as a program, as ``python -m`` would."""
    return python_command("-m", module, *words)


def driver_search_path() -> list[str]:
    """Return where this process finds modules, fit for another one, whose current folder may differ.

    An interactive session or a notebook has ``''`` in its path: the folder where it began stands for it.
    Other relative entries are taken from there, too, if there is something.
    """
    return [_absolute(entry) for entry in sys.path if isinstance(entry, str) and (entry or _began_in)]


def _absolute(entry: str) -> str:
    if os.path.isabs(entry):  # noqa: PTH117 - it is text, and stays as it is
        return entry
    path = os.path.normpath(os.path.join(_began_in, entry))  # noqa: PTH118
    # What is no path, such as the marks that editable installations leave, means something to their finder.
    return path if os.path.exists(path) else entry  # noqa: PTH110
