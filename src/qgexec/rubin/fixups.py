"""Owns how an object that adds ordering to a graph is made from its name; changes no graph."""

from __future__ import annotations

from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.utils import doImport

from qgexec.errors import UsageError

__all__ = ["make_fixup"]


def make_fixup(name: str | ExecutionGraphFixup | None) -> ExecutionGraphFixup | None:
    """Return an object that adds ordering to a graph.

    Parameters
    ----------
    name
        Full name of a class or function that makes one when it is called; an object, or `None`, is
        returned as it is.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot be imported or called, or makes something else.
    """
    if not isinstance(name, str):
        return name
    try:
        factory = doImport(name)
    except Exception as error:  # a module may raise what it likes
        raise UsageError(
            f"--graph-fixup {name} cannot be imported: {error}",
            hint="Give its full name (package.module.Class), and check PYTHONPATH.",
        ) from error
    try:
        made = factory()  # type: ignore[operator]  # a module is refused here, too
    except Exception as error:
        raise UsageError(f"--graph-fixup {name} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, ExecutionGraphFixup):
        raise UsageError(f"--graph-fixup {name} makes a {type(made).__name__}, not an ExecutionGraphFixup.")
    return made
